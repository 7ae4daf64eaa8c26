"""What mmdet trains on, no check refuses: one case per kind of data."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image

from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.shapes import CLASSES
from tests.datasets.accepted import LOAD, check, shapes


@pytest.fixture
def coco(shapes_root, tmp_path):
    """A copy of the COCO view and the content of its training annotations."""
    root = shutil.copytree(shapes_root, tmp_path / 'coco')
    file = root / 'annotations/instances_train2017.json'
    return root, json.loads(file.read_text()), lambda content: file.write_text(json.dumps(content))


def test_panoptic_annotations(coco, monkeypatch):
    from pycocotools import mask

    # The package panopticapi is not on the package index.
    utils = types.SimpleNamespace(rgb2id=lambda x: x[..., 0] + 256 * x[..., 1].astype(np.int32))
    monkeypatch.setitem(sys.modules, 'panopticapi', types.SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, 'panopticapi.utils', utils)
    root, content, save = coco
    (root / 'panoptic').mkdir()
    annotations = []
    for image in content['images']:
        ids = np.ones((image['height'], image['width']), np.uint8)
        segments = [dict(id=1, category_id=6, area=1, bbox=[0, 0, 1, 1], iscrowd=0)]
        for number, entry in enumerate(content['annotations'], 2):
            if entry['image_id'] == image['id']:
                ids[mask.decode(entry['segmentation']).astype(bool)] = number
                segments.append({k: entry[k] for k in ('category_id', 'area', 'bbox', 'iscrowd')})
                segments[-1]['id'] = number
        colours = np.stack([ids, 0 * ids, 0 * ids], -1)
        Image.fromarray(colours).save(root / 'panoptic' / image['file_name'])
        entry = dict(image_id=image['id'], file_name=image['file_name'])
        present = [s for s in segments if (ids == s['id']).any()]
        annotations.append(dict(entry, segments_info=present))
    content['annotations'] = annotations
    things = [dict(c, isthing=1) for c in content['categories']]
    content['categories'] = [*things, dict(id=6, name='ground', isthing=0)]
    save(content)
    dataset = shapes(
        root,
        type='CocoPanopticDataset',
        data_prefix=dict(img='train2017/', seg='panoptic/'),
        metainfo=dict(
            classes=(*CLASSES, 'ground'), thing_classes=CLASSES, stuff_classes=('ground',)
        ),
        pipeline=[LOAD[0], dict(type='LoadPanopticAnnotations'), LOAD[2]],
    )
    (line,) = check('mmdet', dataset)
    assert line == 'train_dataloader.dataset: CocoPanopticDataset with 4 images'


def test_lvis_annotations(coco, monkeypatch):
    from mmdet.datasets.api_wrappers import COCO

    # mmdet calls the same methods of both.
    monkeypatch.setitem(sys.modules, 'lvis', types.SimpleNamespace(LVIS=COCO))
    root, content, save = coco
    for image in content['images']:
        name = image.pop('file_name')
        image['coco_url'] = f'http://images.cocodataset.org/train2017/{name}'
    save(content)
    (line,) = check('mmdet', shapes(root, type='LVISV1Dataset', data_prefix=dict(img='')))
    assert 'LVISV1Dataset with 4 images; objects: ellipse' in line


@pytest.mark.parametrize(
    ('package', 'settings'),
    [
        ('lvis', dict(type='LVISV1Dataset')),
        ('panopticapi', dict(pipeline=[LOAD[0], dict(type='LoadPanopticAnnotations'), LOAD[2]])),
    ],
)
def test_a_package_that_only_such_data_need(package, settings, coco, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'{package} is not installed.*pip install git'):
        check('mmdet', shapes(coco[0], **settings))


def voc(root, content, **settings):
    """The same objects in the format of Pascal VOC."""
    names = {category['id']: category['name'] for category in content['categories']}
    for image in content['images']:
        objects = ''
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id']:
                x, y, width, height = map(round, annotation['bbox'])
                sides = f'<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
                sides += f'<xmax>{x + width}</xmax><ymax>{y + height}</ymax>'
                name = f'<name>{names[annotation["category_id"]]}</name>'
                objects += f'<object>{name}<bndbox>{sides}</bndbox></object>'
        size = f'<width>{image["width"]}</width><height>{image["height"]}</height>'
        stem = image['file_name'].removesuffix('.png')
        text = f'<annotation><size>{size}</size>{objects}</annotation>'
        (root / f'train2017/{stem}.xml').write_text(text)
        (root / f'train2017/{stem}.png').rename(root / f'train2017/{stem}.jpg')
    stems = [image['file_name'].removesuffix('.png') for image in content['images']]
    (root / 'train.txt').write_text('\n'.join(stems))
    return dict(
        dict(
            type='XMLDataset',
            data_root=str(root),
            ann_file='train.txt',
            data_prefix=dict(sub_data_root=''),
            img_subdir='train2017',
            ann_subdir='train2017',
            metainfo=dict(classes=CLASSES),
            pipeline=[LOAD[0], dict(type='LoadAnnotations', with_bbox=True), LOAD[2]],
        ),
        **settings,
    )


def test_boxes_of_pascal_voc(coco):
    root, content, _ = coco
    dataset = voc(root, content)
    (line,) = check('mmdet', dataset)
    assert 'XMLDataset with 4 images; objects: ellipse' in line
    # The library passes over objects of other names.
    dataset['metainfo'] = dict(classes=('Star', 'Ring'))
    with pytest.raises(DataError, match=r"no object of the classes \('Star', 'Ring'\)"):
        check('mmdet', dataset)
    assert len(check('mmdet', dict(type='ConcatDataset', datasets=[dataset, dataset]))) == 2


def test_mosaic_of_several_images(coco):
    root, *_ = coco
    dataset = dict(
        type='MultiImageMixDataset',
        dataset=shapes(root, pipeline=[LOAD[0], dict(type='LoadAnnotations', with_bbox=True)]),
        pipeline=[dict(type='Mosaic', img_scale=(64, 64)), dict(type='PackDetInputs')],
    )
    (line,) = check('mmdet', dataset)
    assert 'CocoDataset with 4 images; objects: ellipse' in line


def test_maps_of_stuff_beside_objects(coco):
    root, content, _ = coco
    (root / 'stuff').mkdir()
    for image in content['images']:
        stuff = np.full((image['height'], image['width']), 182, np.uint8)
        Image.fromarray(stuff).save(root / 'stuff' / image['file_name'])
    load = dict(LOAD[1], with_seg=True)
    dataset = shapes(
        root, data_prefix=dict(img='train2017/', seg='stuff/'), pipeline=[LOAD[0], load, LOAD[2]]
    )
    heads = [dict(type='BBoxHead', num_classes=5)] * 3
    semantic = dict(type='FusedSemanticHead', num_classes=183)
    check('mmdet', dataset, roi_head=dict(bbox_head=heads, semantic_head=semantic))


def change_ids(content):
    for image in content['images']:
        image['id'] = f'{image["id"]:012d}'
    for annotation in content['annotations']:
        annotation['image_id'] = f'{annotation["image_id"]:012d}'


def spread_categories(content):
    for category in content['categories']:
        category['id'] *= 17
    for annotation in content['annotations']:
        annotation['category_id'] *= 17


def make_crowds(content):
    from pycocotools import mask

    for annotation in content['annotations'][::2]:
        pixels = mask.decode(annotation['segmentation']).flatten(order='F')
        ends = [0, *(np.flatnonzero(np.diff(pixels)) + 1), pixels.size]
        counts = np.diff(ends).tolist()
        annotation['segmentation']['counts'] = [0] * int(pixels[0]) + counts
        annotation['iscrowd'] = 1


def as_polygons(content):
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    content['annotations'][0]['segmentation'] = [[1, 1, 2, 2]]


ODD_FILES = {
    'ids as text': (change_ids, 'objects'),
    'ids with gaps': (spread_categories, 'objects'),
    'crowds as uncompressed run lengths': (make_crowds, 'crowd regions, which are not learned'),
    'a polygon of two points': (as_polygons, '1 ignored because their polygons have fewer'),
    'a box that is marked': (
        lambda content: content['annotations'][0].update(ignore=1),
        "marked 'ignore'",
    ),
    'an annotation of an unknown category': (
        lambda content: content['annotations'][0].update(category_id=99),
        'for example 99; they are left out',
    ),
    'a category without a class': (
        lambda content: content['categories'].append(dict(id=9, name='cat')),
        'objects',
    ),
    'an unused category of the same name at the end': (
        lambda content: content['categories'].append(dict(id=9, name='star')),
        'objects',
    ),
    'an annotation of an image that is not listed, without fields': (
        lambda content: content['annotations'].append(dict(id=999, image_id=9, category_id=1)),
        'no image has their image_id',
    ),
    'polygons of another size than the image': (
        lambda content: (
            as_polygons(content),
            [image.update(height=200, width=300) for image in content['images']],
        ),
        'Do the objects lie where they should?',
    ),
}


@pytest.mark.parametrize('case', ODD_FILES)
def test_annotation_file(coco, case):
    root, content, save = coco
    change, expected = ODD_FILES[case]
    change(content)
    save(content)
    assert expected in '\n'.join(check('mmdet', shapes(root)))


def test_a_class_that_the_file_lacks_at_the_end(coco):
    root, *_ = coco
    (warning, _) = check('mmdet', shapes(root, metainfo=dict(classes=(*CLASSES, 'zebra'))))
    assert warning.startswith('warning') and "has no category 'zebra'" in warning


def test_a_class_that_only_validation_drops(coco):
    root, content, save = coco
    gone = content['annotations'][0]['category_id']
    for annotation in content['annotations']:
        if annotation['category_id'] == gone:
            annotation['area'] = 0
    save(content)
    lines = check('mmdet', shapes(root, test_mode=True), split='val')
    assert any(line.startswith('warning') and 'all of' in line for line in lines)
    with pytest.raises(DataError, match='every object of'):
        check('mmdet', shapes(root))


def test_a_class_that_another_part_has(coco):
    root, content, _ = coco
    part = json.loads(json.dumps(content))
    for annotation in part['annotations']:
        annotation['area'] = 0 if annotation['category_id'] == 1 else 1
    (root / 'annotations/part.json').write_text(json.dumps(part))
    both = [shapes(root), shapes(root, ann_file='annotations/part.json')]
    lines = check('mmdet', dict(type='ConcatDataset', datasets=both))
    assert sum('CocoDataset with 4 images' in line for line in lines) == 2


def test_data_sets_of_an_unknown_kind(tmp_path):
    @DATASETS.register_module(force=True)
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return dict(inputs=torch.zeros(3, 8, 8), data_samples=None)

    assert check('mmdet', dict(type='Noise')) == ['train_dataloader.dataset: Noise with 3 images']


def test_the_metric_reads_another_file(coco):
    root, content, _ = coco
    other = str(root / 'annotations/instances_val2017.json')
    more = json.loads(json.dumps(content))
    more['images'].append(dict(more['images'][0], id=77))
    (root / 'annotations/more.json').write_text(json.dumps(more))
    metric = dict(type='CocoMetric', metric=['bbox', 'segm'])
    dataset = shapes(root, test_mode=True)
    with pytest.raises(DataError, match='does not list image 3'):
        check('mmdet', dataset, split='val', evaluator=dict(metric, ann_file=other))
    wider = dict(metric, ann_file=str(root / 'annotations/more.json'))
    lines = check('mmdet', dataset, split='val', evaluator=wider)
    assert any('lists 1 images that the data set leaves out' in line for line in lines)
