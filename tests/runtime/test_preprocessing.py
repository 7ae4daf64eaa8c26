"""Pictures become what the pipelines of the shipped configs make of them."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from overlock_mm.export.description import describe
from overlock_mm.export.parts import Exportable
from overlock_mm.runtime import ModelDescription, ModelFileError
from overlock_mm.runtime.pictures import read_picture
from overlock_mm.runtime.preprocessing import prepare
from overlock_mm.utils.config import innermost_dataset, load_config
from tests.conftest import ROOT

CONFIGS = (
    'classification/overlock_t',
    'segmentation/upernet_overlock_t',
    'detection/cascade_overlock_t',
    'detection/rtmdet_ins_overlock_t',
    'demo/cascade_overlock_shapes',
)


def described(cfg, **options):
    part = Exportable(torch.nn.Module())
    part.task = 'detection'
    settings = dict(classes=(), palette=(), size=None, normalises=False)
    names = dict(config='cfg', checkpoint_sha256='')
    return describe(cfg, part, **{**settings, **names, **options})


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('suffix', ('png', 'jpg'))
def test_pictures_of_a_pipeline(name, suffix, tmp_path):
    path = tmp_path / f'picture.{suffix}'
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3)).astype(np.uint8)
    # Turned by EXIF data, which detectors follow and the classifiers do not.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((166, 122)).save(path, exif=exif)

    cfg = load_config(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    steps = innermost_dataset(cfg.test_dataloader.dataset).pipeline
    pipeline = Compose([step for step in steps if 'LoadAnnotations' not in step['type']])
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    data = preprocessor(pseudo_collate([pipeline({'img_path': str(path), 'img_id': 0})]))

    description = described(cfg)
    prepared = prepare(read_picture(path, exif=description.exif), description)
    expected = data['inputs'][0].numpy()
    assert prepared.values.shape == expected.shape
    # One grey value is 0.017; OpenCV's bicubic filter may round to the next.
    np.testing.assert_allclose(prepared.values, expected, atol=0.018 if 'upernet' in name else 1e-5)
    meta = data['data_samples'][0].metainfo
    if name.startswith('detection'):
        assert prepared.counted == tuple(meta['img_shape'])
        assert prepared.scale == pytest.approx(meta['scale_factor'])
    assert prepared.original == tuple(meta['ori_shape'])


def test_a_fixed_size_and_raw_values():
    cfg = load_config(ROOT / 'configs/detection/cascade_overlock_t.py')
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    prepared = prepare(image, described(cfg, size=(64, 96)))
    raw = prepare(image, described(cfg, size=(64, 96), normalises=True))
    assert prepared.counted == (64, 50)
    assert not prepared.values[:, :, 50:].any()
    preprocessor = cfg.model.data_preprocessor
    mean, std = (np.array(preprocessor[key])[:, None, None] for key in ('mean', 'std'))
    np.testing.assert_allclose((raw.values - mean) / std, prepared.values, atol=1e-5)


def test_a_pipeline_that_has_no_form():
    cfg = load_config(ROOT / 'configs/detection/cascade_overlock_t.py')
    innermost_dataset(cfg.test_dataloader.dataset).pipeline.insert(
        1, ConfigDict(type='PhotoMetricDistortion')
    )
    description = described(cfg)
    assert description.steps is None
    with pytest.raises(ModelFileError, match='does more than the metadata'):
        prepare(np.zeros((8, 8, 3), np.uint8), description)


def test_a_step_of_a_newer_package():
    description = ModelDescription(
        'detection', steps=({'step': 'rotate', 'filter': '', 'backend': ''},)
    )
    with pytest.raises(ModelFileError, match="step 'rotate'.*--upgrade"):
        prepare(np.zeros((8, 8, 3), np.uint8), description)
