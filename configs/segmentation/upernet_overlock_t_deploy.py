# For inference with weights in fused form (tools/deployment/switch_to_deploy.py and
# tools/model_converters/convert_checkpoint.py --deploy write them).
_base_ = './upernet_overlock_t.py'

model = dict(backbone=dict(deploy=True, init_cfg=None))
