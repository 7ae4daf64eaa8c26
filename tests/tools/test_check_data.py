"""``tools/dataset_tools/check_data.py``: the report and the pictures of samples."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from PIL import Image

from overlock_mm.datasets.checks.pictures import draw_samples
from overlock_mm.datasets.shapes import write_classification
from tests.conftest import DEMO, ROOT
from tools.dataset_tools import check_data as tool


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('classification') / 'data'
    write_classification(root, num_train=5, num_val=5)
    return root


@pytest.mark.slow
@pytest.mark.parametrize('task', ['cascade', 'upernet', 'classifier'])
def test_report_and_pictures(task, shapes_root, folders, tmp_path):
    root = {'cascade': shapes_root, 'upernet': shapes_root.parent / 'ade'}.get(task, folders)
    config = ROOT / f'configs/demo/{task}_overlock_shapes.py'
    options = ['--work-dir', str(tmp_path), '--cfg-options', f'data_root={root}']
    lines = tool.main([str(config), *options, 'train_dataloader.dataset.indices=2'])
    assert (tmp_path / 'data.txt').read_text().splitlines() == lines
    # Two pictures are of fewer classes than the classifier has.
    lines = [line for line in lines if 'has no image of' not in line]
    assert 'with 2 images' in lines[0]
    # Validation and test are the same.
    assert len(lines) == 2
    assert sorted(p.name for p in tmp_path.glob('*.png')) == ['data_train.png', 'data_val.png']
    with Image.open(tmp_path / 'data_train.png') as picture:
        assert picture.width == 960  # two samples of 160 x 128 or 128 x 128, each enlarged
        assert len(np.unique(np.array(picture))) > 100


def test_pictures_show_boxes_where_they_are():
    sample = DetDataSample(metainfo=dict(img_path='one.png'))
    boxes = HorizontalBoxes(torch.tensor([[20.0, 10.0, 60.0, 40.0]]))
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0]))

    class OneSample(list):
        metainfo = dict(classes=('thing',), palette=[(255, 0, 0)])

    grey = torch.full((3, 60, 80), 100, dtype=torch.uint8)
    dataset = OneSample([dict(inputs=grey, data_samples=sample)])
    picture = np.array(draw_samples(dataset, 'mmdet', [0]))
    assert picture.shape == (6 * 60 + 16, 6 * 80, 3)
    red = (picture[..., 0] > 150) & (picture[..., 1] < 90)
    rows, columns = np.nonzero(red)
    assert abs(columns.min() - 6 * 20) <= 3 and abs(columns.max() - 6 * 60) <= 3
    assert abs(rows.max() - 6 * 40) <= 3


def test_an_error_ends_it_before_any_picture(shapes_root, tmp_path, fails):
    root = shutil.copytree(shapes_root, tmp_path / 'coco')
    file = root / 'annotations/instances_val2017.json'
    content = json.loads(file.read_text())
    for annotation in content['annotations']:
        annotation['area'] = 0
    file.write_text(json.dumps(content))
    work = tmp_path / 'work'
    message = fails(tool.main, DEMO, '--work-dir', work, '--cfg-options', f'data_root={root}')
    assert str(file) in message and 'area is 0' in message
    assert not list(work.glob('*.png'))


@pytest.mark.parametrize(('sample', 'found'), [('1', False), ('all', True)])
def test_all_files_on_request(sample, found, shapes_root, tmp_path, capsys):
    root = shutil.copytree(shapes_root, tmp_path / 'coco')
    image = root / 'train2017/000000000003.png'
    image.write_bytes(image.read_bytes()[:-100])
    arguments = [DEMO, '--splits', 'train', '--pictures', '0', '--sample', sample]
    arguments += ['--work-dir', str(tmp_path), '--cfg-options', f'data_root={root}']
    if found:
        with pytest.raises(SystemExit):
            tool.main(arguments)
        assert f'{image} cannot be read' in capsys.readouterr().err
    else:
        tool.main(arguments)
