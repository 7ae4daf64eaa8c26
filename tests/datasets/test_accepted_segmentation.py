"""What mmseg trains on, no check refuses: one case per kind of data."""

import shutil

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

from overlock_mm.datasets.checks import DataError
from tests.datasets.accepted import LOAD_MAPS, check, maps


@pytest.fixture
def ade(shapes_root, tmp_path):
    return shutil.copytree(shapes_root.parent / 'ade', tmp_path / 'ade')


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


def test_other_classes_for_the_data_set_of_a_benchmark(ade):
    dataset = maps(ade, type='ADE20KDataset', reduce_zero_label=True)
    with pytest.raises(DataError, match=r"ADE20KDataset has classes .* type to 'BaseSegDataset'"):
        check('mmseg', dataset)
    (line,) = check('mmseg', dict(dataset, metainfo=dict(classes=('floor', 'wall'))))
    assert 'pixels in 4 label maps: floor' in line


def test_pictures_whose_ending_is_written_in_capitals(ade):
    folder = ade / 'images/training'
    (folder / '000000000001.png').rename(folder / '000000000001.PNG')
    (folder / '._0.jpg').touch()
    warning, line = check('mmseg', maps(ade))
    assert 'leaves out 1 pictures' in warning and '000000000001.PNG' in warning
    assert 'with 3 images' in line


def test_label_maps_as_jpeg(ade):
    for file in list(ade.glob('annotations/training/*.png')):
        # Of one value, which JPEG keeps.
        Image.new('L', (160, 128), 1).save(file.with_suffix('.jpg'))
        file.unlink()
    warning, _ = check('mmseg', maps(ade, seg_map_suffix='.jpg'))
    assert 'are JPEG files, which change values' in warning
