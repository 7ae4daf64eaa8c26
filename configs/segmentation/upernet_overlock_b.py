_base_ = './upernet_overlock_t.py'

model = dict(
    backbone=dict(
        arch='b',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint=_base_.variants.b.weights),
    ),
    decode_head=dict(in_channels=_base_.variants.b.pyramid_channels),
    auxiliary_head=dict(in_channels=_base_.variants.b.pyramid_channels[2]),
)
