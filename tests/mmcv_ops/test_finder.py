"""Where the stand-in is found, where it is not, and what it says."""

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch

from overlock_mm.mmcv_ops import EXTENSION, is_stand_in, offer_operators, registry, remedies
from tests.mmcv_ops.families import installed, stand_in


def find_in(folder):
    """The first answer of Python's finders for mmcv's extension in a folder."""
    specs = (finder.find_spec(EXTENSION, [str(folder)]) for finder in sys.meta_path)
    return next(spec for spec in specs if spec is not None)


def test_an_mmcv_without_its_extension_gets_the_stand_in(tmp_path):
    assert find_in(tmp_path).origin == 'overlock_mm.mmcv_ops'
    assert all(finder.find_spec('mmcv._exx', []) is None for finder in sys.meta_path[-1:])


def test_an_extension_that_does_not_load_keeps_its_error(tmp_path):
    path = tmp_path / f'_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}'
    path.write_bytes(b'made for another torch')
    spec = find_in(tmp_path)
    assert spec.origin == str(path)
    with pytest.raises(ImportError, match='_ext'):
        importlib.util.module_from_spec(spec)


def test_it_is_offered_once_and_last():
    before = list(sys.meta_path)
    offer_operators()
    assert sys.meta_path == before
    binary = list(Path(mmcv.__file__).parent.glob('_ext.*'))
    assert is_stand_in(installed) is (not binary)


def test_an_operator_that_it_lacks_raises_when_called(monkeypatch):
    monkeypatch.setattr(remedies, 'too_new_for_mmcv', lambda: '')
    module = stand_in()
    assert hasattr(module, 'three_nn_forward')
    assert not hasattr(module, '__path__')
    message = "'three_nn_forward'.*Remedies: compile mmcv by .*. Or use a model without it"
    with pytest.raises(NotImplementedError, match=message):
        module.three_nn_forward(torch.zeros(1), b=1)


def test_it_says_once_where_operators_come_from(monkeypatch):
    said = []
    monkeypatch.setattr(registry, 'print_log', lambda text, logger: said.append(text))
    registry._say_once.cache_clear()
    module = stand_in()
    assert module.get_compiling_cuda_version() == 'not available'
    assert said == []
    for _ in range(2):
        module.nms(torch.zeros(1, 4), torch.zeros(1), iou_threshold=0.5, offset=0)
    assert len(said) == 1
    assert 'overlock_mm.doctor' in said[0]


def test_autocast_does_not_change_dtypes():
    values = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    outputs = []
    for enabled in (False, True):
        output = values.new_zeros(1, 4, 2, 2)
        empty = values.new_zeros(0)
        rois = torch.tensor([[0.0, 0, 0, 4, 4]], requires_grad=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            stand_in().roi_align_forward(values, rois, output, empty, empty, 2, 2, 1.0, 0, 1, True)
        outputs.append(output)
    assert torch.equal(*outputs)


def test_without_torchvision_the_remedy_is_named(monkeypatch):
    def broken(name):
        raise RuntimeError('operator torchvision::nms does not exist')

    registry._torchvision_namespace.cache_clear()
    monkeypatch.setattr(registry.importlib, 'import_module', broken)
    with pytest.raises(RuntimeError, match='nms does not exist.*pip install .*torchvision[=>]='):
        registry.torchvision_operator('nms')


PROGRAM = """
import sys
import torch
import overlock_mm, overlock_mm.ops
assert 'mmcv' not in sys.modules and 'torchvision' not in sys.modules
import mmcv.ops
from mmcv.utils import collect_env
assert overlock_mm.mmcv_ops.is_stand_in(sys.modules['mmcv._ext']), mmcv.ops.__file__
assert 'overlock_mm' in collect_env()['MMCV Compiler']
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]], requires_grad=True)
print(mmcv.ops.soft_nms(boxes, torch.tensor([0.5, 1]))[1].tolist())
"""


@pytest.mark.slow
def test_a_process_with_an_mmcv_that_has_no_extension(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    for path in Path(mmcv.__file__).parent.iterdir():
        if not path.name.startswith('_ext'):
            (tmp_path / 'mmcv' / path.name).symlink_to(path)
    program = f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}'
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == '[1, 0]'
    assert (run.stdout + run.stderr).count('no compiled operators') == 1
