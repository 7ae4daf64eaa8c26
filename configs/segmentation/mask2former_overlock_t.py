# A recipe of ours, without published numbers: Mask2Former's own schedule for ADE20K.
_base_ = [
    '../_base_/models/mask2former_segmentor.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/mask2former_160k.py',
    '../_base_/segmentation_runtime.py',
]

# The head's matching costs and transformer layers are those of mmdet.
custom_imports = dict(
    imports=['overlock_mm', 'overlock_mm.engine.checkpoint_hook', 'mmdet.models'],
    allow_failed_imports=False,
)

model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.variants.t.weights),
    )
)
