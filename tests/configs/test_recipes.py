"""The configs hold the published recipes, value by value.

The tables are typed from the paper's supplement and the authors' release, not from the configs.
What values do together is tested beside this file: the weight decay of every parameter, the
learning rate of every step.
"""

import pytest
from mmengine.registry import HOOKS

VARIANTS = {
    # Drop path, widths of the pyramid, width of the overview, ImageNet crop ratio.
    'xt': dict(
        imagenet=0.10, coco=0.10, ade=0.10, widths=[56, 112, 340, 420], overview=336, crop=0.925
    ),
    't': dict(
        imagenet=0.15, coco=0.2, ade=0.2, widths=[64, 128, 384, 640], overview=512, crop=0.95
    ),
    's': dict(
        imagenet=0.40, coco=0.4, ade=0.3, widths=[64, 128, 448, 640], overview=512, crop=0.95
    ),
    'b': dict(
        imagenet=0.50, coco=0.6, ade=0.5, widths=[80, 160, 528, 720], overview=576, crop=0.975
    ),
}
# Parameters of the classifier in the reparameterized form, and in training form with its
# auxiliary head.
PARAMETERS = {
    'xt': (16_453_712, 17_307_272),
    't': (33_467_040, 34_990_472),
    's': (56_156_452, 58_309_772),
    'b': (94_942_528, 98_012_968),
}
RECIPES = {
    # mmdet's default for the border: anchors that cross it are used.
    'mask_rcnn_1x': dict(lr=2e-4, weight_decay=0.05, batch=16, epochs=12, allowed_border=-1),
    'mask_rcnn_3x': dict(lr=1e-4, weight_decay=0.05, batch=16, epochs=36, allowed_border=-1),
    # That of its peers; the rate is Mask R-CNN's of the same length.
    'cascade': dict(lr=1e-4, weight_decay=0.05, batch=16, epochs=36, allowed_border=0),
}
DETECTORS = [
    (f'{model}_overlock_{variant}{length}', recipe, variant)
    for variant in VARIANTS
    for model, length, recipe in (
        ('cascade', '', 'cascade'),
        ('mask_rcnn', '_1x', 'mask_rcnn_1x'),
        ('mask_rcnn', '_3x', 'mask_rcnn_3x'),
    )
]


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def steps_of(pipeline, kind):
    return [step for step in pipeline if step['type'] == kind]


def the_step(pipeline, kind):
    (step,) = steps_of(pipeline, kind)
    return step


def check_optimizer(cfg, lr, weight_decay, batch, per_gpu):
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', lr, weight_decay)
    assert tuple(optimizer.betas) == (0.9, 0.999)
    assert optimizer.get('eps', 1e-8) == 1e-8
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=batch)
    assert cfg.train_dataloader.batch_size == per_gpu


def best_of(cfg):
    """The metric whose best checkpoint is kept, by the name that mmengine gives its file."""
    hook = HOOKS.build(dict(cfg.default_hooks.checkpoint))
    assert hook.rules == ['greater']
    (metric,) = hook.key_indicators
    return metric


@pytest.mark.parametrize(('name', 'recipe', 'variant'), DETECTORS)
def test_detection(name, recipe, variant, load):
    cfg = load(f'detection/{name}.py')
    published, numbers = RECIPES[recipe], VARIANTS[variant]
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate) == (variant, numbers['coco'])
    assert backbone.context_residual
    assert backbone.norm_cfg.type == 'SyncBN'
    assert cfg.model.neck.in_channels == numbers['widths']
    check_optimizer(cfg, published['lr'], published['weight_decay'], published['batch'], 2)
    assert cfg.train_cfg.max_epochs == published['epochs']
    assert cfg.model.train_cfg.rpn.allowed_border == published['allowed_border']
    # The authors "may meet NaN" with less.
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert (cfg.train_cfg.val_interval, best_of(cfg)) == (1, 'coco/bbox_mAP')
    resize = the_step(cfg.test_pipeline, 'Resize')
    assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    assert the_step(cfg.train_pipeline, 'RandomFlip').prob == 0.5
    if recipe == 'mask_rcnn_1x':
        assert the_step(cfg.train_pipeline, 'Resize').scale == (1333, 800)
    else:
        plain, cropped = the_step(cfg.train_pipeline, 'RandomChoice').transforms
        scales = [(side, 1333) for side in range(480, 801, 32)]
        assert the_step(plain, 'RandomChoiceResize').scales == scales
        first, second = steps_of(cropped, 'RandomChoiceResize')
        assert first.scales == [(400, 1333), (500, 1333), (600, 1333)]
        crop = the_step(cropped, 'RandomCrop')
        assert (crop.crop_type, crop.crop_size) == ('absolute_range', (384, 600))
        assert second.scales == scales
    if recipe == 'cascade':
        check_cascade_heads(cfg.model.roi_head.bbox_head)
    else:
        head = cfg.model.roi_head.bbox_head
        assert (head.type, head.loss_bbox.type) == ('Shared2FCBBoxHead', 'L1Loss')


def check_cascade_heads(heads):
    assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]
    for head in heads:
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert (head.loss_bbox.type, head.loss_bbox.loss_weight) == ('GIoULoss', 10.0)
        assert head.reg_decoded_bbox


