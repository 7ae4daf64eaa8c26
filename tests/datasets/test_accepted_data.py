"""What mmdet, mmseg and mmpretrain train on, no check refuses: one case per kind of data."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import DataError, watch_files
from overlock_mm.datasets.shapes import CLASSES, METAINFO, SEMANTIC_METAINFO

LOAD = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
LOAD_MAPS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def check(scope, dataset, split='train', evaluator=None, **model):
    """The lines of the report on one data set, every sample of which then leaves its pipeline."""
    cfg = dict(default_scope=scope, model=dict(type='Model', **model))
    cfg[f'{split}_dataloader'] = dict(dataset=dataset)
    if evaluator is not None:
        cfg[f'{split}_evaluator'] = evaluator
    cfg = Config(cfg)
    sets = check_data(cfg, (split,))
    built = sets.get(cfg[f'{split}_dataloader'].dataset)
    watch_files(built)
    with DefaultScope.overwrite_default_scope(scope):
        assert all('inputs' in built[index] for index in range(len(built)))
    return sets.lines


def shapes(root, **settings):
    return dict(
        dict(
            type='CocoDataset',
            data_root=str(root),
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            metainfo=METAINFO,
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=LOAD,
        ),
        **settings,
    )


def maps(root, **settings):
    return dict(
        dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            img_suffix='.png',
            metainfo=SEMANTIC_METAINFO,
            reduce_zero_label=True,
            pipeline=LOAD_MAPS,
        ),
        **settings,
    )


@pytest.fixture
def coco(shapes_root, tmp_path):
    """A copy of the COCO view and the content of its training annotations."""
    root = shutil.copytree(shapes_root, tmp_path / 'coco')
    file = root / 'annotations/instances_train2017.json'
    return root, json.loads(file.read_text()), lambda content: file.write_text(json.dumps(content))


@pytest.fixture
def ade(shapes_root, tmp_path):
    return shutil.copytree(shapes_root.parent / 'ade', tmp_path / 'ade')


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


@TRANSFORMS.register_module()
class LoadArray:
    """A loader of files that Pillow and OpenCV do not know."""

    def __call__(self, sample):
        image = np.load(sample['img_path'])
        return dict(sample, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


@TRANSFORMS.register_module()
class LoadColourMap:
    """A loader of label maps in colours."""

    def __call__(self, sample):
        with Image.open(sample['seg_map_path']) as image:
            labels = np.asarray(image)[..., 0].astype(np.int64)
        return dict(sample, gt_seg_map=labels, seg_fields=['gt_seg_map'])


def test_images_for_a_loader_of_ones_own(ade):
    for file in list(ade.glob('images/training/*.png')):
        np.save(file.with_suffix('.npy'), np.zeros((128, 160, 5), np.uint8))
        file.unlink()
    check('mmseg', maps(ade, img_suffix='.npy', pipeline=[dict(type='LoadArray'), *LOAD_MAPS[1:]]))


def test_label_maps_for_a_loader_of_ones_own(ade):
    for file in ade.glob('annotations/training/*.png'):
        labels = np.maximum(np.array(Image.open(file)), 1) - 1
        Image.fromarray(np.stack([labels] * 3, -1)).save(file)
    pipeline = [LOAD_MAPS[0], dict(type='LoadColourMap'), LOAD_MAPS[2]]
    (line,) = check('mmseg', maps(ade, reduce_zero_label=False, pipeline=pipeline))
    assert 'background' in line


def test_label_maps_with_a_palette(ade):
    for file in ade.glob('annotations/training/*.png'):
        image = Image.fromarray(np.array(Image.open(file)), 'P')
        image.putpalette(list(range(0, 252, 12)))
        image.save(file)
    (line,) = check('mmseg', maps(ade))
    assert 'background' in line
    by_opencv = [LOAD_MAPS[0], dict(type='LoadAnnotations', imdecode_backend='cv2'), LOAD_MAPS[2]]
    with pytest.raises(DataError, match='colour channels'):
        check('mmseg', maps(ade, pipeline=by_opencv))


def test_label_maps_of_16_bits_whose_values_fit(ade):
    for file in ade.glob('annotations/training/*.png'):
        Image.fromarray(np.array(Image.open(file)).astype(np.uint16)).save(file)
    check('mmseg', maps(ade))


def test_label_maps_in_which_one_class_is_rare(ade):
    """Those of the sample hold 0 and 255 only, and another one holds the class."""
    folder = ade / 'annotations/training'
    for number in range(10, 40):
        labels = np.zeros((128, 160), np.uint8)
        labels[:9] = 255
        labels[20, 20] = number == 39
        Image.fromarray(labels).save(folder / f'{number:012d}.png')
        shutil.copy(
            ade / 'images/training/000000000001.png', ade / f'images/training/{number:012d}.png'
        )
    for file in [*folder.glob('00000000000?.png'), *ade.glob('images/training/00000000000?.png')]:
        file.unlink()
    metainfo = dict(classes=('ground', 'defect'))
    check('mmseg', maps(ade, reduce_zero_label=False, metainfo=metainfo))


def test_layout_of_cityscapes(ade):
    for file in ade.glob('images/training/*.png'):
        file.rename(file.with_name(f'{file.stem}_leftImg8bit.png'))
    for file in ade.glob('annotations/training/*.png'):
        file.rename(file.with_name(f'{file.stem}_gtFine_labelTrainIds.png'))
    dataset = maps(ade, type='CityscapesDataset')
    for key in ('img_suffix', 'metainfo', 'reduce_zero_label'):
        del dataset[key]
    (line,) = check('mmseg', dataset)
    assert 'CityscapesDataset with 4 images; pixels in 4 label maps: road' in line


def test_names_with_blanks_commas_and_umlauts(ade, tmp_path):
    check('mmseg', maps(ade.rename(tmp_path / 'maße, 1')))


def test_a_truncated_file_of_a_format_that_opencv_refuses(ade):
    for file in list(ade.glob('images/training/*.png')):
        with Image.open(file) as image:
            image.convert('RGB').save(file.with_suffix('.bmp'))
        file.unlink()
    check('mmseg', maps(ade, img_suffix='.bmp'))
    file = ade / 'images/training/000000000003.bmp'
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(DataError, match=r'000000000003\.bmp cannot be read'):
        check('mmseg', maps(ade, img_suffix='.bmp'))


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


def test_an_ignored_value_that_the_head_takes_for_a_class(ade):
    for file in ade.glob('annotations/training/*.png'):
        labels = np.array(Image.open(file))
        Image.fromarray(np.where(labels == 0, 99, labels - 1).astype(np.uint8)).save(file)
    dataset = maps(ade, reduce_zero_label=False, ignore_index=99)
    head = dict(type='FCNHead', num_classes=6)
    with pytest.raises(DataError, match=r'ignores label 99.*model\.decode_head ignores 255'):
        check('mmseg', dataset, decode_head=head)
    check('mmseg', dataset, decode_head=dict(head, ignore_index=99))


@pytest.mark.parametrize('reduce', [False, True])
def test_maps_of_0_and_255_only(ade, reduce):
    for file in ade.glob('annotations/training/*.png'):
        labels = np.array(Image.open(file))
        Image.fromarray(np.where(labels > 1, 255, 0).astype(np.uint8)).save(file)
    metainfo = dict(classes=('ground', 'object'))
    with pytest.raises(DataError, match='0 and 255 only'):
        check('mmseg', maps(ade, reduce_zero_label=reduce, metainfo=metainfo))
