"""tools/test.py measures exported files; those that give the ground truth are all right."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from overlock_mm.datasets.shapes import (
    METAINFO,
    SEMANTIC_METAINFO,
    write_classification,
    write_shapes,
)
from overlock_mm.runtime import ModelDescription
from overlock_mm.runtime.description import KEY
from tests.conftest import ROOT
from tools import test as test_tool

pytestmark = pytest.mark.slow

CONFIGS = {
    'detection': ROOT / 'configs/demo/cascade_overlock_shapes.py',
    'segmentation': ROOT / 'configs/demo/upernet_overlock_shapes.py',
    'classification': ROOT / 'configs/demo/classifier_overlock_shapes.py',
}


def write_file(path, outputs, task, head, classes):
    """An ONNX file that answers with the same arrays for every picture."""
    inputs = [helper.make_tensor_value_info('image', TensorProto.FLOAT, [1, 3, 'h', 'w'])]
    if task == 'detection':
        inputs.append(helper.make_tensor_value_info('image_size', TensorProto.INT64, [1, 2]))
    values = {name: numpy_helper.from_array(array[None], name) for name, array in outputs.items()}
    nodes = [helper.make_node('Constant', [], [name], value=v) for name, v in values.items()]
    infos = [helper.make_tensor_value_info(n, v.data_type, v.dims) for n, v in values.items()]
    graph = helper.make_graph(nodes, 'truth', inputs, infos)
    opset = helper.make_opsetid('', 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    description = ModelDescription(task, tuple(classes), head=head)
    helper.set_model_props(model, {KEY: description.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folder with one validation picture for detection and segmentation, five for classes."""
    root = tmp_path_factory.mktemp('truth')
    write_shapes(root, num_train=1, num_val=1)
    write_classification(root / 'classes', num_train=5, num_val=5)
    return root


@pytest.fixture
def detector(data, tmp_path):
    """A file that gives the boxes of the data, and last one that is wrong."""
    content = json.loads((data / 'coco/annotations/instances_val2017.json').read_text())
    boxes = np.array([o['bbox'] for o in content['annotations']], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    labels = [o['category_id'] - 1 for o in content['annotations']]
    outputs = {
        'boxes': np.concatenate([boxes, [[0, 0, 1, 1]]]).astype(np.float32),
        'scores': np.linspace(0.9, 0.1, len(labels) + 1, dtype=np.float32),
        'labels': np.array([*labels, 0]),
        'count': np.array(len(labels) + 1),
    }

    def make(classes=METAINFO['classes']):
        return write_file(tmp_path / 'truth.onnx', outputs, 'detection', {}, classes)

    return make


def arguments(task, path, data_root, tmp_path, *more):
    options = ('--cfg-options', f'data_root={data_root}', 'test_dataloader.batch_size=1', *more)
    return [str(CONFIGS[task]), str(path), '--work-dir', str(tmp_path / 'work'), *options]


def test_a_detector(detector, data, tmp_path):
    command = arguments(
        'detection', detector(), data / 'coco', tmp_path, 'test_evaluator.metric=bbox'
    )
    metrics = test_tool.main([*command, '--show-dir', str(tmp_path / 'drawn')])
    assert metrics['coco/bbox_mAP'] == 1
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 1


def test_a_file_that_does_not_name_its_classes(detector, data, tmp_path, capsys):
    only_boxes = 'test_evaluator.metric=bbox'
    path = detector(classes=())
    test_tool.main(arguments('detection', path, data / 'coco', tmp_path, only_boxes))
    assert f'{path} names no classes.' in ' '.join(capsys.readouterr().out.split())


def test_a_segmentor(data, tmp_path):
    truth = next((data / 'ade/annotations/validation').iterdir())
    labels = np.asarray(Image.open(truth)).astype(np.int64) - 1
    classes = SEMANTIC_METAINFO['classes']
    scores = (labels == np.arange(len(classes))[:, None, None]).astype(np.float32)
    outputs = {'scores': 0.5 * scores + 0.1, 'labels': labels}
    path = write_file(
        tmp_path / 'truth.onnx', outputs, 'segmentation', {'scores': 'softmax'}, classes
    )
    metrics = test_tool.main(arguments('segmentation', path, data / 'ade', tmp_path))
    assert metrics['aAcc'] == metrics['mIoU'] == 100


def test_a_classifier(data, tmp_path, capsys):
    scores = np.array([0.1, 0.6, 0.1, 0.1, 0.1], np.float32)
    path = write_file(
        tmp_path / 'truth.onnx',
        {'scores': scores},
        'classification',
        {'scores': 'softmax'},
        METAINFO['classes'],
    )
    command = arguments('classification', path, data / 'classes', tmp_path)
    assert test_tool.main(command) == {'accuracy/top1': 20}  # one class of five
    assert 'AuxiliaryAccuracy is left out' in ''.join(capsys.readouterr())


def test_what_does_not_fit(detector, data, tmp_path, fails):
    def message(task='detection', *more, classes=METAINFO['classes'], options=()):
        root = {'detection': 'coco', 'segmentation': 'ade'}[task]
        path = detector(classes)
        return fails(test_tool.main, *arguments(task, path, data / root, tmp_path, *options), *more)

    assert "finds no masks, which the config's metric 'segm' measures" in message()
    assert 'is for detection, and the config is for segmentation' in message('segmentation')
    assert '--tta is for a checkpoint' in message('detection', '--tta')
    only_boxes = ['test_evaluator.metric=bbox']
    other = message(classes=METAINFO['classes'][::-1], options=only_boxes)
    assert 'The classes of test are not those of' in other and 'truth.onnx' in other
    precision = message('detection', '--precision', 'bf16', options=only_boxes)
    assert "ONNX Runtime computes a file in its own precision, not in 'bf16'" in precision
    assert not (tmp_path / 'work/metrics.json').exists()
    (tmp_path / 'weights.pth').write_bytes(b'')
    command = arguments('detection', tmp_path / 'weights.pth', data / 'coco', tmp_path)
    assert 'are for exported files' in fails(test_tool.main, *command, '--engine', 'openvino')
