"""The shipped configs, and their models built in a second each."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from overlock_mm.utils.config import load_config

ROOT = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*.py') if '_base_' not in path.parts
)
INITIALISERS = ('trunc_normal_', 'kaiming_uniform_', 'kaiming_normal_', 'normal_', 'uniform_')


@pytest.fixture
def build(monkeypatch):
    """Build the model of a config without drawing its initial weights, which takes ten seconds."""

    def refuse(url, *args, **kwargs):
        raise AssertionError(f'building a model downloads {url}')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    for name in INITIALISERS:
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)

    def build_model(cfg):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            return MODELS.build(cfg.model)

    return build_model


def build_optimizer(model, cfg):
    """The optimizer of a config, without mixed precision: its wrapper needs a GPU."""
    return build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper')).optimizer


@cache
def _loaded(path):
    return load_config(path)


@pytest.fixture(scope='session')
def load():
    """Load a config by its path below configs/; a copy, as every file is read but once."""
    return lambda name: deepcopy(_loaded(ROOT / name))
