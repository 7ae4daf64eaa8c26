_base_ = [
    '../_base_/models/mask_rcnn_overlock.py',
    '../_base_/datasets/coco_instance_3x.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.variants.t.weights),
    )
)
