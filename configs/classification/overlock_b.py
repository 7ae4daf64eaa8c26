_base_ = './overlock_t.py'

model = dict(
    backbone=dict(arch='b', drop_path_rate=0.5),
    head=dict(in_channels=_base_.variants.b.classifier_channels),
)

# Crop ratio 0.975.
test_pipeline, tta_pipeline = _base_.test_pipeline, _base_.tta_pipeline
test_pipeline[1].scale = tta_pipeline[1].transforms[0][0].scale = 229
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
