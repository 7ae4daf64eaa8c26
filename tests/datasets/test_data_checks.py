"""What the data set of a run holds, asked before the run: one case per kind of input."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from overlock_mm.cli.arguments import PathAwareAction
from overlock_mm.cli.preflight import check_classes_of_weights, check_data
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.shapes import CLASSES, write_classification
from overlock_mm.utils.config import load_config
from tests.conftest import DEMO, ROOT

SEGMENTATION = str(ROOT / 'configs/demo/upernet_overlock_shapes.py')
CLASSIFICATION = str(ROOT / 'configs/demo/classifier_overlock_shapes.py')
BOTH = ('train', 'val')
HERE = ('train_dataloader.dataset', 'val_dataloader.dataset')


@pytest.fixture
def coco(shapes_root, tmp_path):
    """A copy of the COCO view; call it with a change of the annotation files."""
    root = shutil.copytree(shapes_root, tmp_path / 'coco')

    def apply(change, splits=BOTH):
        for split in splits:
            file = root / f'annotations/instances_{split}2017.json'
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content))
        return root

    return apply


@pytest.fixture
def ade(shapes_root, tmp_path):
    """A copy of the ADE20K view; call it with a change of every label map."""
    root = shutil.copytree(shapes_root.parent / 'ade', tmp_path / 'ade')

    def apply(change):
        for file in root.glob('annotations/*/*.png'):
            Image.fromarray(change(np.array(Image.open(file)))).save(file)
        return root

    return apply


@pytest.fixture
def folders(tmp_path):
    write_classification(tmp_path / 'classes', num_train=5, num_val=5)
    return tmp_path / 'classes'


def check(config, root, splits=BOTH, **options):
    return check_data(load_config(config, {'data_root': str(root), **options}), splits).lines


def message(config, root, **options):
    with pytest.raises(DataError) as caught:
        check(config, root, **options)
    return str(caught.value)


def for_both(key, value):
    return {f'{where}.{key}': value for where in HERE}


def each(name, function):
    return lambda content: [function(entry) for entry in content[name]]


WRONG_FILES = {
    'area 0': (each('annotations', lambda a: a.update(area=0)), BOTH, 'area is 0'),
    'relative boxes': (
        each('annotations', lambda a: a.update(bbox=[0.1, 0.1, 0.2, 0.3])),
        BOTH,
        'relative',
    ),
    'foreign images': (
        each('annotations', lambda a: a.update(image_id=a['image_id'] + 1000)),
        BOTH,
        'no image has their image_id',
    ),
    'shared ids': (each('images', lambda i: i.update(id=1)), BOTH, 'used more than once'),
    'no area': (each('annotations', lambda a: a.pop('area')), BOTH, "has no 'area'"),
    'no box': (each('annotations', lambda a: a.pop('bbox')), BOTH, "has no 'bbox'"),
    'no iscrowd': (each('annotations', lambda a: a.pop('iscrowd')), BOTH, "has no 'iscrowd'"),
    'no size': (each('images', lambda i: i.pop('height')), BOTH, 'no height and width'),
    'exchanged sizes': (
        each('images', lambda i: i.update(width=i['height'], height=i['width'])),
        BOTH,
        'exchanged',
    ),
    'two of one name': (
        lambda content: content['categories'].append({'id': 99, 'name': 'ring'}),
        BOTH,
        "all called 'ring'",
    ),
    'category id twice': (
        lambda content: content['categories'].append(dict(id=1, name='cat')),
        BOTH,
        'ids of categories are used more than once',
    ),
    'annotation id twice': (
        lambda content: content['annotations'][1].update(id=content['annotations'][0]['id']),
        BOTH,
        'ids of annotations are used more than once',
    ),
    'box as text': (
        lambda content: content['annotations'][1].update(bbox=['1', '2', '3', '4']),
        BOTH,
        'must be the four numbers',
    ),
    'box of two corners in a list': (
        lambda content: content['annotations'][1].update(bbox=[[1, 2], [3, 4]]),
        BOTH,
        'must be the four numbers',
    ),
    'only other categories': (
        lambda content: [c.update(name=c['name'].upper()) for c in content['categories']],
        BOTH,
        "has no category 'ellipse'",
    ),
    'category ids as text': (
        each('annotations', lambda a: a.update(category_id=str(a['category_id']))),
        BOTH,
        'that is none of the categories',
    ),
    'image ids as text': (
        each('annotations', lambda a: a.update(image_id=str(a['image_id']))),
        BOTH,
        'no image has their image_id',
    ),
    'small images': (
        lambda content: (
            each('images', lambda i: i.update(width=200, height=31))(content),
            each('annotations', lambda a: a.update(bbox=[5, 5, 20, 20], area=400))(content),
        ),
        BOTH,
        'smaller than filter_cfg.min_size',
    ),
    'no category in val': (
        lambda content: content['categories'].pop(),
        ('val',),
        "has no category 'triangle'",
    ),
    'order in val': (lambda content: content['categories'].reverse(), ('val',), 'another order'),
    'no masks': (each('annotations', lambda a: a.pop('segmentation')), BOTH, 'no segmentation'),
    'one empty mask': (
        lambda content: content['annotations'][-1].update(segmentation=[]),
        ('train',),
        'mask_head=None',
    ),
}


@pytest.mark.parametrize('case', WRONG_FILES)
def test_annotation_file(coco, case):
    change, splits, expected = WRONG_FILES[case]
    assert expected in message(DEMO, coco(change, splits))


def test_boxes_without_masks_have_a_config(coco):
    cfg = load_config(
        ROOT / 'configs/detection/cascade_overlock_t_boxes_only.py',
        {'data_root': str(coco(each('annotations', lambda a: a.pop('segmentation'))))},
    )
    for head in cfg.model.roi_head.bbox_head:
        head.num_classes = len(CLASSES)
    loaders = cfg.train_dataloader, cfg.val_dataloader
    for loader in loaders:
        loader.dataset.metainfo = dict(classes=CLASSES)
    data_sets = check_data(cfg, BOTH)
    for loader in loaders:
        sample = data_sets.get(loader.dataset)[0]['data_samples']
        assert len(sample.gt_instances.bboxes) > 0 and 'masks' not in sample.gt_instances


def test_classes_in_another_order_than_the_file(shapes_root):
    text = message(DEMO, shapes_root, **for_both('metainfo.classes', CLASSES[::-1]))
    assert 'another order' in text and str(tuple(CLASSES)) in text


def test_annotation_id_0_is_a_warning(coco):
    lines = check(DEMO, coco(lambda content: content['annotations'][0].update(id=0)))
    assert any(line.startswith('warning') and 'id 0' in line for line in lines)


def to_corners(annotation):
    x, y, width, height = annotation['bbox']
    annotation['bbox'] = [x, y, x + width, y + height]


def test_boxes_given_by_their_corners_are_a_warning(coco, shapes_root):
    lines = check(DEMO, coco(each('annotations', to_corners)))
    assert sum('boxes look like [x1, y1, x2, y2]' in line for line in lines) == 2
    assert not any('look like' in line for line in check(DEMO, shapes_root))


def test_report(shapes_root):
    train, val = check(DEMO, shapes_root)
    assert train.startswith('train_dataloader.dataset: CocoDataset with 4 images; objects: ellipse')
    assert val.startswith('val_dataloader.dataset: CocoDataset with 2 images')


def test_rotation_by_exif(shapes_root, tmp_path):
    root = shutil.copytree(shapes_root, tmp_path / 'coco')
    for file in root.glob('*2017/*.png'):
        image = Image.open(file)
        tags = image.getexif()
        tags[0x0112] = 6
        image.save(file, exif=tags)
    assert 'EXIF orientation turns it' in message(DEMO, root)


def test_classes_from_a_text_file(shapes_root, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    check(DEMO, shapes_root, **for_both('metainfo.classes', str(tmp_path / 'classes.txt')))


def test_more_outputs_than_classes(shapes_root):
    options = {'model.roi_head.mask_head.num_classes': 6}
    assert 'num_classes is 6, but' in message(DEMO, shapes_root, **options)


def test_masks_that_the_pipeline_ignores(shapes_root):
    """A loader that keeps polygons only ignores objects whose masks are run lengths."""
    cfg = load_config(DEMO, {'data_root': str(shapes_root)})
    load = next(t for t in cfg.train_pipeline if t.type == 'LoadAnnotations')
    load.poly2mask = False
    cfg.train_dataloader.dataset.pipeline = cfg.train_pipeline
    with pytest.raises(DataError, match='every object of .* ignored, .* Set poly2mask=True'):
        check_data(cfg, ('train',))


@pytest.mark.parametrize(
    ('setting', 'text'),
    [
        ('num_things_classes', 'model.panoptic_head.num_things_classes=5'),
        ('class_weight', 'panoptic_head.loss_cls.class_weight has 81 weights for 5 classes'),
    ],
)
def test_mask2former_and_the_number_of_classes(setting, text, shapes_root):
    data = load_config(DEMO, {'data_root': str(shapes_root)})
    cfg = load_config(ROOT / 'configs/detection/mask2former_ins_overlock_t.py')
    cfg.update({k: data[k] for k in ('train_dataloader', 'val_dataloader', 'val_evaluator')})
    if setting == 'class_weight':
        for head in (cfg.model.panoptic_head, cfg.model.panoptic_fusion_head):
            head.num_things_classes = 5
    with pytest.raises(DataError) as caught:
        check_data(cfg, BOTH)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ('second', 'text'),
    [
        (
            [
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_mask=True, poly2mask=False),
            ],
            'Set poly2mask=True',
        ),
        ([dict(type='NoSuchTransform')], 'NoSuchTransform'),
        ([dict(type='Resize', scale=(64, 64))], "KeyError: 'scale_factor'"),
    ],
)
def test_a_pipeline_that_a_hook_puts_in_place_later(second, text, shapes_root):
    hook = dict(type='PipelineSwitchHook', switch_epoch=9, switch_pipeline=second)
    error = message(DEMO, shapes_root, custom_hooks=[hook])
    assert error.startswith('custom_hooks.0.switch_pipeline')
    assert text in error


def test_a_pipeline_that_a_hook_puts_in_place_later_passes(shapes_root):
    pipeline = load_config(DEMO).train_pipeline
    hook = dict(type='PipelineSwitchHook', switch_epoch=9, switch_pipeline=pipeline)
    check(DEMO, shapes_root, custom_hooks=[hook])


@pytest.mark.parametrize('where', ['part 1 of train_dataloader', 'custom_hooks.0.switch_pipeline'])
def test_samples_of_other_pipelines_that_lack_something(where, shapes_root):
    cfg = load_config(DEMO, {'data_root': str(shapes_root)})
    boxes = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ]
    if where.startswith('part'):
        parts = [cfg.train_dataloader.dataset, dict(cfg.train_dataloader.dataset, pipeline=boxes)]
        cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    else:
        cfg.custom_hooks = [dict(type='PipelineSwitchHook', switch_pipeline=boxes)]
    lines = check_data(cfg, ('train',)).lines
    (text,) = (line for line in lines if 'have no' in line)
    assert text.startswith(f'warning: samples of {where}')
    assert 'gt_instances.masks' in text


def test_a_checkpoint_of_classes_in_another_order(shapes_root):
    sets = check_data(load_config(DEMO, {'data_root': str(shapes_root)}), ('val',))
    for trained in ({}, dict(classes=()), dict(classes=CLASSES)):
        check_classes_of_weights(trained, sets, 'val')
    with pytest.raises(DataError, match='classes of val are not those of the checkpoint'):
        check_classes_of_weights(dict(classes=CLASSES[::-1]), sets, 'val')


WRONG_MAPS = {
    '16 bits': (lambda x: x.astype(np.uint16) + 256, 'keeps 8 bits'),
    'colours': (lambda x: np.stack([x] * 3, -1), 'picture in 3 colour channels'),
    'half size': (lambda x: np.ascontiguousarray(x[::2, ::2]), 'Resize the label map'),
    'out of range': (lambda x: x + 100, 'has label'),
}


@pytest.mark.parametrize('case', WRONG_MAPS)
def test_label_maps(ade, case):
    change, expected = WRONG_MAPS[case]
    assert expected in message(SEGMENTATION, ade(change))


def two_classes():
    return {
        **for_both('metainfo.classes', ('background', 'object')),
        **for_both('metainfo.palette', [(0, 0, 0), (255, 255, 255)]),
        **for_both('reduce_zero_label', False),
    }


def test_maps_of_0_and_255(ade):
    root = ade(lambda x: np.where(x > 1, 255, 0).astype(np.uint8))
    assert '0 and 255 only' in message(SEGMENTATION, root, **two_classes())


@pytest.mark.slow
def test_another_ignored_value(ade):
    root = ade(lambda x: np.where(x == 0, 99, x - 1).astype(np.uint8))
    options = {**for_both('reduce_zero_label', False), **for_both('ignore_index', 99)}
    for part in ('model.decode_head', 'model.auxiliary_head', 'val_evaluator'):
        assert f'{part.partition(".")[2] or "IoUMetric"} ignores 255' in message(
            SEGMENTATION, root, **options
        )
        options[f'{part}.ignore_index'] = 99
    check(SEGMENTATION, root, **options)


def test_suffix_that_begins_without_a_dot(ade):
    root = ade(lambda x: x)
    for file in root.glob('annotations/*/*.png'):
        file.rename(file.with_name(f'{file.stem}_mask.png'))
    check(SEGMENTATION, root, **for_both('seg_map_suffix', '_mask.png'))


def test_folders_in_another_order(folders):
    text = message(CLASSIFICATION, folders, **for_both('metainfo.classes', CLASSES[::-1]))
    assert 'alphabetical order' in text


def test_a_class_without_a_picture(folders):
    for file in (folders / 'train' / CLASSES[1]).iterdir():
        file.unlink()
    lines = check(CLASSIFICATION, folders)
    assert any(f'no image of 1 of 5 classes: {CLASSES[1]!r}' in line for line in lines)


def test_hidden_folder(folders):
    (folders / 'train/.ipynb_checkpoints').mkdir()
    assert '.ipynb_checkpoints would become a class' in message(CLASSIFICATION, folders)


def test_validation_lacks_a_class(folders):
    shutil.rmtree(folders / 'val' / CLASSES[0])
    cfg = load_config(CLASSIFICATION, {'data_root': str(folders)})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.type = 'CustomDataset'
        loader.dataset.pop('metainfo')
        loader.dataset.data_prefix = loader.dataset.pop('split')
    with pytest.raises(DataError, match='classes of val are not those of train'):
        check_data(cfg, BOTH)


def test_top_9_of_five_classes(folders):
    wrong = {'val_evaluator.0.topk': (1, 9)}
    assert 'the top 9 of 5 classes' in message(CLASSIFICATION, folders, **wrong)


def test_a_path_with_blanks_and_commas_stays_whole(tmp_path):
    from argparse import ArgumentParser

    folder = tmp_path / 'two words, 1'
    folder.mkdir()
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=PathAwareAction)
    parsed = parser.parse_args(['--cfg-options', f'data_root={folder}', 'a.b=1', 'c=x,y'])
    assert parsed.cfg_options == {'data_root': str(folder), 'a.b': 1, 'c': ['x', 'y']}
