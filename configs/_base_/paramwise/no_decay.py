# No weight decay for norms, biases, LayerScale and position biases, which is not what the published
# runs did: each task decayed some of them (published_dense.py, ../schedules/adamw_300e.py). A child
# takes it up with
#
#     _base_ = ['../segmentation/upernet_overlock_t.py', '../_base_/paramwise/no_decay.py']
#     optim_wrapper = dict(paramwise_cfg={{_base_.paramwise_cfg}})
paramwise_cfg = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
    custom_keys={
        'grn.': dict(decay_mult=0.0),
        # LayerScale, by its three names.
        'layer_scale': dict(decay_mult=0.0),
        'context_scale': dict(decay_mult=0.0),
        'prior_scale': dict(decay_mult=0.0),
        # Relative position biases of ContMix.
        'rpb_': dict(decay_mult=0.0),
    },
)
