# 50 epochs of COCO with 16 images a step, counted in iterations, as Mask2Former on COCO.
_base_ = './mask2former.py'

max_iters = 368750
interval = 5000
train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=interval,
    # After the last full interval only the end of the run is validated.
    dynamic_intervals=[(max_iters // interval * interval + 1, max_iters)],
)
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[327778, 355092],
        gamma=0.1,
    ),
]
