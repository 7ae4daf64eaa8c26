# What a classifier needs besides the shared runtime.
_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
custom_imports = dict(
    imports=[
        'overlock_mm',
        'overlock_mm.utils.checkpoint_hook',
        'overlock_mm.models.classifier',
    ],
    allow_failed_imports=False,
)

default_hooks = dict(visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])

# The published weights are an average with decay 0.9999, batch-norm statistics included.
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
