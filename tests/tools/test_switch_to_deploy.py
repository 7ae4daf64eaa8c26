"""A checkpoint that the tool folded gives the same predictions through ``tools/test.py``."""

import hashlib
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.fileio import load
from mmengine.registry import MODELS, init_default_scope

from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.datasets.shapes import write_classification
from overlock_mm.utils.config import load_config
from tests.conftest import DEMO, ROOT
from tests.models.helpers import randomize_norms
from tools import test as test_tool
from tools.deployment import switch_to_deploy

CLASSIFIER = str(ROOT / 'configs/demo/classifier_overlock_shapes.py')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint as mmengine writes it, with statistics that folding must not ignore."""
    cfg = load_config(CLASSIFIER)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    randomize_norms(model)
    path = tmp_path_factory.mktemp('trained') / 'epoch_1.pth'
    content = {
        'meta': {'epoch': 1, 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': model.state_dict(),
        'optimizer': {'state': {}},
    }
    torch.save(content, path)
    return path


@pytest.mark.slow
def test_same_predictions_through_the_test_tool(trained, tmp_path, capsys):
    data = tmp_path / 'classes'
    write_classification(data, num_train=5, num_val=5)

    def predictions(config, checkpoint, *options):
        out = tmp_path / f'{checkpoint.stem}.pkl'
        arguments = [config, str(checkpoint), '--out', str(out), '--work-dir', str(tmp_path / 'w')]
        test_tool.main([*arguments, '--cfg-options', f'data_root={data}', *options])
        return torch.stack([sample['pred_score'] for sample in load(out)])

    before = predictions(CLASSIFIER, trained)
    path = switch_to_deploy.main([CLASSIFIER, str(trained), str(tmp_path / 'out/small.pth')])
    printed = capsys.readouterr().out
    # The command that it names is the one that runs.
    command = shlex.split(printed.rsplit('Test it with: ', 1)[1])
    assert command[:2] == ['python', 'tools/test.py']
    assert command[2:5] == [CLASSIFIER, str(path), '--cfg-options']
    after = predictions(command[2], path, *command[5:])
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    assert before.std() > 0


def test_the_file_is_whole_and_holds_weights_alone(trained, tmp_path, capsys):
    path = switch_to_deploy.main([CLASSIFIER, str(trained), str(tmp_path / 'out/small.pth')])
    assert 'same outputs in float64' in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.name == f'small-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth'
    content = read_checkpoint(path)
    assert set(content) == {'state_dict', 'meta'}
    assert content['meta']['dataset_meta']['classes'] == ('a', 'b')
    before = read_checkpoint(trained)['state_dict']
    for name, value in content['state_dict'].items():
        assert name.startswith('backbone.') or torch.equal(value, before[name]), name


def test_a_file_in_reparameterized_form_is_fused(trained, tmp_path):
    cfg = load_config(CLASSIFIER)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.load_state_dict(read_checkpoint(trained)['state_dict'])
    model.backbone.reparameterize()
    torch.save(model.state_dict(), tmp_path / 'published.pth')
    paths = [
        switch_to_deploy.main([CLASSIFIER, str(source), str(tmp_path / 'folded.pth')])
        for source in (trained, tmp_path / 'published.pth')
    ]
    weights, again = (read_checkpoint(path)['state_dict'] for path in paths)
    assert weights.keys() == again.keys()
    for name, value in weights.items():
        assert torch.allclose(value, again[name], rtol=0, atol=1e-5), name


def test_the_published_configs_have_deploy_siblings():
    for name in ('classification/overlock_t', 'detection/mask_rcnn_overlock_t_3x'):
        sibling = ROOT / 'configs' / f'{name.removesuffix("_3x")}_deploy.py'
        assert switch_to_deploy.deploy_sibling(ROOT / 'configs' / f'{name}.py') == sibling
    assert switch_to_deploy.deploy_sibling(Path(CLASSIFIER)) is None


def test_for_a_deploy_sibling_the_auxiliary_classifier_is_left_out(trained, tmp_path, capsys):
    config, sibling = tmp_path / 'small.py', tmp_path / 'small_deploy.py'
    config.write_text(f"_base_ = '{CLASSIFIER}'\n")
    sibling.write_text("_base_ = './small.py'\nmodel = dict(head=dict(auxiliary=False))\n")
    path = switch_to_deploy.main([str(config), str(trained), str(tmp_path / 'folded.pth')])
    assert f'python tools/test.py {sibling} {path}' in capsys.readouterr().out
    weights = read_checkpoint(path)['state_dict']
    assert not any(name.startswith('head.aux') for name in weights)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('configs/classification/overlock_xt_deploy.py', 'builds the fused form'),
        ('configs/classification/overlock_xt.py', 'does not fit the model'),
        ('configs/classification/none.py', 'There is no config file'),
    ],
)
def test_mistakes_are_told_before_anything_is_written(config, message, trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        switch_to_deploy.main([str(ROOT / config), str(trained), str(tmp_path / 'out.pth')])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_backbone_is_refused(trained, tmp_path, capsys):
    config = tmp_path / 'resnet.py'
    config.write_text(
        f"_base_ = '{DEMO}'\n"
        "model = dict(backbone=dict(_delete_=True, type='mmdet.ResNet', depth=18), "
        'neck=dict(in_channels=[64, 128, 256, 512]))\n'
    )
    with pytest.raises(SystemExit):
        switch_to_deploy.main([str(config), str(trained), str(tmp_path / 'out.pth')])
    assert 'must be an OverLoCK' in capsys.readouterr().err
