import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from overlock_mm.visualization.seg_visualizer import EnlargingSegVisualizer

PALETTE = [(0, 0, 0), (200, 100, 50)]


def test_picture_and_label_maps_grow_together(tmp_path):
    visualizer = EnlargingSegVisualizer(factor=3, alpha=1.0, save_dir=str(tmp_path))
    visualizer.dataset_meta = dict(classes=('background', 'disc'), palette=PALETTE)
    truth = torch.zeros(1, 8, 10, dtype=torch.int64)
    truth[0, 2:6, 3:7] = 1
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=truth), pred_sem_seg=PixelData(data=truth.flip(1))
    )
    image = np.full((8, 10, 3), 90, np.uint8)
    drawn = []
    visualizer.add_image = lambda name, picture, step: drawn.append(picture)
    visualizer.add_datasample('a', image, sample, with_labels=False)

    expected = np.zeros((24, 60, 3), np.uint8)
    expected[6:18, 9:21] = PALETTE[1]  # truth left
    expected[6:18, 39:51] = PALETTE[1]  # prediction right
    assert np.array_equal(drawn[0], expected)
    assert sample.gt_sem_seg.data.shape == (1, 8, 10)


def test_factor_is_a_positive_integer():
    with pytest.raises(ValueError, match='positive integer, got 1.5'):
        EnlargingSegVisualizer(factor=1.5)


def test_labels_are_where_mmseg_puts_them(tmp_path):
    visualizer = EnlargingSegVisualizer(factor=1, save_dir=str(tmp_path))
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = generator.integers(0, 2, (7, 9), dtype=np.uint8)
        expected = SegLocalVisualizer._get_center_loc(visualizer, mask)
        assert visualizer._get_center_loc(mask).tolist() == expected.tolist()
