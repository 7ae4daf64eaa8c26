# 100 epochs of AdamW, the last ten without mosaics, as mmdet trains RTMDet on large backbones that
# ImageNet has taught; its 300 epochs at four times the rate are for CSPNeXt.
max_epochs = 100
stage2_num_epochs = 10
base_lr = 1e-3
train_cfg = dict(
    type='EpochBasedTrainLoop',
    max_epochs=max_epochs,
    val_interval=10,
    dynamic_intervals=[(max_epochs - stage2_num_epochs, 1)],
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.999), weight_decay=0.05),
    # The rate falls from the heads to the stem, block by block: it is high for weights that
    # ImageNet has taught.
    constructor='OverLoCKLayerDecayConstructor',
    paramwise_cfg=dict(
        decay_rate=0.95,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        # The levels of the head share their convolutions.
        bypass_duplicate=True,
    ),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1001),
    dict(
        type='CosineAnnealingLR',
        eta_min=base_lr / 20,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]

# The rate above is for 128 images a step (8 GPUs x 16); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=128)
