"""The inference interfaces of mmdet, mmseg and mmpretrain take our configs, without a network."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(url, *args, **kwargs):
        raise AssertionError(f'downloads {url}')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)


@pytest.fixture
def untrained(tmp_path):
    """Path of a demo config and of a checkpoint with the names of its classes."""

    def make(name, metainfo):
        config = ROOT / f'configs/demo/{name}_overlock_shapes.py'
        cfg = load_config(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        path = tmp_path / 'weights.pth'
        meta = {'dataset_meta': {key: metainfo[key] for key in ('classes', 'palette')}}
        torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
        return str(config), str(path)

    return make


def test_mmdet(untrained, image):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    config, weights = untrained('cascade', METAINFO)
    model = init_detector(config, weights, device='cpu')
    assert model.dataset_meta['classes'] == METAINFO['classes']
    assert inference_detector(model, image).pred_instances.bboxes.shape[1] == 4
    inferencer = DetInferencer(config, weights, device='cpu', show_progress=False)
    (prediction,) = inferencer(image, no_save_vis=True)['predictions']
    assert set(prediction) >= {'labels', 'scores', 'bboxes', 'masks'}


def test_mmseg(untrained, image):
    from mmseg.apis import MMSegInferencer

    config, weights = untrained('upernet', SEMANTIC_METAINFO)
    inferencer = MMSegInferencer(
        config,
        weights,
        classes=SEMANTIC_METAINFO['classes'],
        palette=SEMANTIC_METAINFO['palette'],
        device='cpu',
    )
    assert inferencer(image)['predictions'].shape == image.shape[:2]


def test_mmpretrain(untrained, image):
    from mmpretrain import ImageClassificationInferencer

    config, weights = untrained('classifier', METAINFO)
    inferencer = ImageClassificationInferencer(config, pretrained=weights, device='cpu')
    (prediction,) = inferencer(image)
    assert prediction['pred_class'] in METAINFO['classes']
    assert sum(prediction['pred_scores']) == pytest.approx(1, abs=1e-4)
