# 36 epochs of AdamW, the recipe published for Mask R-CNN 3x with this backbone and used by its
# peers (Swin, MogaNet) for Cascade Mask R-CNN 3x.
max_epochs = 36
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# No paramwise_cfg: every parameter is decayed, norms, biases, LayerScale and position biases too.
# The published runs did so, because their exclusion list named parameters that do not exist.
optim_wrapper = dict(
    type='OptimWrapper',
    # 1e-4 and not ConvNeXt's 2e-4: that one belongs together with layer-wise decay of the rate.
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        milestones=[27, 33],
        gamma=0.1,
    ),
]

# The rate above is for 16 images a step (8 GPUs x 2); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=16)
