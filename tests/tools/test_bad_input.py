"""What a user can get wrong: one readable error, before any work."""

import os
import pickle
import sys

import pytest
import torch

from overlock_mm import OverLoCK
from tests.conftest import DEMO, ROOT
from tools import test as test_tool
from tools import train as train_tool


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A file with tensors that fit no detector of ours: another variant's backbone."""
    path = tmp_path_factory.mktemp('checkpoint') / 'xt.pth'
    model = OverLoCK('xt')
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in model.state_dict().items()}}, path)
    return path


def test_missing_data_names_the_paths_and_the_remedy(fails, tmp_path):
    message = fails(
        train_tool.main, DEMO, '--work-dir', tmp_path, '--cfg-options', 'data_root=/no/where'
    )
    assert '/no/where/annotations/instances_train2017.json' in message
    assert '/no/where/val2017/' in message
    assert '--cfg-options data_root=FOLDER' in message


def test_learning_rates_by_depth_of_another_library(fails, tmp_path):
    message = fails(
        train_tool.main,
        DEMO,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'optim_wrapper.constructor=LearningRateDecayOptimizerConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate=0.8',
    )
    assert "constructor='OverLoCKLayerDecayConstructor'" in message
    assert 'decay_rate=0.8' in message


def test_missing_annotation_file_alone(fails, tmp_path, tiny_run, checkpoint):
    message = fails(
        test_tool.main,
        DEMO,
        checkpoint,
        '--work-dir',
        tmp_path,
        *tiny_run,
        'test_dataloader.dataset.ann_file=annotations/other.json',
    )
    assert 'annotations/other.json (test_dataloader.dataset.ann_file)' in message
    assert 'val2017' not in message


@pytest.mark.slow
def test_missing_config_in_a_process_of_its_own(run_python):
    result = run_python(ROOT / 'tools/train.py', 'configs/detection/cascade_overlok_s.py')
    assert result.returncode == 1
    assert 'Near ones: configs/detection/cascade_overlock_s.py' in result.stderr
    assert 'Traceback' not in result.stderr


