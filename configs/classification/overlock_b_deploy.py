# For inference with weights in deploy form, which tools/switch_to_deploy.py writes, and
# tools/convert_checkpoint.py from official files (*_reparam.pth among them). The auxiliary
# classifier, which those files still carry, teaches in training only.
_base_ = './overlock_b.py'

model = dict(backbone=dict(deploy=True), head=dict(auxiliary=False))
