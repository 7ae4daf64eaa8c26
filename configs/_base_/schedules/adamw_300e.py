# 300 epochs of AdamW on ImageNet-1K and ten more at the lowest rate, as published: timm, which ran
# them, adds ten epochs of cooldown. With an average of decay 0.9999 they make up nearly half of the
# averaged weights.
cosine_epochs = 300
max_epochs = cosine_epochs + 10
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    # Mixed precision with float16, as published. optim_wrapper.type='OptimWrapper' switches it off,
    # as tools/train.py does by itself where there is no GPU.
    type='AmpOptimWrapper',
    # 1e-3 for each 1024 images of a batch.
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    # timm does not decay parameters of at most one dimension: norms and biases. LayerScale, GRN and
    # position biases are decayed. `flat_decay_mult` is not used, as FSDP flattens every parameter.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    # mmengine's constructor, but with one group for all parameters that share settings.
    constructor='GroupedOptimWrapperConstructor',
)

# The rate is constant within an epoch, and the cosine counts from epoch 0, warm-up included. Where
# one of these factors ends, the other continues; together they are within 5e-4 of timm's rate.
param_scheduler = [
    # From 1e-6, the rate of the whole epoch 0, to the full rate in epoch 5.
    dict(type='LinearLR', start_factor=1e-6 / 2e-3, by_epoch=True, begin=0, end=6),
    dict(
        type='CosineAnnealingLR',
        T_max=cosine_epochs,
        eta_min=1e-5,
        by_epoch=True,
        begin=0,
        end=cosine_epochs + 1,
    ),
]

# The rate above is for 2048 images a step (8 GPUs x 256); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=2048)
