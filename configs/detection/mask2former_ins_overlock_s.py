_base_ = './mask2former_ins_overlock_t.py'

model = dict(
    backbone=dict(
        arch='s',
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint=(
                'https://github.com/LMMMEng/OverLoCK/releases/download/v1/overlock_s_in1k_224.pth'
            ),
        ),
    ),
    panoptic_head=dict(in_channels=[64, 128, 448, 640]),
)
