# What a classifier needs besides the shared runtime.
_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
custom_imports = dict(
    imports=[
        'overlock_mm',
        'overlock_mm.engine.checkpoint_hook',
        'overlock_mm.models.classifier',
    ],
    allow_failed_imports=False,
)

default_hooks = dict(
    # The averaged weights are the ones that are validated.
    checkpoint=dict(save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook', enable=False),
)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])

# The published runs kept an average with decay 0.9999, batch-norm statistics included, from the
# first step on, beside the raw weights. Which of the two the released files hold is not said.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExponentialMovingAverage',
        momentum=1e-4,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    )
]

tta_model = dict(type='AverageClsScoreTTA')
