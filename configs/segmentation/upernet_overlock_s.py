_base_ = './upernet_overlock_t.py'

model = dict(
    backbone=dict(
        arch='s',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint=_base_.variants.s.weights),
    ),
    decode_head=dict(in_channels=_base_.variants.s.pyramid_channels),
    auxiliary_head=dict(in_channels=_base_.variants.s.pyramid_channels[2]),
)
