# 36 epochs of AdamW, as published for Mask R-CNN 3x with this backbone and used by its peers
# (Swin, MogaNet) for Cascade Mask R-CNN 3x.
_base_ = './adamw_1x.py'

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)

# 1e-4 and not ConvNeXt's 2e-4: that one belongs together with layer-wise decay of the rate.
optim_wrapper = dict(optimizer=dict(lr=1e-4))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=501),
    dict(
        type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[27, 33], gamma=0.1
    ),
]
