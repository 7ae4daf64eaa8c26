"""Masks of pictures: pasted as mmdet does it, coded as pycocotools does it."""

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from pycocotools import mask as coco

from overlock_mm.runtime.masks import paste, run_lengths


def test_masks_are_pasted_as_mmdet_does():
    generator = np.random.default_rng(0)
    masks = generator.random((20, 28, 28)).astype(np.float32)
    boxes = (generator.random((20, 4)) * 100).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]  # some reach out of the picture
    pasted = paste(masks, boxes, (120, 150), 0.5)
    for mask, box, actual in zip(masks, boxes, pasted, strict=True):
        expected = np.zeros((120, 150), bool)
        part, where = _do_paste_mask(
            torch.tensor(mask[None, None]), torch.tensor(box[None]), 120, 150
        )
        expected[where] = part[0].numpy() >= 0.5
        assert (actual != expected).sum() <= 1
    assert pasted.any((1, 2)).all()


def test_a_box_without_an_area_has_no_mask():
    masks, boxes = np.ones((2, 28, 28), np.float32), np.float32([[5, 5, 5, 9], [200, 5, 210, 9]])
    assert not paste(masks, boxes, (20, 30), 0.5).any()


@pytest.mark.parametrize('share', (0.0, 0.01, 0.5, 1.0))
def test_code_of_coco(share):
    mask = np.random.default_rng(0).random((301, 211)) < share
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    code = run_lengths(mask)
    assert code == {'size': [301, 211], 'counts': expected['counts'].decode()}
