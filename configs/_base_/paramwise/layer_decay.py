# Learning rates that fall from the heads to the stem, block by block, and no weight decay for
# norms, biases and scales. Not part of the published recipes. A child takes it up with
#
#     _base_ = ['../detection/cascade_overlock_t.py', '../_base_/paramwise/layer_decay.py']
#     optim_wrapper = dict(
#         constructor={{_base_.constructor}}, paramwise_cfg={{_base_.paramwise_cfg}}
#     )
_base_ = './no_decay.py'

constructor = 'OverLoCKLayerDecayConstructor'
# Per block: T has 30 of them, so the stem learns at a fifth of the heads' rate.
paramwise_cfg = dict(decay_rate=0.95)
