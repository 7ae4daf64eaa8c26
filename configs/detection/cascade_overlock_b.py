_base_ = './cascade_overlock_t.py'

model = dict(
    backbone=dict(
        arch='b',
        drop_path_rate=0.6,
        init_cfg=dict(checkpoint=_base_.variants.b.weights),
    ),
    neck=dict(in_channels=_base_.variants.b.pyramid_channels),
)
