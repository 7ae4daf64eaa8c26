"""Mixed precision of the recipes, on machines that have none."""

import pytest
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config

from overlock_mm.configs import config_path
from overlock_mm.engine.sharding import BlockFSDPStrategy
from tools import train as train_tool


def test_without_a_gpu_a_recipe_is_trained_in_full_precision(capsys, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    cfg = Config.fromfile(config_path('classification/overlock_xt.py'))
    cfg.optim_wrapper.dtype = 'bfloat16'
    train_tool.disable_amp_without_gpu(cfg)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert 'dtype' not in cfg.optim_wrapper
    assert 'No GPU is visible' in capsys.readouterr().out


def test_with_a_gpu_the_precision_is_the_recipes(capsys, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    cfg = Config.fromfile(config_path('classification/overlock_xt.py'))
    train_tool.disable_amp_without_gpu(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert not capsys.readouterr().out


@pytest.mark.parametrize(('kind', 'shared'), [('AmpOptimWrapper', True), ('OptimWrapper', False)])
def test_processes_that_share_a_model_share_the_scale_of_its_loss(
    kind, shared, monkeypatch, tmp_path
):
    """With a scale of its own, one process would skip a step that the others take."""
    built = []
    monkeypatch.setattr(
        FSDPStrategy, 'build_optim_wrapper', lambda self, cfg, model=None: built.append(cfg)
    )
    strategy = BlockFSDPStrategy.__new__(BlockFSDPStrategy)
    strategy.build_optim_wrapper(dict(type=kind, optimizer=dict(type='AdamW')))
    assert built[0].get('use_fsdp', False) is shared
