_base_ = './overlock_t.py'

model = dict(
    backbone=dict(arch='s', drop_path_rate=0.4),
    head=dict(in_channels=_base_.variants.s.classifier_channels),
)
