# 300 epochs of AdamW on ImageNet-1K, as published.
max_epochs = 300
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# No paramwise_cfg: every parameter is decayed, norms, biases, LayerScale and position biases too.
# The published runs did so, because their exclusion list named parameters that do not exist.
# ../paramwise has the alternatives.
optim_wrapper = dict(
    type='OptimWrapper',
    # 1e-3 for each 1024 images of a batch.
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    # From 1e-6.
    dict(
        type='LinearLR',
        start_factor=1e-6 / 2e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=max_epochs),
]

# The rate above is for 2048 images a step (8 GPUs x 256); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=2048)
