# 36 epochs of AdamW, as published for Mask R-CNN 3x with this backbone.
#
# The cascade has the same schedule. No recipe of its own was published, and its peers differ:
#   rate      1e-4 in every layer, as Mask R-CNN here and Swin; MogaNet-S has 2e-4, MogaNet-B 1e-4
#             that falls by 0.8 a layer, ConvNeXt-S 2e-4 that falls by 0.7
#   warm-up   500 iterations, as Mask R-CNN here; MogaNet has 1000
#   decay     as Mask R-CNN here; MogaNet and Swin exclude all norms
#   precision full, as Mask R-CNN here; Swin and ConvNeXt have fp16
# The paper compares its cascade with MogaNet's.
_base_ = './adamw_1x.py'

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)

optim_wrapper = dict(optimizer=dict(lr=1e-4))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=501),
    dict(
        type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[27, 33], gamma=0.1
    ),
]
