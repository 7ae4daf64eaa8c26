# For models that do not fit: each process keeps a part of the parameters, gradients and optimizer
# state. Inherit it beside a recipe: _base_ = ['.../cascade_overlock_b.py', '.../_base_/fsdp.py'].
runner_type = 'FlexibleRunner'
strategy = dict(type='overlock_mm.engine.sharding.BlockFSDPStrategy')
