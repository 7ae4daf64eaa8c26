# The S segmentor cut down until two CPU cores train it in minutes on the drawn data set
# (overlock_mm.datasets.shapes): everything is as in the parent but smaller.
_base_ = ['../segmentation/upernet_overlock_s.py', '../_base_/shapes_variant.py']

from overlock_mm.datasets.shapes import SEMANTIC_METAINFO as metainfo  # noqa: E402

data_root = 'data/shapes/ade/'
image_size = (128, 160)
num_classes = len(metainfo['classes'])
# One process, so its own statistics are all there are.
norm_cfg = dict(type='BN', requires_grad=True)
# Four fifths of the pixels are background. With equal weights it takes hundreds of steps until the
# network tells the shapes apart.
loss_decode = dict(
    class_weight=[0.3] + [1.0] * (num_classes - 1),
    # mmengine takes the mean. mmseg 1.2.2 would look for the weight of the ignored pixels' class.
    reduction='none',
)

model = dict(
    data_preprocessor=dict(size=image_size),
    backbone=dict(
        arch=dict(
            _delete_=True,
            **_base_.shapes_variant.arch,
            # The maps are small, and large windows cost most of the time on a CPU.
            kernel_sizes=(7, 7, 7, 7),
        ),
        norm_cfg=dict(type='BN'),
        # A network this small underfits; it needs no regularisation.
        drop_path_rate=0.0,
        # No weights are published for it.
        init_cfg=None,
    ),
    decode_head=dict(
        in_channels=_base_.shapes_variant.pyramid_channels,
        channels=64,
        dropout_ratio=0.0,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=loss_decode,
    ),
    auxiliary_head=dict(
        in_channels=_base_.shapes_variant.pyramid_channels[2],
        channels=64,
        dropout_ratio=0.0,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=loss_decode,
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
test_pipeline[1].scale = image_size[::-1]
# Two scales with their mirror images.
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(160 * ratio), int(128 * ratio)), keep_ratio=True)
    for ratio in (1.0, 1.25)
]

# ADE20KDataset takes no classes but its own; this is the class behind it.
drawn = dict(
    type='BaseSegDataset',
    data_root=data_root,
    img_suffix='.png',
    reduce_zero_label=True,
    metainfo=metainfo,
)
# Without workers: both cores are busy with the network.
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**drawn, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(**drawn, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
optim_wrapper = dict(
    # From random weights, in hundreds of steps.
    optimizer=dict(lr=3e-3, fused=True),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=4)

# Runs differ only by rounding.
randomness = dict(seed=0)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=max_iters, max_keep_ckpts=1),
)
# At their own size, labels would cover the shapes.
visualizer = dict(type='EnlargingSegVisualizer', factor=3)
custom_imports = dict(
    imports=[
        'overlock_mm',
        'overlock_mm.engine.checkpoint_hook',
        'overlock_mm.visualization.seg_visualizer',
    ],
    allow_failed_imports=False,
)
