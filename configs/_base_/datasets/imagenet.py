# ImageNet-1K at 224 x 224 with the augmentation that timm gives the published runs.
# The tools apply `--cfg-options data_root=...` to every path below that starts with data_root.
data_root = 'data/imagenet/'

# Images are BGR until the preprocessor converts them.
bgr_mean = [103.53, 116.28, 123.675]

# The published runs decoded with PIL and took no notice of an orientation in the EXIF data. For RGB
# JPEG the pixels are OpenCV's. For photographs of your own, color_type='color' turns them upright.
load_image = dict(
    type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'
)

# rand-m9-mstd0.5-inc1: mmpretrain's policies 'timm_increasing', each twice, as timm draws the
# interpolation of each operation that has one.
interpolations = ('bilinear', 'bicubic')
policies = [
    dict(type='AutoContrast'),
    dict(type='Equalize'),
    dict(type='Invert'),
    dict(type='Posterize', magnitude_range=(4, 0)),
    dict(type='Solarize', magnitude_range=(256, 0)),
    dict(type='SolarizeAdd', magnitude_range=(0, 110)),
    dict(type='ColorTransform', magnitude_range=(0, 0.9)),
    dict(type='Contrast', magnitude_range=(0, 0.9)),
    dict(type='Brightness', magnitude_range=(0, 0.9)),
    dict(type='Sharpness', magnitude_range=(0, 0.9)),
] * len(interpolations) + [
    dict(policy, interpolation=interpolation)
    for policy in (
        dict(type='Rotate', magnitude_range=(0, 30)),
        dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
        dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
        dict(type='Translate', magnitude_range=(0, 0.45), direction='horizontal'),
        dict(type='Translate', magnitude_range=(0, 0.45), direction='vertical'),
    )
    for interpolation in interpolations
]

# Random erasing is not here: it acts on the mixed batch (../models/overlock_classifier.py).
train_pipeline = [
    load_image,
    # timm's interpolation "random".
    dict(
        type='RandomChoice',
        transforms=[
            [
                dict(
                    type='RandomResizedCrop',
                    scale=224,
                    crop_ratio_range=(0.08, 1.0),
                    backend='pillow',
                    interpolation=interpolation,
                )
            ]
            for interpolation in interpolations
        ],
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    # The published command also names a colour jitter of 0.4, which timm leaves out where
    # RandAugment is used.
    dict(
        type='RandAugment',
        policies=policies,
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in bgr_mean]),
    ),
    dict(type='PackInputs'),
]
# The shorter side becomes 224 / crop ratio, rounded down: 235 for 0.95. Other variants differ.
test_pipeline = [
    load_image,
    dict(type='ResizeEdge', scale=235, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    # The incomplete last batch: 625 steps for an epoch of 8 processes.
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ImageNet',
        data_root=data_root,
        split='train',
        data_prefix='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet',
        data_root=data_root,
        split='val',
        data_prefix='val',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

# tools/test.py --tta: the image and its mirror image.
tta_pipeline = [
    load_image,
    dict(
        type='TestTimeAug',
        transforms=[
            [test_pipeline[1]],
            [dict(type='CenterCrop', crop_size=224)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