@pytest.mark.parametrize('variant', VARIANTS)
def test_segmentation(variant, load):
    cfg = load(f'segmentation/upernet_overlock_{variant}.py')
    numbers = VARIANTS[variant]
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.drop_path_rate) == (variant, numbers['ade'])
    assert not backbone.get('context_residual', False)
    assert backbone.norm_cfg.type == 'SyncBN'
    main, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (main.type, main.in_channels) == ('UPerHead', numbers['widths'])
    assert (main.num_classes, main.loss_decode.loss_weight) == (150, 1.0)
    # On output 2.
    assert (auxiliary.type, auxiliary.in_index) == ('FCNHead', 2)
    assert auxiliary.in_channels == numbers['widths'][2]
    assert (auxiliary.num_classes, auxiliary.loss_decode.loss_weight) == (150, 0.4)
    check_optimizer(cfg, 6e-5, 0.01, batch=16, per_gpu=2)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (160_000, 8000)
    assert best_of(cfg) == 'mIoU'
    assert the_step(cfg.train_pipeline, 'RandomCrop').crop_size == (512, 512)
    resize = the_step(cfg.train_pipeline, 'RandomResize')
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    kinds = [step.type for step in cfg.test_pipeline]
    assert (
        kinds.index('ResizeToMultiple')
        == kinds.index('Resize') + 1
        < kinds.index('LoadAnnotations')
    )
    assert the_step(cfg.test_pipeline, 'Resize').scale == (2048, 512)
    align = the_step(cfg.test_pipeline, 'ResizeToMultiple')
    assert (align.size_divisor, align.interpolation) == (32, 'bicubic')
    assert cfg.model.test_cfg.mode == 'whole'


@pytest.mark.parametrize('variant', VARIANTS)
def test_classification(variant, load, build):
    cfg = load(f'classification/overlock_{variant}.py')
    numbers = VARIANTS[variant]
    backbone, head = cfg.model.backbone, cfg.model.head
    assert (backbone.arch, backbone.drop_path_rate) == (variant, numbers['imagenet'])
    assert head.in_channels == [numbers['widths'][3], numbers['overview']]
    assert (head.num_classes, head.auxiliary_loss_weight) == (1000, 0.4)
    assert (head.loss.type, head.loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    size = 2048
    check_optimizer(cfg, 1e-3 * size / 1024, 0.05, size, per_gpu=256)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
    # 300 and ten of cooldown.
    assert cfg.train_cfg.max_epochs == 310
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.get('loss_scale', 'dynamic') == 'dynamic'
    assert best_of(cfg) == 'accuracy/top1'
    assert cfg.train_dataloader.drop_last
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.ema_type) == ('EMAHook', 'ExponentialMovingAverage')
    assert 1 - ema.momentum == pytest.approx(0.9999, abs=1e-12)
    batch = cfg.model.train_cfg.augments
    assert batch.type.endswith('.MixThenErase')
    assert batch.erase_prob == 0.25
    mixes = {mix.type: mix.alpha for mix in batch.augments}
    assert mixes == {'Mixup': 0.8, 'CutMix': 1.0}

    augment = the_step(cfg.train_pipeline, 'RandAugment')
    assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (2, 9, 0.5)
    choices = the_step(cfg.train_pipeline, 'RandomChoice').transforms
    assert [choice[0].interpolation for choice in choices] == ['bilinear', 'bicubic']
    assert {choice[0].scale for choice in choices} == {224}
    # 0.4 in the published command; timm, which ran it, leaves it out beside RandAugment.
    assert not steps_of(cfg.train_pipeline, 'ColorJitter')
    # On the mixed batch, not on single images.
    assert not steps_of(cfg.train_pipeline, 'RandomErasing')
    for pipeline in (cfg.train_pipeline, cfg.test_pipeline, cfg.tta_pipeline):
        loading = the_step(pipeline, 'LoadImageFromFile')
        assert (loading.imdecode_backend, loading.color_type) == (
            'pillow',
            'color_ignore_orientation',
        )

    resize = the_step(cfg.test_pipeline, 'ResizeEdge')
    assert (resize.edge, resize.interpolation) == ('short', 'bicubic')
    assert resize.scale == int(224 / numbers['crop'])
    assert the_step(cfg.test_pipeline, 'CenterCrop').crop_size == 224
    assert cfg.tta_pipeline[1].transforms[0] == [resize]

    model = build(cfg)
    training = count_parameters(model)
    model.backbone.reparameterize()
    model.head.drop_auxiliary()
    assert (count_parameters(model), training) == PARAMETERS[variant]
    deploy = build(load(f'classification/overlock_{variant}_deploy.py'))
    assert count_parameters(deploy) < count_parameters(model)


def test_preprocessing_is_that_of_imagenet(load):
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    for name, rgb in (
        ('detection/cascade_overlock_t', 'bgr_to_rgb'),
        ('detection/mask_rcnn_overlock_t_1x', 'bgr_to_rgb'),
        ('segmentation/upernet_overlock_t', 'bgr_to_rgb'),
        ('classification/overlock_t', 'to_rgb'),
    ):
        preprocessor = load(f'{name}.py').model.data_preprocessor
        assert (preprocessor.mean, preprocessor.std) == (mean, std)
        assert preprocessor[rgb] is True
