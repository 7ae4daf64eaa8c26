# 160 000 iterations of AdamW, as published for UperNet on ADE20K.
_base_ = '../paramwise/published_dense.py'

max_iters = 160000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)

# The decay runs from the first iteration on, beneath the warm-up: so it was in the 1.x
# generation, with which the published runs were made.
param_scheduler = [
    # The full rate is reached after 1500 iterations; `end` is the first one beyond the warm-up.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters + 1),
]

# The rate above is for 16 images a step (8 GPUs x 2); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=16)
