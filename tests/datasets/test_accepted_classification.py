"""What mmpretrain trains on, no check refuses: one case per kind of data."""

import json
import shutil

import pytest
from mmengine.config import Config

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import DataError
from tests.datasets.accepted import check


@pytest.fixture
def labelled(shapes_root, tmp_path):
    """Pictures in one folder."""
    shutil.copytree(shapes_root / 'train2017', tmp_path / 'all/img')
    return tmp_path / 'all'


PACKED = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=32),
    dict(type='PackInputs'),
]


def test_pictures_with_several_labels_or_none(labelled):
    names = sorted(file.name for file in (labelled / 'img').iterdir())
    labels = [[0, 2], [], [1], []]
    entries = [dict(img_path=n, gt_label=k) for n, k in zip(names, labels, strict=True)]
    content = dict(metainfo=dict(classes=['a', 'b', 'c']), data_list=entries)
    (labelled / 'train.json').write_text(json.dumps(content))
    dataset = dict(
        type='MultiLabelDataset',
        data_root=str(labelled),
        data_prefix='img',
        ann_file='train.json',
        pipeline=PACKED,
    )
    check('mmpretrain', dataset, head=dict(type='MultiLabelLinearClsHead', num_classes=3))


def listed(labelled, labels, **settings):
    names = sorted(file.name for file in (labelled / 'img').iterdir())
    lines = [f'{name} {label}\n' for name, label in zip(names, labels, strict=True)]
    (labelled / 'train.txt').write_text(''.join(lines))
    return dict(
        dict(
            type='CustomDataset',
            data_root=str(labelled),
            data_prefix='img',
            ann_file='train.txt',
            pipeline=PACKED,
        ),
        **settings,
    )


def test_pictures_in_a_list_without_names_of_classes(labelled):
    head = dict(type='LinearClsHead', num_classes=3)
    (line,) = check('mmpretrain', listed(labelled, [0, 2, 1, 1]), head=head)
    assert line.endswith('4 images; 0 1, 1 2, 2 1')
    with pytest.raises(DataError, match=r'has the label 3.*num_classes=4'):
        check('mmpretrain', listed(labelled, [0, 3, 1, 1]), head=head)


def test_the_top_5_of_three_classes_and_five_outputs(labelled):
    dataset = listed(labelled, [0, 2, 1, 1], metainfo=dict(classes=('a', 'b', 'c')))
    metric = dict(type='Accuracy', topk=(1, 5))
    head = dict(type='LinearClsHead', num_classes=5)
    check('mmpretrain', dataset, split='val', evaluator=metric, head=head)


def test_folders_of_which_some_have_other_names(labelled):
    for number, name in enumerate(('ant', 'n0123', 'zebra')):
        (labelled / name).mkdir()
        shutil.copy(labelled / f'img/{number + 1:012d}.png', labelled / name)
    shutil.rmtree(labelled / 'img')
    dataset = dict(type='CustomDataset', data_root=str(labelled), pipeline=PACKED)
    check('mmpretrain', dict(dataset, metainfo=dict(classes=('ant', 'bee', 'zebra'))))
    with pytest.raises(DataError, match='another order'):
        check('mmpretrain', dict(dataset, metainfo=dict(classes=('ant', 'zebra', 'bee'))))


def test_classes_that_validation_names_otherwise(labelled):
    dataset = listed(labelled, [0, 2, 1, 1])
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='Model'),
            train_dataloader=dict(
                dataset=dict(dataset, metainfo=dict(classes=('n01', 'n02', 'n03')))
            ),
            val_dataloader=dict(dataset=dict(dataset, metainfo=dict(classes=('a', 'b', 'c')))),
        )
    )
    assert any('are not those of' in line for line in check_data(cfg, ('train', 'val')).lines)


def test_pictures_of_an_ending_that_the_library_passes_over(labelled):
    for name in ('ant', 'bee'):
        (labelled / name).mkdir()
        shutil.copy(labelled / 'img/000000000001.png', labelled / name / 'a.PNG')
        shutil.copy(labelled / 'img/000000000001.png', labelled / name / 'b.webp')
    shutil.rmtree(labelled / 'img')
    dataset = dict(type='CustomDataset', data_root=str(labelled), pipeline=PACKED)
    warning, line = check('mmpretrain', dataset)
    assert 'leaves out 2 pictures' in warning and 'b.webp' in warning and 'extensions' in warning
    assert 'with 2 images' in line
