"""What becomes of the libraries' predictions."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from overlock_mm.analysis.config_model import ConfigModel
from overlock_mm.datasets.checks import DataError
from overlock_mm.runtime.description import ModelDescription
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT


def result(task, sample):
    model = ConfigModel.__new__(ConfigModel)
    model.task = task
    model.description = ModelDescription(task, ('a', 'b'), ((0, 0, 0), (9, 9, 9)), channels=3)
    return model._result(sample, np.zeros((2, 2, 3), np.uint8), None)


def test_objects_of_a_detector_with_queries_come_in_the_order_of_their_scores():
    boxes = torch.arange(12.0).reshape(3, 4)
    objects = InstanceData(
        bboxes=boxes,
        scores=torch.tensor([0.1, 0.9, 0.5]),
        labels=torch.tensor([0, 1, 0]),
        masks=torch.eye(3).bool()[:, None],
    )
    results = result('detection', DetDataSample(pred_instances=objects))
    np.testing.assert_array_equal(results.boxes, boxes[[1, 2, 0]])
    np.testing.assert_allclose(results.scores, [0.9, 0.5, 0.1])
    assert results.labels.tolist() == [1, 0, 0]
    assert results.masks[:, 0].argmax(1).tolist() == [1, 2, 0]


def test_a_panoptic_model():
    with pytest.raises(DataError, match=r'test_cfg\.instance_on=True'):
        result('detection', DetDataSample())


def test_a_segmentor_with_one_channel():
    """Its labels are of a floating type in mmseg."""
    labels = PixelData(data=torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]))
    results = result('segmentation', SegDataSample(pred_sem_seg=labels))
    assert results.label_map.tolist() == [[0, 1], [1, 1]]
    assert results.label_map.dtype == np.int64


def test_fewer_queries_than_results():
    cfg = load_config(ROOT / 'configs/detection/mask2former_ins_overlock_xt.py')
    cfg.model.panoptic_head.num_queries = 1
    with pytest.raises(DataError, match='max_per_image=80'):
        ConfigModel(cfg, 'none.pth', 'cpu')
