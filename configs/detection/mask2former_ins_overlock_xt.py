_base_ = './mask2former_ins_overlock_t.py'

model = dict(
    backbone=dict(
        arch='xt',
        # Not published: the rate of its ImageNet training.
        drop_path_rate=0.1,
        init_cfg=dict(
            checkpoint=(
                'https://github.com/LMMMEng/OverLoCK/releases/download/v1/overlock_xt_in1k_224.pth'
            ),
        ),
    ),
    panoptic_head=dict(in_channels=[56, 112, 340, 420]),
)
