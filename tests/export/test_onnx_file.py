"""Files of the backbone: what they hold, what they compute and what is refused."""

import importlib.util

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.export import ExportError, check_request, export_onnx, exportable, onnx_file
from tests.models.helpers import TINY, randomize_parameters

#: Both stages with one window size, so that nothing but their sizes tells them apart.
SAME_WINDOWS = dict(
    channels=(16, 16, 64, 64), depths=(1, 1, 1, 1, 1, 1), groups=(2, 2), kernel_sizes=(7, 7, 7, 7)
)


def backbone(arch):
    model = randomize_parameters(OverLoCK(arch, context_residual=True)).eval()
    model.switch_to_deploy()
    return model


@pytest.mark.parametrize('arch', (TINY, SAME_WINDOWS), ids=('tiny', 'same windows'))
def test_one_file_for_all_sizes(tmp_path, arch):
    model = backbone(arch)
    path = tmp_path / 'any.onnx'
    differences = export_onnx(exportable(model), path, None)
    assert set(differences) == set(onnx_file.COMPARED_SHAPES)
    assert max(differences.values()) < 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    image = torch.randn(1, 3, 32, 201)  # the least height, and a map with one row
    with torch.no_grad():
        expected = model(image)
    for actual, wanted in zip(session.run(None, {'image': image.numpy()}), expected, strict=True):
        difference = (torch.from_numpy(actual) - wanted).abs().max() / wanted.abs().max()
        assert difference < 1e-4


def test_images_of_five_bands(tmp_path):
    model = randomize_parameters(OverLoCK(TINY, in_channels=5)).eval()
    export_onnx(exportable(model), tmp_path / 'five.onnx', (64, 96))
    dims = onnx.load(tmp_path / 'five.onnx').graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ['batch', 5, 64, 96]


def test_file_of_a_fixed_size(tmp_path):
    model = backbone(TINY)
    path = tmp_path / 'fixed.onnx'
    differences = export_onnx(
        exportable(model), path, (224, 256), opset=20, metadata={'classes': '["a"]'}
    )
    assert set(differences) == {(1, 224, 256), (2, 224, 256), (3, 224, 256)}
    content = onnx.load(path)
    assert {entry.domain for entry in content.opset_import} <= {''}  # only standard operators
    assert content.opset_import[0].version == 20
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    assert metadata == {'task': 'backbone', 'image_size': '224 x 256', 'classes': '["a"]'}
    names = [node.name for node in content.graph.node]
    assert len(set(names)) == len(names)
    assert any('contmix' in name for name in names)
    assert [out.name for out in content.graph.output] == [f'output{i}' for i in range(4)]
    dims = content.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ['batch', 3, 224, 256]
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < 1.1 * weights + 2**20


def test_a_wrong_file_is_not_put_in_place(tmp_path, monkeypatch):
    path = tmp_path / 'old.onnx'
    path.write_text('the file of yesterday')
    monkeypatch.setattr(onnx_file, '_differences', lambda *_: {(1, 64, 64): float('nan')})
    with pytest.raises(ExportError, match='differs from PyTorch by nan'):
        export_onnx(exportable(backbone(SAME_WINDOWS)), path, (64, 64))
    assert path.read_text() == 'the file of yesterday'
    assert [file.name for file in tmp_path.iterdir()] == ['old.onnx']


def test_what_cannot_be_exported(monkeypatch):
    with pytest.raises(ValueError, match='opset must be from 17.*got 16'):
        check_request(16, None)
    with pytest.raises(ValueError, match='opset must be .* to 20, got 21'):
        check_request(21, None)
    with pytest.raises(ValueError, match='at least 32 pixels, got 31 x 64'):
        check_request(17, (31, 64))
    with pytest.raises(TypeError, match='got Linear'):
        exportable(nn.Linear(2, 2))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install onnx onnxruntime'):
        check_request(17, None)
