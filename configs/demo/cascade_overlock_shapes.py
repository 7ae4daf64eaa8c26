# The S detector cut down until two CPU cores train it in minutes on the drawn data set
# (overlock_mm.datasets.shapes): everything is as in the parent but smaller.
_base_ = ['../detection/cascade_overlock_s.py', '../_base_/shapes_variant.py']

from overlock_mm.datasets.shapes import METAINFO as metainfo  # noqa: E402

data_root = 'data/shapes/coco/'
image_scale = (160, 128)
num_classes = 5
neck_channels = 64
head_channels = 128

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            **_base_.shapes_variant.arch,
            kernel_sizes=(17, 15, 13, 7),
        ),
        # One process, so its own statistics are all there are.
        norm_cfg=dict(type='BN'),
        # A network this small underfits; it needs no regularisation.
        drop_path_rate=0.0,
        # No weights are published for it.
        init_cfg=None,
    ),
    neck=dict(in_channels=_base_.shapes_variant.pyramid_channels, out_channels=neck_channels),
    rpn_head=dict(
        in_channels=neck_channels,
        feat_channels=neck_channels,
        # Anchors from 16 pixels on: the shapes are 20 to 100 pixels wide.
        anchor_generator=dict(scales=[4]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=neck_channels),
        bbox_head=[
            dict(
                head,
                in_channels=neck_channels,
                conv_out_channels=head_channels,
                fc_out_channels=head_channels,
                num_shared_convs=1,
                num_classes=num_classes,
                norm_cfg=dict(type='BN', requires_grad=True),
            )
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_roi_extractor=dict(out_channels=neck_channels),
        mask_head=dict(
            num_convs=1,
            in_channels=neck_channels,
            conv_out_channels=head_channels,
            num_classes=num_classes,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=[
            dict(stage, sampler=dict(stage.sampler, num=48))
            for stage in _base_.model.train_cfg.rcnn
        ],
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys={{_base_.meta_keys}}),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=image_scale, keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]

# Small batches, as what counts so early is the number of steps. Without workers: both cores
# are busy with the network.
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=3)
optim_wrapper = dict(
    # Ten times the parent's rate: from random weights, in a hundredth of the steps.
    optimizer=dict(lr=1e-3, fused=True),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=2)

# Runs differ only by rounding.
randomness = dict(seed=0)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
    visualization=dict(score_thr=0.5),
)
# At their own size, labels would cover the objects.
visualizer = dict(type='EnlargingDetVisualizer', factor=3)
custom_imports = dict(
    imports=[
        'overlock_mm',
        'overlock_mm.engine.checkpoint_hook',
        'overlock_mm.visualization.det_visualizer',
        'overlock_mm.engine.instance_tta',
    ],
    allow_failed_imports=False,
)
