# OverLoCK-T with its two classifiers, for the 1000 classes of ImageNet-1K.
# A child changes `backbone.arch` and `head.in_channels` together.
_base_ = '../variants.py'

# The published runs synchronised batch norms, large as their batches are.
norm_cfg = dict(type='SyncBN')

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='OverLoCK',
        arch='t',
        # The last output for the main classifier, the overview for the auxiliary one.
        out_indices=(3, 4),
        output_norm=False,
        norm_cfg=norm_cfg,
    ),
    head=dict(
        type='OverLoCKClsHead',
        num_classes=1000,
        in_channels=_base_.variants.t.classifier_channels,
        auxiliary_loss_weight=0.4,
        norm_cfg=norm_cfg,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for each batch, with equal chances; then timm's erasing, mode "pixel".
    train_cfg=dict(
        augments=dict(
            type='overlock_mm.models.batch_augments.MixThenErase',
            augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
            erase_prob=0.25,
        )
    ),
)
