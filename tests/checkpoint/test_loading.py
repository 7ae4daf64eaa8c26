import logging
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger

from overlock_mm import OverLoCK
from overlock_mm.checkpoint import (
    CheckpointError,
    CheckpointMismatchError,
    check_compatible,
    convert_official,
    likely_variant,
    load_pretrained,
    read_checkpoint,
)
from tests import official
from tests.models.helpers import TINY, randomize_parameters


@pytest.fixture(scope='module')
def official_files(tmp_path_factory):
    """Official-shaped XT files of each task and form, in the layouts they come in."""
    folder = tmp_path_factory.mktemp('official')
    files = {}
    for task, form in (
        ('cls', 'training'),
        ('cls', 'reparameterized'),
        ('det', 'training'),
        ('seg', 'training'),
    ):
        state_dict = official.official_state_dict(task, 'xt', form)
        if task != 'cls':
            state_dict = {f'backbone.{name}': value for name, value in state_dict.items()}
            state_dict['neck.conv.weight'] = torch.zeros(3)
        content = {'state_dict': state_dict, 'meta': {'CLASSES': ('a', 'b')}}
        files[task, form] = folder / f'{task}_{form}.pth'
        torch.save(content if task != 'cls' else state_dict, files[task, form])
    return files


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize('source', [('cls', 'training'), ('det', 'training'), ('seg', 'training')])
@pytest.mark.parametrize('context_residual', [True, False])
@pytest.mark.slow
def test_pretrained_takes_official_files_of_every_task(official_files, source, context_residual):
    path = official_files[source]
    model = OverLoCK(
        'xt',
        context_residual=context_residual,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    content = read_checkpoint(path)['state_dict']
    task = official.TASK_NAMES[source[0]]
    loaded = {k.removeprefix('backbone.'): v for k, v in convert_official(content, task).items()}
    for name, value in model.state_dict().items():
        expected = loaded.get(name, fresh[name])
        assert torch.equal(value, expected.to(value.dtype)), name


def test_the_report_says_what_was_loaded_and_left_out(official_files, log):
    model = OverLoCK('xt')
    load_pretrained(model, official_files['det', 'training'])
    count = len(model.state_dict())
    assert f'loaded {count} of {count} tensors' in log.text
    assert '6 tensors of overview_residual are ignored' in log.text
    log.clear()
    load_pretrained(model, official_files['cls', 'training'])
    assert f'loaded {count - 8} of {count} tensors' in log.text
    assert '8 tensors of norm0, norm1, norm2, norm3 keep their initial weights' in log.text


def test_a_reparameterized_file_fits_the_fused_form_only(official_files):
    path = official_files['cls', 'reparameterized']
    load_pretrained(OverLoCK('xt', deploy=True), path)
    with pytest.raises(CheckpointMismatchError, match='(?s)in reparameterized form.*deploy=True'):
        load_pretrained(OverLoCK('xt'), path)
    with pytest.raises(CheckpointMismatchError, match='(?s)in training form.*switch_to_deploy.py'):
        load_pretrained(OverLoCK('xt', deploy=True), official_files['cls', 'training'])


@pytest.mark.parametrize('context_residual', [True, False])
@pytest.mark.slow
def test_the_reparameterized_form_is_fused_while_it_is_loaded(official_files, context_residual):
    """Parts that the file lacks keep their initial weights; the rest is what folding gives."""
    model = OverLoCK('xt', context_residual=context_residual, deploy=True).double()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    load_pretrained(model, official_files['cls', 'reparameterized'])

    published = official.build_model('cls', 'xt', form='reparameterized').double()
    state_dict = official.official_state_dict('cls', 'xt', 'reparameterized')
    published.load_state_dict(convert_official(state_dict, 'classification'))
    published.backbone.switch_to_deploy()
    folded = published.backbone.state_dict()
    assert folded.keys() < model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, folded.get(name, fresh[name])), name


def test_own_fused_files_fit_the_fused_form_only(tmp_path):
    source = randomize_parameters(OverLoCK(TINY))
    source.switch_to_deploy()
    path = tmp_path / 'deploy.pth'
    torch.save({'state_dict': source.state_dict()}, path)
    target = OverLoCK(TINY, deploy=True)
    load_pretrained(target, path)
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name
    with pytest.raises(CheckpointMismatchError, match='(?s)in fused form.*deploy=True'):
        load_pretrained(OverLoCK(TINY), path)


