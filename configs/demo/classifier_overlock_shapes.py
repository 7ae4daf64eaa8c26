# The S classifier cut down until two CPU cores train it in minutes on the drawn data set
# (overlock_mm.datasets.shapes): everything is as in the parent but smaller.
_base_ = ['../classification/overlock_s.py', '../_base_/shapes_variant.py']

from overlock_mm.datasets.shapes import METAINFO as metainfo  # noqa: E402

data_root = 'data/shapes/classification/'
num_classes = len(metainfo['classes'])
# One process, so its own statistics are all there are.
norm_cfg = dict(type='BN')

model = dict(
    data_preprocessor=dict(num_classes=num_classes),
    backbone=dict(
        arch=dict(
            _delete_=True,
            **_base_.shapes_variant.arch,
            # The maps are small, and large windows cost most of the time on a CPU.
            kernel_sizes=(7, 7, 7, 7),
        ),
        norm_cfg=norm_cfg,
        # A network this small underfits; it needs no regularisation.
        drop_path_rate=0.0,
    ),
    head=dict(
        num_classes=num_classes,
        in_channels=_base_.shapes_variant.classifier_channels,
        hidden_channels=256,
        norm_cfg=norm_cfg,
    ),
    # Mixed pictures take longer to learn from than there is time.
    train_cfg=None,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
# At 96 x 96, the size of the data.
test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
test_pipeline[1].scale = tta_pipeline[1].transforms[0][0].scale = 96
test_pipeline[2].crop_size = tta_pipeline[1].transforms[1][0].crop_size = 96

# Without workers: both cores are busy with the network.
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    # The data set may have fewer images than a batch.
    drop_last=False,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='Accuracy', topk=(1,)),
    dict(type='AuxiliaryAccuracy', topk=(1,)),
]
test_evaluator = val_evaluator

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    type='OptimWrapper',
    # From random weights, in hundreds of steps.
    optimizer=dict(lr=2e-3, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=16)

custom_imports = dict(
    imports=[
        'overlock_mm',
        'overlock_mm.engine.checkpoint_hook',
        'overlock_mm.models.classifier',
        'overlock_mm.engine.auxiliary_accuracy',
    ],
    allow_failed_imports=False,
)
# An average over twenty steps, as there are only hundreds.
custom_hooks = [dict(_base_.custom_hooks[0], momentum=0.05)]
# Runs differ only by rounding.
randomness = dict(seed=0)

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1),
    # At their own size, the text would cover the shapes.
    visualization=dict(rescale_factor=4),
)
