_base_ = './mask_rcnn_overlock_t_1x.py'

model = dict(
    backbone=dict(
        arch='b',
        drop_path_rate=0.6,
        init_cfg=dict(
            checkpoint=(
                'https://github.com/LMMMEng/OverLoCK/releases/download/v1/overlock_b_in1k_224.pth'
            ),
        ),
    ),
    neck=dict(in_channels=[80, 160, 528, 720]),
)
