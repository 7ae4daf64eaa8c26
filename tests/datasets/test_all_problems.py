"""Whatever is wrong with the data of a run is reported at once."""

import json
import shutil

import pytest

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.errors import Problems
from overlock_mm.utils.config import load_config
from tests.conftest import DEMO, ROOT

SEGMENTATION = str(ROOT / 'configs/demo/upernet_overlock_shapes.py')


def problems_of(config, root, **options):
    with pytest.raises(DataError) as caught:
        check_data(load_config(config, {'data_root': str(root), **options}), ('train', 'val'))
    return caught.value.messages, str(caught.value)


def test_annotations_and_outputs_and_files(shapes_root, tmp_path):
    root = shutil.copytree(shapes_root, tmp_path / 'coco')
    file = root / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    for annotation in content['annotations'][:3]:
        del annotation['area']
    content['annotations'][3]['bbox'] = [1, 2]
    del content['images'][0]['height']
    file.write_text(json.dumps(content))
    for number in (1, 2):
        image = root / f'val2017/00000000000{number}.png'
        image.write_bytes(image.read_bytes()[:-100])
    heads = {f'model.roi_head.bbox_head.{stage}.num_classes': 4 for stage in range(3)}
    problems, text = problems_of(DEMO, root, **heads)
    assert text.startswith(f'{len(problems)} problems:\n- ')
    expected = (
        'image 1 has no height and width',
        "annotation 1 (and 2 more) has no 'area'",
        'the bbox of annotation 4 is [1, 2]',
        '000000000001.png cannot be read',
        '000000000002.png cannot be read',
        ' '.join(f'model.roi_head.bbox_head.{stage}.num_classes=5' for stage in range(3)),
    )
    for text in expected:
        assert sum(text in message for message in problems) == 1, text
    assert len(problems) == len(expected)


def test_label_maps(shapes_root, tmp_path):
    root = shutil.copytree(shapes_root.parent / 'ade', tmp_path / 'ade')
    (root / 'annotations/training/000000000001.png').unlink()
    (root / 'annotations/training/000000000003.png').write_bytes(b'no picture')
    problems, _ = problems_of(SEGMENTATION, root)
    assert ['000000000001.png is missing' in m or '000000000003' in m for m in problems] == [
        True
    ] * 2


def test_a_long_list_is_cut():
    problems = Problems()
    problems.add(*(f'file {number}' for number in range(60)), 'file 0')
    with pytest.raises(DataError, match=r'60 problems:\n- file 0\n(.*\n)*- and 10 more') as caught:
        problems.raise_all()
    assert len(caught.value.messages) == 60
