"""The configs are part of the package, and other projects inherit them."""

import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from modelindex.load_model_index import load as load_model_index

from overlock_mm.configs import CONFIG_ROOT, config_path, list_configs
from tests.configs.conftest import CONFIGS, ROOT
from tests.conftest import maintained_stack

PARENT = 'detection/cascade_overlock_s'
STYLES = {
    'by the name of the package': f"_base_ = 'overlock_mm::{PARENT}.py'",
    'by a path that the package gives': (
        f"_base_ = __import__('overlock_mm.configs').configs.config_path('{PARENT}.py')"
    ),
    'pure Python': (
        'from mmengine.config import read_base\n\nwith read_base():\n'
        f'    from overlock_mm.configs.{PARENT.replace("/", ".")} import *  # noqa: F403'
    ),
}


def works_with(style, installation):
    """Of the original mmengine, ``read_base`` finds no editable installation."""
    return style != 'pure Python' or installation == 'wheel' or maintained_stack()


@pytest.mark.parametrize('style', STYLES)
def test_another_project_inherits(style, tmp_path):
    if not works_with(style, 'editable'):
        pytest.skip('read_base of the original mmengine finds no editable installation.')
    override = (
        'model.update(dict(backbone=dict(drop_path_rate=0.1)))'
        if style == 'pure Python'
        else 'model = dict(backbone=dict(drop_path_rate=0.1))'
    )
    path = tmp_path / 'child.py'
    path.write_text(f'{STYLES[style]}\n\n{override}\n')
    child = Config.fromfile(path).to_dict()
    parent = Config.fromfile(config_path(f'{PARENT}.py')).to_dict()
    assert child['model']['backbone'].pop('drop_path_rate') == 0.1
    assert parent['model']['backbone'].pop('drop_path_rate') == 0.4
    # No part is looked for in a registry of this package, which has none.
    assert child == parent


def test_a_name_that_does_not_exist_names_its_neighbours(tmp_path):
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'overlock_mm::detection/cascade_overlok_s.py'")
    with pytest.raises(FileNotFoundError, match=r'Near ones: detection/cascade_overlock_s\.py'):
        Config.fromfile(path)


def test_names_of_other_packages_go_to_mmengine(tmp_path):
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'mmdet::_base_/default_runtime.py'")
    assert Config.fromfile(path).default_scope == 'mmdet'


def test_names_of_mmseg_are_found_under_every_name_of_its_distribution(tmp_path):
    path = tmp_path / 'child.py'
    path.write_text("_base_ = 'mmseg::_base_/default_runtime.py'")
    assert Config.fromfile(path).default_scope == 'mmseg'
    path.write_text("_base_ = 'mmseg::_base_/no_such.py'")
    with pytest.raises((ModuleNotFoundError, FileNotFoundError)):
        Config.fromfile(path)


def test_every_config_is_shipped_and_has_a_bridge():
    assert CONFIG_ROOT.resolve() == ROOT
    assert list_configs() == CONFIGS
    bridges = Path(sys.modules['overlock_mm.configs'].__file__).parent
    assert sorted(p.relative_to(bridges).as_posix() for p in bridges.glob('*/*.py')) == CONFIGS
    assert {p.resolve().name for p in bridges.glob('*/*.py')} == {'_bridge.py'}


def test_model_index_is_valid_and_complete():
    root = ROOT.parent
    index = load_model_index(str(root / 'model-index.yml'))
    index.build_models_with_collections()
    found = {model.config for model in index.models}
    expected = {
        f'configs/{name}'
        for name in CONFIGS
        if not name.endswith('_deploy.py') and not name.startswith('demo/')
    }
    assert found == expected
    for path in yaml.safe_load((root / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((root / path).read_text())['Models']:
            source = model['Metadata']['Source of Results']
            # A figure says whose it is.
            assert source.startswith('published' if 'Results' in model else 'none yet')
