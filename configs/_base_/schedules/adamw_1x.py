# 12 epochs of AdamW, as published for Mask R-CNN 1x.
_base_ = '../paramwise/published_dense.py'

max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
)

param_scheduler = [
    # The full rate is reached after 500 iterations; `end` is the first one beyond the warm-up.
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[8, 11], gamma=0.1),
]

# The rate above is for 16 images a step (8 GPUs x 2); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=16)
