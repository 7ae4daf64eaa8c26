"""Official files through the converter, and on through ``tools/test.py``."""

import hashlib
import json
from argparse import Namespace

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from overlock_mm.checkpoint import (
    CheckpointError,
    check_compatible,
    convert_file,
    read_checkpoint,
)
from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO, write_classification
from overlock_mm.utils.config import load_config
from tests import official
from tests.conftest import ROOT
from tools import test as test_tool
from tools.model_converters import convert_checkpoint

CLASSES = len(METAINFO['classes'])
# The tiny pictures as they are, and few predictions, as an untrained network is sure of nothing.
SMALL_DETECTION = f"""
image = (160, 128)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image
dataset = dict(metainfo=dict(classes={METAINFO['classes']}), pipeline=test_pipeline)
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = test_dataloader
model = dict(test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)))
"""
CHILDREN = {
    'mask_rcnn': f"""
_base_ = '{ROOT}/configs/detection/mask_rcnn_overlock_xt_1x.py'
{SMALL_DETECTION}
heads = dict(num_classes={CLASSES})
model['roi_head'] = dict(bbox_head=heads, mask_head=heads)
""",
    'upernet': f"""
_base_ = '{ROOT}/configs/segmentation/upernet_overlock_xt.py'
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (160, 128)
dataset = dict(
    type='BaseSegDataset', img_suffix='.png', reduce_zero_label=True, pipeline=test_pipeline,
    metainfo=dict(classes={SEMANTIC_METAINFO['classes']}),
)
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = test_dataloader
""",
    'classifier': f"""
_base_ = '{ROOT}/configs/classification/overlock_xt.py'
dataset = dict(metainfo=dict(classes={METAINFO['classes']}))
test_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset
)
val_dataloader = test_dataloader
""",
}
CHILDREN['classifier deploy'] = CHILDREN['classifier'].replace('_xt.py', '_xt_deploy.py')
METRICS = {
    'mask_rcnn': 'coco/segm_mAP',
    'upernet': 'mIoU',
    'classifier': 'accuracy/top1',
    'classifier deploy': 'accuracy/top1',
}
WHAT = {
    'mask_rcnn': "task detection (mask_rcnn), variant 'xt', training form",
    'upernet': "task segmentation (upernet), variant 'xt', training form",
    'classifier': "task classification (classifier), variant 'xt', training form",
    'classifier deploy': "task classification (classifier), variant 'xt', reparameterized form",
}


def official_content(model):
    """A file of one of the authors' releases, as they wrote it."""
    if not model.startswith('classifier'):
        return official.first_generation_file(model, 'xt', 150 if model == 'upernet' else CLASSES)
    state_dict = official.official_state_dict(
        'cls', 'xt', 'reparameterized' if ' ' in model else 'training'
    )
    weights = {k: v if k.endswith('tracked') else v.float() for k, v in state_dict.items()}
    # timm, with which they were trained, keeps its command line too.
    return {'state_dict': weights, 'args': Namespace(model='overlock_xt'), 'epoch': 299}


@pytest.fixture(scope='module')
def data_roots(shapes_root, tmp_path_factory):
    folders = tmp_path_factory.mktemp('classes') / 'data'
    write_classification(folders, num_train=5, num_val=5)
    return {
        'mask_rcnn': shapes_root,
        'upernet': shapes_root.parent / 'ade',
        'classifier': folders,
        'classifier deploy': folders,
    }


@pytest.mark.slow
@pytest.mark.parametrize('model', CHILDREN)
def test_an_official_file_runs_in_its_config(model, data_roots, tmp_path, capsys):
    source = tmp_path / 'official.pth'
    torch.save(official_content(model), source)
    path = convert_checkpoint.main([str(source), str(tmp_path / 'out/ours.pth')])
    printed = capsys.readouterr().out
    assert f'Recognised {WHAT[model]}' in printed
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'ours-{digest[:8]}.pth'
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    config = tmp_path / 'child.py'
    config.write_text(CHILDREN[model])
    arguments = [str(config), str(path), '--work-dir', str(tmp_path / 'work')]
    metrics = test_tool.main([*arguments, '--cfg-options', f'data_root={data_roots[model]}'])
    assert METRICS[model] in metrics
    assert json.loads((tmp_path / 'work/metrics.json').read_text()) == metrics


