"""A model divided by FSDP keeps what goes by the names of its parameters."""

import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import STRATEGIES
from torch import distributed

import overlock_mm.engine.sharding  # noqa: F401  (registers the strategy)
from overlock_mm import OverLoCK
from overlock_mm.configs import config_path
from tests.conftest import ROOT
from tools import train as train_tool


class _Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = OverLoCK(
            arch=dict(channels=(16, 16, 32, 32), depths=(1, 1, 1, 1, 2, 1), groups=(2, 2))
        )

    def forward(self, inputs, mode='loss'):
        return sum(x.mean() for x in self.backbone(inputs))


def settings_by_name(model, optim_wrapper):
    names = {
        id(parameter): name.replace('_fsdp_wrapped_module.', '')
        for name, parameter in model.named_parameters()
    }
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('setting', ['no_decay', 'layer_decay'])
@pytest.mark.usefixtures('one_gloo_process')
def test_rates_and_decays_are_those_of_the_whole_model(setting, tmp_path):
    cfg = Config.fromfile(config_path(f'_base_/paramwise/{setting}.py'))
    optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), **cfg)
    distributed.init_process_group('gloo')
    whole = _Model()
    expected = settings_by_name(whole, build_optim_wrapper(whole, Config(optim_wrapper)._cfg_dict))
    strategy = STRATEGIES.build(dict(type='BlockFSDPStrategy', work_dir=str(tmp_path)))
    strategy.prepare(_Model(), optim_wrapper=Config(optim_wrapper)._cfg_dict)
    assert len(set(expected.values())) > 1
    assert settings_by_name(strategy.model, strategy.optim_wrapper) == expected


def test_an_average_of_weights_is_refused(tmp_path, capsys):
    bases = [f'{ROOT}/configs/{name}.py' for name in ('demo/classifier_overlock_shapes', 'fsdp')]
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {bases}'.replace('configs/fsdp', 'configs/_base_/fsdp'))
    with pytest.raises(SystemExit):
        train_tool.main([str(config), '--work-dir', str(tmp_path)])
    assert 'custom_hooks = []' in capsys.readouterr().err