def test_missing_package(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    message = fails(train_tool.main, DEMO)
    assert f'{DEMO} needs mmdet, which is not installed' in message
    assert 'pip install onedl-mmdetection (maintained) or mmdet (original)' in message


def test_package_that_a_config_imports_is_missing(fails, monkeypatch, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text("custom_imports = dict(imports=['mmseg.no'], allow_failed_imports=False)")
    monkeypatch.setitem(sys.modules, 'mmseg', None)
    assert f'{own} needs mmseg, which is not installed' in fails(train_tool.main, own)


def test_package_that_refuses_its_neighbours(fails, monkeypatch):
    def refuse(name):
        raise AssertionError('MMCV==2.3.6 is used but incompatible')

    monkeypatch.setattr('overlock_mm.cli.arguments.importlib.import_module', refuse)
    message = fails(train_tool.main, DEMO)
    assert 'cannot be imported: MMCV==2.3.6 is used but incompatible' in message
    assert 'python -m overlock_mm.doctor' in message


def test_checkpoint_of_another_variant(fails, tmp_path, tiny_run, checkpoint):
    message = fails(test_tool.main, DEMO, checkpoint, '--work-dir', tmp_path, *tiny_run)
    assert str(checkpoint) in message
    assert 'backbone.base_net.' in message
    assert "variant 'xt'" in message


@pytest.mark.slow
def test_starting_weights_of_another_variant(fails, tmp_path, tiny_run, checkpoint):
    message = fails(
        train_tool.main, DEMO, '--work-dir', tmp_path, *tiny_run, f'load_from={checkpoint}'
    )
    assert "variant 'xt'" in message


def test_missing_initial_weights(fails, tmp_path, shapes_root):
    message = fails(
        train_tool.main,
        ROOT / 'configs/detection/cascade_overlock_s.py',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        f'data_root={shapes_root}',
        'model.backbone.init_cfg.checkpoint=/no/where.pth',
    )
    assert '/no/where.pth (model.backbone.init_cfg.checkpoint)' in message


def test_missing_checkpoint(fails, tmp_path, tiny_run):
    message = fails(test_tool.main, DEMO, tmp_path / 'no.pth', *tiny_run)
    assert str(tmp_path / 'no.pth') in message


def test_truncated_checkpoint(fails, tmp_path, tiny_run, checkpoint):
    truncated = tmp_path / 'half.pth'
    content = checkpoint.read_bytes()
    truncated.write_bytes(content[: len(content) // 2])
    message = fails(test_tool.main, DEMO, truncated, '--work-dir', tmp_path, *tiny_run)
    assert str(truncated) in message


def test_file_that_is_no_checkpoint(fails, tmp_path, tiny_run):
    text = tmp_path / 'notes.pth'
    text.write_text('not a checkpoint')
    message = fails(test_tool.main, DEMO, text, '--work-dir', tmp_path, *tiny_run)
    assert str(text) in message


class _MakesAFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('legacy', [False, True])
def test_checkpoint_with_code_in_it_is_refused_unrun(fails, tmp_path, tiny_run, legacy):
    victim = tmp_path / 'made_by_the_checkpoint'
    content = {'state_dict': {}, 'extra': _MakesAFolder(str(victim))}
    path = tmp_path / 'evil.pth'
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    message = fails(train_tool.main, DEMO, '--resume', path, '--work-dir', tmp_path, *tiny_run)
    assert str(path) in message
    assert not victim.exists()


def test_resuming_from_weights_alone(fails, tmp_path, tiny_run, checkpoint):
    message = fails(
        train_tool.main, DEMO, '--resume', checkpoint, '--work-dir', tmp_path, *tiny_run
    )
    assert 'lacks optimizer, param_schedulers, message_hub' in message
    assert f'load_from={checkpoint}' in message


def test_work_dir_that_cannot_be_written(fails, tmp_path, tiny_run):
    in_the_way = tmp_path / 'file'
    in_the_way.write_text('')
    work_dir = in_the_way / 'work'
    message = fails(train_tool.main, DEMO, '--work-dir', work_dir, *tiny_run)
    assert f"work directory '{work_dir}' is not writable" in message
    assert '--work-dir' in message


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('model.backbone.arch=huge', 'huge'),
        ('model.backbone.out_indices=(0,1,2,7)', '7'),
        ('model.backbone.arch.kernel_sizes=(17,15,12,7)', '12'),
        ('model.backbone.arch.channels=(24,48,90,128)', '90'),
    ],
)
def test_wrong_setting_of_the_backbone(fails, tmp_path, tiny_run, option, value):
    message = fails(train_tool.main, DEMO, '--work-dir', tmp_path, *tiny_run, option)
    assert option.split('=')[0].split('.')[-1] in message or 'width' in message
    assert value in message


@pytest.mark.skipif(torch.cuda.is_available(), reason='on a GPU mixed precision is no mistake')
def test_mixed_precision_without_a_gpu(fails, tmp_path, tiny_run):
    message = fails(train_tool.main, DEMO, '--amp', '--work-dir', tmp_path, *tiny_run)
    assert '--amp needs a GPU' in message


def test_learning_rate_without_its_batch_size(fails, tmp_path, tiny_run):
    message = fails(
        train_tool.main,
        DEMO,
        '--auto-scale-lr',
        '--work-dir',
        tmp_path,
        *tiny_run,
        'auto_scale_lr={}',
    )
    assert 'base_batch_size' in message


def test_name_for_predictions(fails, tmp_path, tiny_run, checkpoint):
    message = fails(
        test_tool.main,
        DEMO,
        checkpoint,
        '--out',
        tmp_path / 'p.json',
        '--work-dir',
        tmp_path,
        *tiny_run,
    )
    assert 'must end in .pkl' in message
    assert 'p.json' in message


def test_augmentation_that_the_config_lacks(fails, tmp_path, tiny_run, checkpoint):
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = '{DEMO}'\ntta_model = None\n")
    message = fails(test_tool.main, own, checkpoint, '--tta', '--work-dir', tmp_path, *tiny_run)
    assert '--tta needs tta_model in the config' in message
