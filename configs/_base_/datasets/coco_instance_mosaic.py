# RTMDet's pipelines: mosaics and MixUp of cached images at 640 x 640, and for the last epochs
# (`train_pipeline_stage2`) single images.
_base_ = './coco_instance_1x.py'

image_size = (640, 640)
padding = dict(type='Pad', size=image_size, pad_val=dict(img=(114, 114, 114)))
loading = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    # Polygons are cheaper to move about than bitmaps.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
]
crop = dict(type='RandomCrop', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True)
too_small = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1))

train_pipeline = [
    *loading,
    dict(type='CachedMosaic', img_scale=image_size, pad_val=114.0),
    dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.1, 2.0), keep_ratio=True),
    crop,
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    padding,
    dict(
        type='CachedMixUp',
        img_scale=image_size,
        ratio_range=(1.0, 1.0),
        max_cached_images=20,
        pad_val=(114, 114, 114),
    ),
    too_small,
    dict(type='PackDetInputs'),
]
train_pipeline_stage2 = [
    *loading,
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    crop,
    too_small,
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    padding,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    padding,
    # After Resize: predictions are compared with the truth at the original size.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys={{_base_.meta_keys}}),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    pin_memory=True,
    # All images have one size.
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=image_size, keep_ratio=True)],
            # Before the padding, which a mirror image would have on its other side.
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [padding],
            [dict(type='PackDetInputs', meta_keys=(*_base_.meta_keys, 'flip_direction'))],
        ],
    ),
]
