"""What mmdet, mmseg and mmpretrain use of mmcv.ops needs no operator that the stand-in lacks."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import mmcv
import pytest
from mmengine.registry import MODELS

from overlock_mm.mmcv_ops.operators import FAMILIES, OPERATORS
from tests.mmcv_ops.families import installed

assert installed  # mmcv.ops is imported, hence registered

FOLDER = Path(mmcv.__file__).parent / 'ops'
PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')


@functools.cache
def definitions():
    """Names in mmcv/ops/*.py -> names and attributes in their definitions."""
    uses = {}
    for path in FOLDER.glob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [getattr(node, 'name', None)]
            if isinstance(node, ast.Assign):
                names = [getattr(target, 'id', None) for target in node.targets]
            for name in names:
                if name not in (None, '__all__', 'ext_module'):
                    uses.setdefault(name, set()).update(mentioned(node))
    return uses


def mentioned(node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute) and getattr(part.value, 'id', '') == 'ext_module':
            yield f'ext_module.{part.attr}'


def operators_behind(name):
    """Operators of the extension that a name in mmcv.ops leads to."""
    seen, left = set(), {name}
    while left:
        seen |= left
        left = {other for one in left for other in definitions().get(one, ())} - seen
    return {name.partition('.')[2] for name in seen if name.startswith('ext_module.')}


def used_by(package):
    """Names in mmcv.ops that a package imports, and those that its configs build by ``type``."""
    (root,) = importlib.util.find_spec(package).submodule_search_locations
    built = {name: name for name in definitions()}
    built |= {
        name: layer.__name__
        for name, layer in MODELS.module_dict.items()
        if layer.__module__.startswith('mmcv.ops')
    }
    names = set()
    for path in Path(root).rglob('*.py'):
        text = path.read_text(encoding='utf-8')
        names |= {built[name] for name in re.findall(r"type='(\w+)'", text) if name in built}
        if 'mmcv.ops' in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmcv.ops'):
                    names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize('package', PACKAGES)
def test_what_is_used_is_there(package):
    used = used_by(package)
    assert package == 'mmpretrain' or 'sigmoid_focal_loss' in used
    missing = {name: operators_behind(name) - OPERATORS.keys() for name in used}
    assert not any(missing.values()), {name: lack for name, lack in missing.items() if lack}


def test_what_is_not_there_is_found():
    assert 'prroi_pool_forward' in operators_behind('PrRoIPool')
    assert operators_behind('CornerPool') == set()


def test_names_that_operators_claim_to_serve():
    for operator, family in FAMILIES.items():
        # line_nms came late.
        behind = {name: operators_behind(name) for name in family.serves if name in definitions()}
        assert not behind or any(operator in names for names in behind.values()), operator
        for name, operators in behind.items():
            assert operators <= OPERATORS.keys(), name
            assert operators or name == 'batched_nms', name  # which looks its function up by name
