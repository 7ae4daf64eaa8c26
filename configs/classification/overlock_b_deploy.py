# For inference with weights in deploy form, such as the published *_reparam.pth. The auxiliary
# classifier, which those files still carry, teaches in training only.
_base_ = './overlock_b.py'

model = dict(backbone=dict(deploy=True), head=dict(auxiliary=False))
