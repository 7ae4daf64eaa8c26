# Weight decay as in the published runs of detection and segmentation, part of both schedules. Their
# list said "norm": every parameter whose official name contains it is not decayed. Those are the
# LayerNorms of the Focus-Net's blocks and of the outputs; everything else is decayed, batch norms,
# the LayerNorms of Base-Net and Overview-Net, biases, LayerScale, GRN and position biases too.
#
# A plain 'norm' would match far more of our names. no_decay.py has what the list may have meant.
optim_wrapper = dict(
    # As mmengine's own, but of the parameters with equal settings it makes one group.
    constructor='GroupedOptimWrapperConstructor',
    paramwise_cfg=dict(
        custom_keys={
            # LayerNorms of the Focus-Net's blocks, and of outputs 1 and 2.
            'norm1.': dict(decay_mult=0.0),
            'norm2.': dict(decay_mult=0.0),
            # LayerNorms of the other outputs, and of detection's overview residual.
            'backbone.norm0.': dict(decay_mult=0.0),
            'backbone.norm3.': dict(decay_mult=0.0),
            'overview_residual.norm.': dict(decay_mult=0.0),
        }
    ),
)
