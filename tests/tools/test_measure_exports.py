"""The page of measured exports belongs to its figures; pixels without a class do not count."""

import json

import numpy as np
import pytest
from PIL import Image

from overlock_mm.runtime import Segmentation
from tools.dev import measure_exports


def test_the_page_is_made_of_the_results():
    results = json.loads(measure_exports.RESULTS.read_text())
    assert measure_exports.PAGE.read_text() == measure_exports.page_of(results)


def test_rows_of_another_machine_are_not_kept():
    tasks = json.loads(measure_exports.RESULTS.read_text())['tasks']
    assert measure_exports.kept_tasks(measure_exports.RESULTS, {}) == tasks
    with pytest.raises(ValueError, match='another machine or with other versions'):
        measure_exports.kept_tasks(measure_exports.RESULTS, {'processor': 'abacus'})


def test_mean_iou_leaves_out_pixels_without_a_class(tmp_path):
    for folder in ('images', 'annotations'):
        (tmp_path / folder / 'validation').mkdir(parents=True)
    truth = np.array([[0, 1, 1], [2, 2, 2]], np.uint8)  # 0 is no class
    Image.fromarray(truth).save(tmp_path / 'annotations/validation/a.png')
    labels = np.array([[1, 0, 1], [1, 1, 1]])
    source = str(tmp_path / 'images/validation/a.png')
    image = np.zeros((2, 3, 3), np.uint8)
    result = Segmentation(image, ('a', 'b'), (), source, labels)
    # Of class a, one of two pixels; of class b, three of four.
    assert measure_exports.mean_iou([result]) == 100 * (1 / 2 + 3 / 4) / 2
