"""What the tools must not take for granted: softmax, scalar metrics, names of checkpoints."""

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from overlock_mm import OverLoCK
from overlock_mm.analysis.networks import Network
from overlock_mm.analysis.targets import Question, choose_target, segmentation_logits
from overlock_mm.datasets.shapes import write_classification
from overlock_mm.export import export_onnx, exportable
from overlock_mm.runtime.drawing import enlarging_factor
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT
from tests.models.helpers import TINY
from tools import test as test_tool

CLASSIFIER = f'{ROOT}/configs/demo/classifier_overlock_shapes.py'


def _build(cfg):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).eval()


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes') / 'data'
    write_classification(root, num_train=5, num_val=10)
    return root


@pytest.mark.slow
def test_wrapped_names_with_an_average_and_metrics_per_class(untrained, classes, tmp_path):
    """Random weights were tested, and the metrics lost to a TypeError."""
    _, weights = untrained('classification')
    content = torch.load(weights, weights_only=True)
    wrapped = {f'module.{name}': value for name, value in content['state_dict'].items()}
    torch.save({'state_dict': wrapped, 'meta': content['meta']}, tmp_path / 'module.pth')
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{CLASSIFIER}'\n"
        "val_evaluator = [dict(type='Accuracy', topk=(1,)), dict(type='SingleLabelMetric', "
        "items=['precision', 'recall'], average=None), dict(type='ConfusionMatrix')]\n"
        'test_evaluator = val_evaluator\n'
    )
    results = []
    for name, seed in (weights, 1), (str(tmp_path / 'module.pth'), 2):
        work = tmp_path / f'work{seed}'
        options = [f'data_root={classes}', f'randomness.seed={seed}']
        test_tool.main([str(config), name, '--work-dir', str(work), '--cfg-options', *options])
        results.append(json.loads((work / 'metrics.json').read_text()))
    assert results[0] == results[1]
    assert len(results[0]['single-label/precision_classwise']) == 5
    matrix = np.array(results[0]['confusion_matrix/result'])
    assert matrix.shape == (5, 5)
    assert matrix.sum() == 10


@pytest.mark.slow
def test_export_of_a_multi_label_classifier(tmp_path):
    cfg = load_config(CLASSIFIER)
    cfg.model.backbone.update(out_indices=(3,), output_norm=True)
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head = dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=160, thr=0.5)
    model = _build(cfg)
    model.backbone.switch_to_deploy()
    path = tmp_path / 'multi_label.onnx'
    export_onnx(exportable(model), path, (96, 96))
    image = torch.randn(1, 3, 96, 96)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    scores = session.run(None, {'image': image.numpy()})[0][0]
    (sample,) = model(image, mode='predict')
    assert np.allclose(scores, sample.pred_score.detach().numpy(), atol=1e-5)


def test_activation_map_of_a_segmentor_with_one_channel():
    cfg = load_config(f'{ROOT}/configs/demo/upernet_overlock_shapes.py')
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(
            num_classes=2,
            out_channels=1,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
        )
    model = _build(cfg).requires_grad_(False)
    inputs = torch.randn(1, 3, 96, 96)
    view = SimpleNamespace(inputs=inputs, picture=np.zeros((96, 96, 3), np.uint8))
    network = Network('one', cfg, model, ('background', 'object'))
    for bias, label in ((5.0, 1), (-5.0, 0)):
        model.decode_head.conv_seg.bias.fill_(bias)
        target = choose_target(network, view, Question())
        logit = model.encode_decode(inputs, [dict(img_shape=(96, 96), pad_shape=(96, 96))])
        probability = logit.sigmoid()[0, 0, 48, 48].item()
        assert target.label == label
        assert target.confidence == pytest.approx(probability if label else 1 - probability)
        assert segmentation_logits(model, inputs).shape[1] == 2
        images = inputs.clone()
        score = target.score(images)
        assert score.requires_grad


def test_a_cascade_of_heads_answers_with_its_last():
    cfg = load_config(f'{ROOT}/configs/demo/upernet_overlock_shapes.py')
    cfg.model.backbone.arch = TINY
    width = OverLoCK(TINY).out_channels[-1]
    common = dict(in_channels=width, channels=16, num_classes=6, norm_cfg=dict(type='BN'))
    heads = [
        dict(common, type='FCNHead', num_convs=1),
        dict(common, type='OCRHead', ocr_channels=8, align_corners=True),
    ]
    cfg.model.update(type='CascadeEncoderDecoder', num_stages=2, decode_head=heads)
    cfg.model.auxiliary_head = None
    model = _build(cfg).requires_grad_(False)
    inputs = torch.randn(1, 3, 64, 64)
    scores, _ = exportable(model)(inputs)
    logits = segmentation_logits(model, inputs)
    torch.testing.assert_close(scores, logits.softmax(1))
    view = SimpleNamespace(inputs=inputs, picture=np.zeros((64, 64, 3), np.uint8))
    target = choose_target(Network('cascade', cfg, model), view, Question())
    assert target.label == logits[0, :, 32, 32].argmax()


@pytest.mark.parametrize(
    ('shape', 'factor'),
    [((96, 96), 4), ((1, 2000), 1), ((2000, 1), 1), ((20, 4000), 1), ((20, 500), 4), ((360, 9), 5)],
)
def test_strips_are_enlarged_by_their_longest_side(shape, factor):
    assert enlarging_factor(np.zeros((*shape, 3), np.uint8)) == factor
