import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from overlock_mm.visualization.det_visualizer import EnlargingDetVisualizer


def sample():
    mask = np.zeros((1, 8, 10), np.uint8)
    mask[0, 2:6, 3:7] = 1
    box, label = torch.tensor([[3.0, 2.0, 7.0, 6.0]]), torch.tensor([0])
    truth = InstanceData(bboxes=box, labels=label, masks=BitmapMasks(mask, 8, 10))
    predicted = InstanceData(
        bboxes=box, labels=label, masks=torch.from_numpy(mask).bool(), scores=torch.tensor([0.9])
    )
    return DetDataSample(gt_instances=truth, pred_instances=predicted)


def test_picture_boxes_and_masks_grow_together():
    visualizer = EnlargingDetVisualizer(factor=3)
    visualizer.dataset_meta = dict(classes=('disc',), palette=[(255, 0, 0)])
    original = sample()
    visualizer.add_datasample('a', np.zeros((8, 10, 3), np.uint8), original)
    assert visualizer.get_image().shape == (24, 60, 3)  # truth left, prediction right

    for instances in (original.gt_instances, original.pred_instances):
        scaled = visualizer._scale(instances)
        assert scaled.bboxes.tolist() == [[9, 6, 21, 18]]
        masks = scaled.masks
        masks = masks if isinstance(masks, torch.Tensor) else torch.from_numpy(masks.masks)
        expected = torch.zeros(1, 24, 30, dtype=torch.bool)
        expected[0, 6:18, 9:21] = True
        assert torch.equal(masks.bool(), expected)
        assert instances.bboxes.tolist() == [[3, 2, 7, 6]]


def test_factor_is_a_positive_integer():
    with pytest.raises(ValueError, match='positive integer, got 0'):
        EnlargingDetVisualizer(factor=0)
