_base_ = './mask_rcnn_overlock_t_1x.py'

model = dict(
    backbone=dict(
        arch='s',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint=_base_.variants.s.weights),
    ),
    neck=dict(in_channels=_base_.variants.s.pyramid_channels),
)
