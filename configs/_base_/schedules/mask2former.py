# AdamW as in Mask2Former's own recipes: a tenth of the rate for the backbone, no weight decay for
# embeddings and for the norms of the head.
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type='OptimWrapper',
    # As mmengine's own, but of the parameters with equal settings it makes one group.
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0),
            query_embed=embedding,
            query_feat=embedding,
            level_embed=embedding,
        ),
        norm_decay_mult=0.0,
    ),
)

# The rate above is for 16 images a step (8 GPUs x 2); --auto-scale-lr fits it to other sizes.
auto_scale_lr = dict(enable=False, base_batch_size=16)
