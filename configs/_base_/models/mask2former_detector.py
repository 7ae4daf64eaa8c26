# Mask2Former on OverLoCK-T for the 80 classes of COCO, with the head of mmdet's own recipe.
# A child changes `backbone.arch` and the head's `in_channels` together.
_base_ = ['./mask2former_head.py', '../variants.py']

num_classes = 80

model = dict(
    type='Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        # ImageNet's, which the backbone was trained with.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        batch_augments=[
            dict(
                type='BatchFixedSizePad',
                # Of the crops.
                size=(1024, 1024),
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=False,
            )
        ],
    ),
    backbone=dict(
        type='OverLoCK',
        arch='t',
        out_indices=(0, 1, 2, 3),
        # Two images per GPU are too few for statistics.
        norm_cfg=dict(type='SyncBN'),
        # As in the published detectors.
        context_residual=True,
    ),
    panoptic_head=dict(
        **_base_.mask2former_head,
        in_channels=_base_.variants.t.pyramid_channels,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        loss_cls=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=2.0,
            reduction='mean',
            # The last one is "no object".
            class_weight=[1.0] * num_classes + [0.1],
        ),
    ),
    panoptic_fusion_head=dict(
        type='MaskFormerFusionHead',
        num_things_classes=num_classes,
        num_stuff_classes=0,
        loss_panoptic=None,
        init_cfg=None,
    ),
    train_cfg=_base_.mask2former_train_cfg,
    test_cfg=dict(
        panoptic_on=False,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
