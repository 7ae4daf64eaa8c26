"""Merging the views of test-time augmentation."""

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from overlock_mm.engine.instance_tta import InstanceTTAModel

HEIGHT, WIDTH = 6, 10


class _Detector(nn.Module):
    def test_step(self, data):
        raise AssertionError('merging needs no detector')


def _view(boxes, scores, labels, direction):
    """A prediction whose masks fill the boxes."""
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    sample = DetDataSample(metainfo=dict(ori_shape=(HEIGHT, WIDTH), flip_direction=direction))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=masks,
    )
    return sample


def _merge(*views, max_per_img=10):
    model = InstanceTTAModel(
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=max_per_img, module=_Detector()
    )
    (merged,) = model.merge_preds([views])
    return merged.pred_instances


def test_mirrored_views_agree_on_one_instance():
    merged = _merge(
        _view([(1, 1, 4, 3)], [0.6], [2], None),
        _view([(6, 1, 9, 3)], [0.9], [2], 'horizontal'),
        _view([(1, 3, 4, 5)], [0.5], [2], 'vertical'),
        _view([(6, 3, 9, 5)], [0.7], [2], 'diagonal'),
    )
    assert merged.bboxes.tolist() == [[1, 1, 4, 3]]
    assert torch.allclose(merged.scores, torch.tensor([0.9]))
    expected = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    expected[0, 1:3, 1:4] = True
    assert torch.equal(merged.masks, expected)


def test_instances_of_other_classes_and_places_stay():
    merged = _merge(
        _view([(1, 1, 4, 3), (5, 0, 9, 5)], [0.6, 0.3], [2, 2], None),
        _view([(6, 1, 9, 3)], [0.9], [1], 'horizontal'),
        max_per_img=2,
    )
    assert merged.labels.tolist() == [1, 2]
    assert merged.bboxes.tolist() == [[1, 1, 4, 3], [1, 1, 4, 3]]


def test_views_without_instances():
    merged = _merge(_view([], [], [], None), _view([], [], [], 'horizontal'))
    assert len(merged) == 0
    assert merged.masks.shape == (0, HEIGHT, WIDTH)


def test_what_a_head_adds_for_itself_is_left_out():
    plain, mirrored = (_view([[1, 1, 4, 4]], [0.9], [0], d) for d in (None, 'horizontal'))
    for view in (plain, mirrored):
        view.pred_instances.kernels = torch.zeros(1, 8)
    assert set(_merge(plain, mirrored).keys()) == {'bboxes', 'scores', 'labels', 'masks'}
