"""Heads of mmdet and mmseg on this backbone: the config of each, as data.

``python -m overlock_mm.heads`` prints ``docs/heads.md``, and
``python -m overlock_mm.heads RetinaNet b`` prints the config of that head for that variant.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from overlock_mm.models.arch import ARCHS, OverLoCKArch

_WEIGHTS = 'https://github.com/LMMMEng/OverLoCK/releases/download/v1/overlock_{}_in1k_224.pth'
_CONFIG = Template("""\
_base_ = '$base'

custom_imports = dict(imports=['overlock_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='OverLoCK',
        arch=$arch,
        out_indices=$outputs,
        init_cfg=$init_cfg,
    ),
$settings
)
""")
_OPTIMIZER = Template("""\
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=$rate, weight_decay=$decay),
    clip_grad=$clip_grad,
)
""")
#: Statistics the backbone was trained with, for bases that have others.
_IMAGENET = """\
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
"""
#: The same, with the type of the preprocessor.
_TYPED_IMAGENET = _IMAGENET.replace('(', "(\n        type='DetDataPreprocessor',", 1)


@dataclass(frozen=True)
class Head:
    """One detector or segmentor with this backbone.

    Attributes:
        name: Its name in its paper.
        base: Config to inherit, ``LIBRARY::PATH``.
        settings: What changes in ``model`` beside the backbone. ``$widths`` are those of the
            outputs, ``$w0`` is the first of them.
        outputs: ``out_indices`` of the backbone: those that neck or head read, and no others.
        rate: Learning rate and weight decay of AdamW; None keeps the optimizer of the base.
        clip: Norm to which gradients are clipped.
        note: Remarks, in whole sentences.
    """

    name: str
    base: str
    settings: str
    outputs: tuple[int, ...] = (0, 1, 2, 3)
    rate: tuple[float, float] | None = None
    clip: float | None = None
    note: str = ''

    @property
    def library(self) -> str:
        """``mmdet`` or ``mmseg``."""
        return self.base.partition('::')[0]

    def config(self, arch: str | dict[str, Any] = 't') -> str:
        """Return the text of a config file.

        Args:
            arch: ``arch`` of the backbone. One of the published variants starts from its weights.
        """
        pyramid = OverLoCKArch.from_spec(arch).pyramid_channels
        widths = [pyramid[i] for i in self.outputs]
        init_cfg = 'None'
        if isinstance(arch, str):
            init_cfg = (
                "dict(\n            type='Pretrained',\n            checkpoint=(\n"
                f"                '{_WEIGHTS.format(arch)}'\n            ),\n        )"
            )
        numbered = {f'w{i}': width for i, width in enumerate(widths)}
        settings = Template(self.settings).substitute(widths=widths, **numbered)
        text = _CONFIG.substitute(
            base=self.base,
            arch=repr(arch),
            outputs=self.outputs,
            init_cfg=init_cfg,
            settings=settings.strip('\n'),
        )
        if self.rate is not None:
            clip_grad = None if self.clip is None else f'dict(max_norm={self.clip})'
            rate, decay = self.rate
            text += _OPTIMIZER.substitute(rate=rate, decay=decay, clip_grad=clip_grad)
        return text


_UPPER = (1, 2, 3)
_NO_LEVEL_LEFT_OUT = (
    'The base passes four maps to its neck and sets `start_level=1`. Here the backbone returns '
    'only the three maps that the neck uses: the norm of an unused output gets no gradient.'
)
_CHANNEL_MAPPER = (
    'The optimizer of the base is kept: AdamW, with a tenth of the learning rate for the backbone.'
)

HEADS: tuple[Head, ...] = (
    Head(
        'RetinaNet',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        '    neck=dict(in_channels=$widths, start_level=0),',
        _UPPER,
        (1e-4, 0.05),
        note=_NO_LEVEL_LEFT_OUT,
    ),
    Head(
        'FCOS',
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        f'{_IMAGENET}    neck=dict(in_channels=$widths, start_level=0),',
        _UPPER,
        (1e-4, 0.05),
        note=_NO_LEVEL_LEFT_OUT,
    ),
    Head(
        'ATSS',
        'mmdet::atss/atss_r50_fpn_1x_coco.py',
        '    neck=dict(in_channels=$widths, start_level=0),',
        _UPPER,
        (1e-4, 0.05),
        note=_NO_LEVEL_LEFT_OUT,
    ),
    Head(
        'RTMDet',
        'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        f'{_IMAGENET}    neck=dict(in_channels=$widths),',
        _UPPER,
        note='The optimizer of the base is kept: AdamW with 0.004 for 256 images per step.',
    ),
    Head(
        'Deformable DETR',
        'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        '    neck=dict(in_channels=$widths),',
        _UPPER,
        note=_CHANNEL_MAPPER,
    ),
    Head(
        'DINO',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        '    neck=dict(in_channels=$widths),',
        _UPPER,
        note=_CHANNEL_MAPPER,
    ),
    Head(
        'DETR',
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        '    neck=dict(in_channels=$widths),',
        (3,),
        note=_CHANNEL_MAPPER,
    ),
    Head(
        'Mask2Former (instances)',
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        '    panoptic_head=dict(in_channels=$widths),',
        note='There is no neck: the pixel decoder uses all four maps. ' + _CHANNEL_MAPPER,
    ),
    Head(
        'YOLOX',
        'mmdet::yolox/yolox_l_8xb8-300e_coco.py',
        _TYPED_IMAGENET + '    neck=dict(in_channels=$widths),',
        _UPPER,
        (1e-3, 0.05),
        note='The base trains from scratch without normalising images; this backbone expects it.',
    ),
    Head(
        'HTC',
        'mmdet::htc/htc_r50_fpn_1x_coco.py',
        '    neck=dict(in_channels=$widths),',
        rate=(1e-4, 0.05),
        note='The semantic branch needs stuff maps, as in the base.',
    ),
    Head(
        'SOLO',
        'mmdet::solo/solo_r50_fpn_1x_coco.py',
        '    neck=dict(in_channels=$widths),',
        rate=(1e-4, 0.05),
        clip=35.0,
    ),
    Head(
        'Sparse R-CNN',
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
        '    neck=dict(in_channels=$widths),',
        note='The optimizer of the base is kept: AdamW, with one learning rate.',
    ),
    Head(
        'SegFormer',
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        '    pretrained=None,\n    decode_head=dict(in_channels=$widths),',
        note='The optimizer of the base is kept: AdamW with 6e-5 for 16 images per step.',
    ),
    Head(
        'Segmenter',
        'mmseg::segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py',
        f'    pretrained=None,\n{_IMAGENET}    decode_head=dict(in_channels=$w0),',
        (3,),
        (6e-5, 0.01),
        note='It uses one map, of stride 32; the ViT of the base provides one of stride 16.',
    ),
    Head(
        'Semantic FPN',
        'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
        '    pretrained=None,\n    neck=dict(in_channels=$widths),',
        rate=(1e-4, 0.05),
    ),
    Head(
        'OCRNet',
        'mmseg::ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512.py',
        """\
    pretrained=None,
    decode_head=[
        dict(
            type='FCNHead',
            in_channels=$widths,
            in_index=[0, 1],
            input_transform='resize_concat',
            channels=512,
            kernel_size=1,
            num_convs=1,
            concat_input=False,
            num_classes=150,
            norm_cfg=dict(type='SyncBN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        ),
        dict(
            type='OCRHead',
            in_channels=$widths,
            in_index=[0, 1],
            input_transform='resize_concat',
            channels=512,
            ocr_channels=256,
            num_classes=150,
            norm_cfg=dict(type='SyncBN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        ),
    ],""",
        (2, 3),
        (6e-5, 0.01),
        note=(
            'Both heads work at one resolution, that of the first map. A list replaces that of the '
            'base, so they are written out.'
        ),
    ),
    Head(
        'Mask2Former (semantic)',
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        '    decode_head=dict(in_channels=$widths),',
        note='There is no neck: the pixel decoder uses all four maps. ' + _CHANNEL_MAPPER,
    ),
)

_INTRODUCTION = """\
# Other heads

<!-- Written by `python -m overlock_mm.heads`; a test compares the page with the table there. -->

The configs below combine this backbone with the detectors and segmentors of mmdet and mmseg. For
each one, a test builds the model, takes two training steps, in which every parameter receives a
gradient, and predicts. The numbers are those of OverLoCK-T; `python -m overlock_mm.heads RetinaNet
b` prints a config for another variant. None of these models has been trained to the end: the
learning rates are our choices, for the batch size of the base config. RTMDet-Ins and Mask2Former
are also shipped as full configs: `configs/detection/rtmdet_ins_overlock_*`,
`configs/detection/mask2former_ins_overlock_*` and `configs/segmentation/mask2former_overlock_*`.

Three rules apply to all of them. The `in_channels` of the neck or head are the widths of the
backbone's outputs:

| variant | stride 4 | stride 8 | stride 16 | stride 32 |
|---|---|---|---|---|
"""
_RULES = """
`out_indices` lists exactly the outputs that are used, because an unused output has a norm whose
parameters receive no gradient, which is an error in data-parallel training. Images are normalised
as for ImageNet, in RGB.

The configs of the maintained mmseg are found under these names after `import overlock_mm`, which
the tools of this repository do. Set `drop_path_rate` (larger for larger variants) and, for several
GPUs, `norm_cfg=dict(type='SyncBN')` in `backbone`.
"""


def page() -> str:
    """Return the content of ``docs/heads.md``."""
    lines = [_INTRODUCTION.rstrip('\n')]
    for name, arch in ARCHS.items():
        lines.append(f'| {name} | ' + ' | '.join(map(str, arch.pyramid_channels)) + ' |')
    lines.append(_RULES.rstrip('\n'))
    for head in HEADS:
        file = f'{head.library}_{head.name}'.lower()
        file = re.sub('[ -]', '_', re.sub('[()]', '', file))
        lines += ['', f'## {head.name}', '']
        lines += [*textwrap.wrap(head.note, 100), ''] if head.note else []
        lines += ['```python', f'# my_project/{file}.py', head.config().rstrip('\n'), '```']
    return '\n'.join(lines) + '\n'


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page, or the config of one head."""
    parser = argparse.ArgumentParser(description='Configs of other heads.')
    parser.add_argument('head', nargs='?', choices=[head.name for head in HEADS])
    parser.add_argument('arch', nargs='?', choices=list(ARCHS), default='t')
    args = parser.parse_args(argv)
    heads = {head.name: head for head in HEADS}
    print(heads[args.head].config(args.arch) if args.head else page(), end='')


if __name__ == '__main__':
    main()
