_base_ = './mask2former_overlock_t.py'

model = dict(
    backbone=dict(
        arch='xt',
        # Not published: the rate of its ImageNet training.
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint=_base_.variants.xt.weights),
    ),
    decode_head=dict(in_channels=_base_.variants.xt.pyramid_channels),
)
