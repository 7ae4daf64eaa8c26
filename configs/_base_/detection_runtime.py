# What a detector needs besides the shared runtime.
_base_ = './default_runtime.py'

default_scope = 'mmdet'
custom_imports = dict(
    imports=[
        'overlock_mm',
        'overlock_mm.engine.checkpoint_hook',
        'overlock_mm.engine.instance_tta',
    ],
    allow_failed_imports=False,
)

default_hooks = dict(
    checkpoint=dict(save_best='coco/bbox_mAP'),
    visualization=dict(type='DetVisualizationHook'),
)
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

# mmdet's own DetTTAModel refuses predictions that carry masks.
tta_model = dict(type='InstanceTTAModel', nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
