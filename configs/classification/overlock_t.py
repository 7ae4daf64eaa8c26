_base_ = [
    '../_base_/models/overlock_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/classification_runtime.py',
]

model = dict(backbone=dict(drop_path_rate=0.15))
