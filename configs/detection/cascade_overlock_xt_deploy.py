# For inference with weights in deploy form (tools/switch_to_deploy.py and
# tools/convert_checkpoint.py --deploy write them).
_base_ = './cascade_overlock_xt.py'

model = dict(backbone=dict(deploy=True, init_cfg=None))
