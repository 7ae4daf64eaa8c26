# A recipe of ours, without published numbers: Mask2Former's own schedule for instances on COCO.
_base_ = [
    '../_base_/models/mask2former_detector.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/detection_runtime.py',
    '../_base_/schedules/mask2former_50e.py',
]

model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.variants.t.weights),
    )
)

# Counted in iterations, as the schedule.
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=_base_.interval, save_best='coco/segm_mAP'),
)
log_processor = dict(by_epoch=False)
