# Mask R-CNN on OverLoCK-T, as published.
# A child changes `backbone.arch` and `neck.in_channels` together.
_base_ = './two_stage_overlock.py'

# The published runs never called `init_weights()`, which mmengine does: neck and heads kept what
# their constructors drew. docs/recipes.md compares the two.
model = dict(
    neck=dict(init_cfg=None),
    rpn_head=dict(init_cfg=None),
    roi_head=dict(
        # None would select mmdet's defaults.
        bbox_head=dict(init_cfg=[]),
        mask_head=dict(type='overlock_mm.models.mask_head.ConstructorInitMaskHead'),
    ),
    # mmdet's default, which the published configs left: anchors that cross the border are used.
    train_cfg=dict(rpn=dict(allowed_border=-1)),
)