@pytest.mark.slow
def test_our_own_files_load_from_any_prefix(tmp_path):
    source = randomize_parameters(OverLoCK(TINY))
    for prefix, given in (('', None), ('backbone.', None), ('student.net.', 'student.net')):
        path = tmp_path / 'own.pth'
        torch.save({'state_dict': {prefix + k: v for k, v in source.state_dict().items()}}, path)
        target = OverLoCK(TINY)
        load_pretrained(target, path, given)
        for name, value in source.state_dict().items():
            assert torch.equal(value, target.state_dict()[name])
    with pytest.raises(CheckpointMismatchError, match="no tensors below 'teacher.'"):
        load_pretrained(target, path, 'teacher')


def test_another_variant_is_an_error_that_names_it(official_files):
    with pytest.raises(CheckpointMismatchError) as info:
        load_pretrained(OverLoCK('t'), official_files['cls', 'training'])
    message = str(info.value)
    assert (
        'base_net.downsamples.0.0.conv.weight: [32, 3, 3, 3] in the model, [28, 3, 3, 3]' in message
    )
    assert "The file is of variant 'xt', the model of variant 't'" in message


def test_another_input_is_an_error(official_files):
    with pytest.raises(CheckpointMismatchError, match=r'\[28, 4, 3, 3\] in the model'):
        load_pretrained(OverLoCK('xt', in_channels=4), official_files['cls', 'training'])


@pytest.mark.parametrize('variant', official.VARIANTS)
def test_likely_variant(variant):
    model = OverLoCK(variant, deploy=True)
    assert likely_variant(model.state_dict()) == variant
    prefixed = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    assert likely_variant(prefixed) == variant


def test_check_compatible():
    model = OverLoCK(TINY)
    check_compatible(model, model.state_dict())
    assert likely_variant(model.state_dict()) is None
    state_dict = dict(model.state_dict())
    del state_dict['norm1.weight']
    state_dict['head.fc.weight'] = torch.zeros(2)
    with pytest.raises(CheckpointMismatchError) as info:
        check_compatible(model, state_dict, 'epoch_3.pth')
    assert 'epoch_3.pth does not fit the model: 2 tensors differ' in str(info.value)
    assert 'norm1.weight: not in the file' in str(info.value)
    assert 'head.fc.weight: not in the model' in str(info.value)


def test_official_names_get_the_remedy():
    state_dict = official.official_state_dict('det', 'xt')
    model = OverLoCK('xt', context_residual=True)
    with pytest.raises(CheckpointMismatchError, match='convert_checkpoint.py net.pth OUT.pth'):
        check_compatible(model, state_dict, 'net.pth')


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_is_executed_from_a_file(tmp_path):
    marker, path = tmp_path / 'executed', tmp_path / 'bad.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'meta': Payload(f'touch {marker}')}, path)
    with pytest.raises(CheckpointError, match='cannot be|be read safely'):
        read_checkpoint(path)
    assert not marker.exists()


class ForeignGetattr:
    def __reduce__(self):
        return getattr, (np.ndarray, 'tofile')  # a class that is allowed


def test_the_stand_in_for_getattr_knows_history_buffers_alone(tmp_path):
    path = tmp_path / 'bad.pth'
    torch.save({'x': ForeignGetattr()}, path)
    with pytest.raises(CheckpointError, match='be read safely'):
        read_checkpoint(path)


def test_what_training_logs_is_readable(tmp_path):
    history = HistoryBuffer()
    history.update(1.5)
    path = tmp_path / 'own.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'message_hub': {'loss': history}}, path)
    assert read_checkpoint(path)['message_hub']['loss'].current() == 1.5


@pytest.mark.parametrize('kind', ['truncated', 'text', 'empty', 'pickle'])
def test_files_that_are_no_checkpoints(tmp_path, kind):
    path = tmp_path / 'bad.pth'
    torch.save(OverLoCK(TINY).state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            'truncated': whole[: len(whole) // 2],
            'text': b'<html>404 not found</html>',
            'empty': b'',
            'pickle': pickle.dumps([1, 2, 3]),
        }[kind]
    )
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(FileNotFoundError, match='No checkpoint file at'):
        read_checkpoint(tmp_path / 'none.pth')
    path = tmp_path / 'meta.pth'
    torch.save({'meta': {'epoch': 3}}, path)
    with pytest.raises(CheckpointError, match='holds no tensors .* its keys are meta'):
        read_checkpoint(path)


def test_an_address_that_cannot_be_reached_names_the_place_for_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=f'put it at {tmp_path}/checkpoints/none.pth'):
        read_checkpoint('http://127.0.0.1:9/none.pth')
    # A file that is already there is used without the network.
    torch.save({'a': torch.ones(1)}, tmp_path / 'checkpoints' / 'none.pth')
    assert read_checkpoint('http://127.0.0.1:9/none.pth')['state_dict']['a'] == 1
