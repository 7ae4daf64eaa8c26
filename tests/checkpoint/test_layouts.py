"""All readers get the same weights from a checkpoint file of every layout."""

from collections import OrderedDict

import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from overlock_mm.checkpoint import CheckpointError, read_checkpoint, read_everywhere

WEIGHTS = {
    'backbone.weight': torch.tensor([[1.0, 2.0]]),
    'backbone.bias': torch.tensor([3.0]),
    'head.weight': torch.tensor([[4.0]]),
    'head.bias': torch.tensor([5.0]),
}
OTHERS = {name: torch.zeros_like(value) for name, value in WEIGHTS.items()}


def _prefixed(prefix):
    return {prefix + name: value for name, value in WEIGHTS.items()}


LAYOUTS = {
    'ours': {'state_dict': WEIGHTS, 'meta': {'epoch': 1}},
    'bare': WEIGHTS,
    'model': {'model': WEIGHTS, 'epoch': 3},
    'model_state_dict': {'model_state_dict': WEIGHTS},
    'DeepSpeed': {'module': WEIGHTS},
    'data parallel': {'state_dict': _prefixed('module.'), 'meta': {}},
    'bare data parallel': _prefixed('module.'),
    'compiled': {'state_dict': _prefixed('_orig_mod.')},
    'compiled data parallel': {'model': _prefixed('module._orig_mod.')},
    'compiled backbone': {
        name.replace('backbone.', 'backbone._orig_mod.'): v for name, v in WEIGHTS.items()
    },
    'average of timm': {'state_dict': OTHERS, 'state_dict_ema': _prefixed('module.')},
    'older average of timm': {'model': OTHERS, 'model_ema': WEIGHTS},
    'no average in timm': {'state_dict': WEIGHTS, 'state_dict_ema': None},
    'average of torch': {'model': {'n_averaged': torch.tensor(7), **_prefixed('module.')}},
}


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 1), nn.Linear(1, 1)


@pytest.fixture
def mmengine_reads_by_us(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    read_everywhere()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, tmp_path, mmengine_reads_by_us):
    path = tmp_path / 'file.pth'
    torch.save(LAYOUTS[layout], path)
    content = read_checkpoint(path)
    assert content['state_dict'].keys() == WEIGHTS.keys()
    assert isinstance(content['meta'], dict)

    model = _Model()
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, WEIGHTS[name]), name


def test_versions_of_modules_keep_their_names(tmp_path):
    state_dict = OrderedDict(_prefixed('module.'))
    state_dict._metadata = OrderedDict({'': {'version': 1}, 'module.head': {'version': 2}})
    torch.save({'state_dict': state_dict}, tmp_path / 'file.pth')
    versions = read_checkpoint(tmp_path / 'file.pth')['state_dict']._metadata
    assert versions == {'': {'version': 1}, 'head': {'version': 2}}


def test_a_part_called_module_stays(tmp_path):
    torch.save({'module.weight': torch.ones(1), 'head.weight': torch.ones(1)}, tmp_path / 'a.pth')
    names = read_checkpoint(tmp_path / 'a.pth')['state_dict'].keys()
    assert names == {'module.weight', 'head.weight'}


def test_safetensors(tmp_path, monkeypatch):
    torch_io = pytest.importorskip('safetensors.torch', reason='requirements/runtime.txt lists it')
    path = tmp_path / 'model.safetensors'
    torch_io.save_file(_prefixed('module.'), path)
    content = read_checkpoint(path)
    assert all(torch.equal(content['state_dict'][name], WEIGHTS[name]) for name in WEIGHTS)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match='not a complete safetensors file'):
        read_checkpoint(path)


def test_without_tensors(tmp_path):
    torch.save({'epoch': 3}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='holds no tensors'):
        read_checkpoint(tmp_path / 'a.pth')
