# For inference with weights in fused form, which tools/deployment/switch_to_deploy.py writes, and
# tools/model_converters/convert_checkpoint.py from official files (*_reparam.pth among them). The
# auxiliary classifier, which those files still carry, is used in training only.
_base_ = './overlock_t.py'

model = dict(backbone=dict(deploy=True), head=dict(auxiliary=False))
