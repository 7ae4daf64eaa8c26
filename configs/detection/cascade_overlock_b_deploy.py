# For inference with weights in deploy form (tools/convert_checkpoint.py --deploy writes them).
_base_ = './cascade_overlock_b.py'

model = dict(backbone=dict(deploy=True, init_cfg=None))
