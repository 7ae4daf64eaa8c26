"""Detectors and segmentors of the libraries, with an eighth of their channels and fixed weights."""

from functools import partial

import mmdet.models
import mmseg.models
import numpy as np
import torch
from mmdet.registry import MODELS as DETECTORS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.registry import MODELS as SEGMENTORS
from mmseg.structures import SegDataSample

CLASSES = 3
SIZE = (96, 128)
#: In configs, what counts channels.
WIDTHS = ('channels', 'dims', 'num_feats')


def narrow(node):
    """A model's config with fewer channels and classes, for one process and without downloads."""
    if isinstance(node, list | tuple):
        return type(node)(narrow(entry) for entry in node)
    if not isinstance(node, dict):
        return 'BN' if node == 'SyncBN' else node
    changed = {}
    for key, value in node.items():
        if key in ('init_cfg', 'pretrained', 'data_preprocessor'):
            continue
        if key.endswith(WIDTHS):
            value = [n // 8 for n in value] if isinstance(value, list) else max(value // 8, 1)
        elif key == 'num_classes':
            value = CLASSES
        else:
            value = narrow(value)
        changed[key] = value
    return changed


def build(registry, library, config, options):
    (folder,) = library.__path__
    model = narrow(Config.fromfile(f'{folder}/.mim/configs/{config}').model.to_dict())
    cfg = Config({'model': model})
    cfg.merge_from_dict({f'model.{name}': value for name, value in options.items()})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(library.__name__):
        network = registry.build(cfg.model)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        for layer in network.modules():
            if hasattr(layer, 'weight_gamma'):  # SAC normalizes its weights to this
                layer.weight_gamma.fill_(layer.weight[0].numel() ** -0.5)
    return network


def detector(config, **options):
    return partial(build, DETECTORS, mmdet, config, {'backbone.base_channels': 8} | options)


def segmentor(config, **options):
    return partial(build, SEGMENTORS, mmseg, config, {'backbone.base_channels': 8} | options)


#: mmcv has the operators of these for the CPU.
NETWORKS = {
    'RetinaNet': detector('retinanet/retinanet_r50_fpn_1x_coco.py'),
    'RetinaNet, soft-NMS': detector(
        'retinanet/retinanet_r50_fpn_1x_coco.py', **{'test_cfg.nms': {'type': 'soft_nms'}}
    ),
    'Cascade Mask R-CNN': detector('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'),
    'Cascade R-CNN, SAC': detector('detectors/cascade-rcnn_r50-sac_1x_coco.py'),
    'Mask R-CNN, DCNv2': detector('dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py'),
    'RepPoints': detector('reppoints/reppoints-moment_r50_fpn_1x_coco.py'),
    'PSANet': segmentor(
        'psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        **{'decode_head.mask_size': (9, 13)},
    ),
}
#: mmcv has the operators of these for GPUs only.
FOR_GPU = {
    'CARAFE': detector('carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py'),
    'deformable RoI pooling': detector('dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py'),
    'guided anchors': detector('guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py'),
}
DEFORMABLE_DETR = detector(
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    **{
        'num_queries': 20,
        'bbox_head.embed_dims': 32,
        'encoder.num_layers': 1,
        'decoder.num_layers': 2,
        'test_cfg.max_per_img': 30,
    },
)


def samples(detection):
    """Two pictures of noise, and what is on them."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 3, *SIZE, generator=generator)
    about = {'img_shape': SIZE, 'ori_shape': SIZE, 'pad_shape': SIZE, 'batch_input_shape': SIZE}
    about |= {'scale_factor': (1.0, 1.0), 'img_id': 0}
    found = []
    for _ in pictures:
        if detection:
            corners = torch.rand(3, 2, generator=generator) * torch.tensor([40.0, 20.0])
            sides = torch.rand(3, 2, generator=generator) * 40 + 4
            masks = (torch.rand(3, *SIZE, generator=generator) < 0.5).numpy().astype(np.uint8)
            truth = InstanceData(
                bboxes=torch.cat([corners, corners + sides], 1),
                labels=torch.arange(3),
                masks=BitmapMasks(masks, *SIZE),
            )
            sample = DetDataSample(metainfo=about, gt_instances=truth)
        else:
            labels = torch.randint(0, CLASSES, (1, *SIZE), generator=generator)
            sample = SegDataSample(metainfo=about, gt_sem_seg=PixelData(data=labels))
        found.append(sample)
    return pictures, found


def run(builder):
    """Losses, gradients and predictions of a network by name."""
    network = builder()
    pictures, truth = samples(detection=builder.args[0] is DETECTORS)
    torch.manual_seed(0)
    network.train()
    losses = {
        name: sum(part if isinstance(part, list) else [part])
        for name, part in network.loss(pictures, truth).items()
    }
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    outputs = {name: loss.detach() for name, loss in losses.items()}
    for name, weight in network.named_parameters():
        if weight.grad is not None:
            outputs[f'by {name}'] = weight.grad
    network.eval()
    with torch.no_grad():
        # One by one, as guided anchors want it.
        for index, sample in enumerate(truth):
            (prediction,) = network.predict(pictures[index : index + 1], [sample])
            outputs |= {f'{index} {name}': value for name, value in predicted(prediction)}
    return outputs


def predicted(sample):
    if 'seg_logits' in sample:
        return [('logits', sample.seg_logits.data)]
    return [
        (name, value.sum((1, 2)) if name == 'masks' else value)
        for name, value in sample.pred_instances.items()
    ]
