"""Defects of data sets are reported with the file and the remedy, as early as possible."""

import json
import shutil

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import DataError, watch_files
from overlock_mm.datasets.shapes import CLASSES, write_classification
from overlock_mm.utils.config import load_config
from tests.conftest import DEMO, ROOT
from tools import train as train_tool

SEGMENTATION = str(ROOT / 'configs/demo/upernet_overlock_shapes.py')
CLASSIFICATION = str(ROOT / 'configs/demo/classifier_overlock_shapes.py')


@pytest.fixture
def data(shapes_root, tmp_path):
    """A copy of the drawn data set that a test may spoil."""
    return shutil.copytree(shapes_root.parent, tmp_path / 'data')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Five folders with a picture of each class."""
    root = tmp_path_factory.mktemp('classification') / 'data'
    write_classification(root, num_train=5, num_val=5)
    return root


def message_for(config, root, splits=('train',), **options):
    with pytest.raises(DataError) as caught:
        check_data(load_config(config, {'data_root': str(root), **options}), splits)
    return str(caught.value)


@pytest.fixture
def change(data):
    """Change the training annotations with a function of their content; returns the file."""
    file = data / 'coco/annotations/instances_train2017.json'

    def apply(function):
        content = json.loads(file.read_text())
        function(content)
        file.write_text(json.dumps(content))
        return file

    return apply


def test_sound_data_passes(data, folders):
    for config, root in ((DEMO, data / 'coco'), (SEGMENTATION, data / 'ade')):
        check_data(load_config(config, {'data_root': str(root)}), ('train', 'val', 'test'))
    check_data(load_config(CLASSIFICATION, {'data_root': str(folders)}), ('train', 'val', 'test'))


def test_no_annotation(data, change):
    file = change(lambda content: content['annotations'].clear())
    message = message_for(DEMO, data / 'coco')
    assert f'{file} (train_dataloader.dataset.ann_file) has 4 images and no annotation' in message
    assert '--cfg-options train_dataloader.dataset.ann_file=FILE' in message


def test_class_that_the_file_does_not_know(data):
    message = message_for(
        DEMO, data / 'coco', **{'train_dataloader.dataset.metainfo.classes': ['zebra', CLASSES[0]]}
    )
    assert "has no category 'zebra'" in message
    assert 'metainfo.classes' in message


def test_classes_of_coco_for_other_data(shapes_root):
    message = message_for(ROOT / 'configs/detection/cascade_overlock_s.py', shapes_root)
    assert "has no category 'person', 'bicycle'" in message


def test_categories_left_out_are_no_error(shapes_root):
    options = {'train_dataloader.dataset.metainfo.classes': list(CLASSES[:2])}
    check_data(load_config(DEMO, {'data_root': str(shapes_root), **options}), ('train',))


def test_annotations_in_another_format(data, change):
    file = change(lambda content: content.pop('categories'))
    assert f'{file} (train_dataloader.dataset.ann_file) is not in the format of COCO' in (
        message_for(DEMO, data / 'coco')
    )


def test_missing_image(data):
    image = data / 'coco/train2017/000000000002.png'
    image.unlink()
    assert f'{image} is missing' in message_for(DEMO, data / 'coco')


def test_missing_label_map(data):
    label_map = data / 'ade/annotations/training/000000000002.png'
    label_map.unlink()
    assert f'{label_map} is missing' in message_for(SEGMENTATION, data / 'ade')


def test_images_with_another_ending(data):
    message = message_for(
        SEGMENTATION, data / 'ade', **{'train_dataloader.dataset.img_suffix': '.tif'}
    )
    assert f'{data}/ade/images/training' in message
    assert 'img_suffix' in message


def test_more_folders_than_classes(folders, tmp_path):
    root = shutil.copytree(folders, tmp_path / 'data')
    (root / 'train/zebra').mkdir()
    message = message_for(CLASSIFICATION, root)
    assert f'{root}/train (train_dataloader.dataset.data_prefix) has 6 folders' in message
    assert 'zebra' in message


def test_model_with_too_few_classes(shapes_root):
    message = message_for(
        DEMO, shapes_root, **{'model.roi_head.mask_head.num_classes': 4, 'model.x': 1}
    )
    assert '--cfg-options model.roi_head.mask_head.num_classes=5' in message


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


def dataset_of(config, root):
    cfg = load_config(config, {'data_root': str(root)})
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        dataset = registry.build(cfg.train_dataloader.dataset)
    watch_files(dataset)
    return dataset


def test_truncated_image_ends_training_with_its_name(data, tiny_run, tmp_path, capsys):
    image = truncate(data / 'coco/train2017/000000000003.png')
    options = [f'data_root={data}/coco' if 'data_root' in o else o for o in tiny_run]
    with pytest.raises(SystemExit) as ended:
        train_tool.main([DEMO, '--work-dir', str(tmp_path / 'work'), *options])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert f'error: {image} cannot be read as an image' in message
    assert 'Copy it again' in message


def test_an_error_in_a_worker_reads_the_same(data):
    label_map = truncate(data / 'ade/annotations/training/000000000001.png')
    loader = DataLoader(dataset_of(SEGMENTATION, data / 'ade'), num_workers=1, collate_fn=list)
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith(f'{label_map} cannot be read as an image')


@pytest.mark.parametrize('cut', [2, 1000])
@pytest.mark.slow
def test_truncated_jpeg(tmp_path, data, cut):
    dataset = dataset_of(SEGMENTATION, data / 'ade')
    image = tmp_path / 'photo.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    check_files = dataset.pipeline.transforms[0]
    check_files({'img_path': str(image)})
    # Bytes after the end do no harm, and some data sets have them.
    whole = image.read_bytes()
    image.write_bytes(whole + b'\0\0')
    check_files({'img_path': str(image)})
    image.write_bytes(whole[:-cut])
    with pytest.raises(DataError, match=r'photo\.jpg cannot be read'):
        check_files({'img_path': str(image)})


def test_label_out_of_range(data):
    label_map = data / 'ade/annotations/training/000000000002.png'
    labels = np.array(Image.open(label_map))
    labels[5, 7] = 40
    Image.fromarray(labels).save(label_map)
    dataset = dataset_of(SEGMENTATION, data / 'ade')
    assert dataset[0]['data_samples'].gt_sem_seg.data.max() == 255  # what is ignored may occur
    with pytest.raises(DataError) as caught:
        dataset[1]
    # With reduce_zero_label.
    assert f'{label_map} has label 39' in str(caught.value)
    assert 'the data set has 6 classes' in str(caught.value)
