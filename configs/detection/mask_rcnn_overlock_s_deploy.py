# For inference with weights in fused form (tools/deployment/switch_to_deploy.py and
# tools/model_converters/convert_checkpoint.py --deploy write them), of 1x and 3x alike.
_base_ = './mask_rcnn_overlock_s_1x.py'

model = dict(backbone=dict(deploy=True, init_cfg=None))
