"""The configs are part of the package, and other projects inherit them."""

import os
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config
from modelindex.load_model_index import load as load_model_index

from overlock_mm.configs import CONFIG_ROOT, config_path, list_configs
from tests.configs.conftest import CONFIGS, ROOT

PARENT = 'detection/cascade_overlock_s'
STYLES = {
    'by the name of the package': f"_base_ = 'overlock_mm::{PARENT}.py'",
    'by a path that the package gives': (
        f"_base_ = __import__('overlock_mm.configs').configs.config_path('{PARENT}.py')"
    ),
    'pure Python': (
        'from mmengine.config import Config\n'
        'from mmengine.optim import OptimWrapper\n\n'
        f"parent = __import__('overlock_mm.configs').configs.config_path('{PARENT}.py')\n"
        'globals().update(Config.fromfile(parent).to_dict())\n'
        "optim_wrapper['type'] = OptimWrapper"
    ),
}


@pytest.mark.parametrize('style', STYLES)
def test_another_project_inherits(style, tmp_path):
    override = (
        "model['backbone']['drop_path_rate'] = 0.1"
        if style == 'pure Python'
        else 'model = dict(backbone=dict(drop_path_rate=0.1))'
    )
    path = tmp_path / 'child.py'
    path.write_text(f'{STYLES[style]}\n\n{override}\n')
    child = Config.fromfile(path).to_dict()
    if style == 'pure Python':
        del child['parent']
        child['optim_wrapper']['type'] = child['optim_wrapper']['type'].rpartition('.')[2]
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


def test_every_config_is_shipped_with_the_tools():
    assert CONFIG_ROOT.resolve() == ROOT
    assert list_configs() == CONFIGS
    for name in ('train', 'test'):
        assert (CONFIG_ROOT.parent / f'tools/{name}.py').is_file()


def test_mim_finds_each_config_by_its_bare_name():
    """It looks for files of that name in the whole package, and wants exactly one."""
    package = CONFIG_ROOT.parents[1]
    files = [
        name
        for folder, _, names in os.walk(package, followlinks=True)
        if '_base_' not in folder
        for name in names
    ]
    assert all(files.count(Path(name).name) == 1 for name in CONFIGS)


@pytest.mark.parametrize(
    'name', ['detection/cascade_overlock_s.py', 'demo/upernet_overlock_shapes.py']
)
def test_the_hub_of_mmengine_has_our_configs(name):
    cfg = get_config(f'overlock_mm::{name}')
    assert cfg.to_dict() == Config.fromfile(config_path(name)).to_dict()


def test_model_index_is_valid_and_complete():
    root = ROOT.parent
    index = load_model_index(str(root / 'model-index.yml'))
    index.build_models_with_collections()
    listed = {model.config for model in index.models}
    expected = {
        f'configs/{name}'
        for name in CONFIGS
        if not name.endswith('_deploy.py') and not name.startswith('demo/')
    }
    assert listed == expected
    for path in yaml.safe_load((root / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((root / path).read_text())['Models']:
            source = model['Metadata']['Source of Results']
            # A figure says whose it is.
            assert source.startswith('published' if 'Results' in model else 'none yet')
