# Mask2Former on OverLoCK-T for the 150 classes of ADE20K, with the head of mmseg's own recipe.
# A child changes `backbone.arch` and the head's `in_channels` together.
_base_ = ['./mask2former_head.py', '../variants.py']

num_classes = 150

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        # ImageNet's, which the backbone was trained with.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='OverLoCK',
        arch='t',
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN'),
    ),
    decode_head=dict(
        **_base_.mask2former_head,
        in_channels=_base_.variants.t.pyramid_channels,
        num_classes=num_classes,
        align_corners=False,
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=2.0,
            reduction='mean',
            # The last one is "no object".
            class_weight=[1.0] * num_classes + [0.1],
        ),
        train_cfg=_base_.mask2former_train_cfg,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
