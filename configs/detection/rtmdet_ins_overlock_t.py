# A recipe of ours, without published numbers: that of mmdet for RTMDet on large backbones.
_base_ = [
    '../_base_/models/rtmdet_ins_overlock.py',
    '../_base_/datasets/coco_instance_mosaic.py',
    '../_base_/schedules/rtmdet_100e.py',
    '../_base_/detection_runtime.py',
]

model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.variants.t.weights),
    )
)

custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=_base_.max_epochs - _base_.stage2_num_epochs,
        switch_pipeline=_base_.train_pipeline_stage2,
    ),
]