def test_a_cascade_fits_its_config(monkeypatch):
    # No official one is published; peers trained theirs with the same heads.
    for name in ('trunc_normal_', 'kaiming_uniform_', 'normal_', 'uniform_'):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    content = official.first_generation_file('cascade', 'xt', 80)
    converted, official_model, _ = convert_file(content, 'file')
    assert official_model.config == 'configs/detection/cascade_overlock_xt.py'
    cfg = load_config(ROOT / official_model.config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_compatible(MODELS.build(cfg.model), converted['state_dict'])


def test_class_names_move_to_where_the_second_generation_reads_them():
    content = official.first_generation_file('mask_rcnn', 'xt', 2)
    converted, official_model, report = convert_file(content, 'file')
    assert converted['meta'] == {
        'overlock': {'task': 'detection', 'variant': 'xt', 'form': 'training'},
        'dataset_meta': {
            'classes': ('class 0', 'class 1'),
            'palette': [[0, 0, 0], [1, 0, 0]],
        },
    }
    assert set(converted) == {'state_dict', 'meta'}
    assert official_model.config == 'configs/detection/mask_rcnn_overlock_xt_1x.py'
    assert 'Left out optimizer.' in report


@pytest.mark.parametrize('variant', official.VARIANTS)
@pytest.mark.parametrize('task', ['cls', 'det', 'seg'])
@pytest.mark.parametrize('form', ['training', 'reparameterized'])
def test_task_variant_and_form_are_recognised(task, variant, form, monkeypatch):
    # Without drawing weights: this is about names and shapes.
    monkeypatch.setattr(torch.nn.init, 'trunc_normal_', lambda tensor, **_: tensor)
    shapes = official.manifest(task, variant, form)
    content = {name: torch.empty(0).new_empty(shape) for name, shape in shapes.items()}
    _, official_model, _ = convert_file(content, 'file')
    assert (official_model.task, official_model.variant) == (official.TASK_NAMES[task], variant)
    assert official_model.form == ('training' if form == 'training' else 'fused')
    assert (official_model.config is None) == (task != 'cls')  # a bare backbone has no config
    if official_model.config:
        assert (ROOT / official_model.config).is_file()


@pytest.mark.slow
def test_folding_gives_the_same_outputs():
    content = official.official_state_dict('cls', 'xt')
    converted, official_model, _ = convert_file(content, 'file', deploy=True)
    assert official_model.form == 'fused'
    assert (ROOT / official_model.config).name == 'overlock_xt_deploy.py'
    model = official.build_model('cls', 'xt', auxiliary=False).double()
    model.backbone.switch_to_deploy()
    model.load_state_dict(converted['state_dict'])
    plain = official.load_official('cls', 'xt')
    image = torch.as_tensor(official.recipe.image(1, 64, 64))
    with torch.no_grad():
        folded, expected = (m.head(m.backbone(image)) for m in (model.eval(), plain.eval()))
    assert torch.allclose(folded, expected, rtol=0, atol=1e-9 * expected.abs().max())


def test_bad_files_are_told_before_anything_is_written(tmp_path, capsys):
    content = official_content('mask_rcnn')
    weights = content['state_dict']
    cases = {
        'does not have the names of an official checkpoint': {'a.weight': torch.zeros(2)},
        'it lacks rpn_head': {k: v for k, v in weights.items() if not k.startswith('rpn_head.')},
        'it also has teacher': {**weights, 'teacher.weight': torch.zeros(2)},
        'not in the file': {k: v for k, v in weights.items() if 'blocks2.0.dwconv' not in k},
        'names are not those of an official': {**weights, 'backbone.extra': torch.zeros(1)},
        'none of the published widths': {
            k: v for k, v in weights.items() if not k.startswith('backbone.blocks2.1.')
        },
    }
    for message, state_dict in cases.items():
        with pytest.raises(CheckpointError, match=message):
            convert_file({'state_dict': state_dict}, 'file')
    source = tmp_path / 'bad.pth'
    source.write_bytes(b'not a checkpoint')
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(source), str(tmp_path / 'out.pth')])
    assert 'is not a checkpoint' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(source), str(tmp_path / 'out.txt')])
    assert 'must end in .pth' in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ['bad.pth']


def test_timms_command_line_is_read_as_plain_data(tmp_path):
    path = tmp_path / 'timm.pth'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'args': Namespace(lr=1e-3)}, path)
    assert read_checkpoint(path)['args'].lr == 1e-3
