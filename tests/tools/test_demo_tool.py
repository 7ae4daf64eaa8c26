"""demo.py: pictures and videos, with the answers of the three libraries' inferencers, offline."""

import json
import resource

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer
from PIL import Image

from overlock_mm import Predictor
from overlock_mm.analysis.networks import dataset_meta
from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO
from overlock_mm.runtime.drawing import enlarging_factor
from overlock_mm.utils.config import load_config
from tools.visualization import demo


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(url, *args, **kwargs):
        raise AssertionError(f'downloads {url}')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """Three frames of 64 x 96 pixels."""
    path = tmp_path_factory.mktemp('video') / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (96, 64))
    for frame in np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    return path


def test_detector(untrained, pictures, tmp_path):
    config, weights = untrained('detection')
    options = ['--score-thr', '0.05', '--out-dir', str(tmp_path)]
    content = demo.main([str(pictures), config, weights, *options])
    assert content == json.loads((tmp_path / 'predictions.json').read_text())
    assert list(content['pictures']) == [str(pictures / 'a.png'), str(pictures / 'b.jpg')]
    inferencer = DetInferencer(config, weights, device='cpu', show_progress=False)
    (expected,) = inferencer(str(pictures / 'a.png'), no_save_vis=True)['predictions']
    objects = content['pictures'][str(pictures / 'a.png')]
    assert len(objects) == 5
    for i, detection in enumerate(objects):
        assert detection['class'] == METAINFO['classes'][expected['labels'][i]]
        assert detection['score'] == pytest.approx(expected['scores'][i], abs=1e-4)
        assert detection['box'] == pytest.approx(expected['bboxes'][i], abs=0.1)
        assert detection['mask'] == expected['masks'][i]
    model = init_detector(config, weights, device='cpu')
    assert model.dataset_meta['classes'] == METAINFO['classes']
    found = inference_detector(model, str(pictures / 'a.png'))
    assert found.pred_instances.scores[:5].tolist() == pytest.approx(expected['scores'][:5])
    with Image.open(tmp_path / 'a.png') as drawn, Image.open(pictures / 'a.png') as picture:
        assert drawn.size == tuple(enlarging_factor(np.asarray(picture)) * s for s in picture.size)


def test_detections_below_the_threshold(untrained, pictures, tmp_path):
    arguments = [str(pictures / 'a.png'), *untrained('detection'), '--score-thr', '0.99']
    content = demo.main([*arguments, '--out-dir', str(tmp_path)])
    assert content['pictures'][str(pictures / 'a.png')] == []


def test_segmentor(untrained, pictures, tmp_path):
    config, weights = untrained('segmentation')
    content = demo.main([str(pictures / '*.jpg'), config, weights, '--out-dir', str(tmp_path)])
    classes, palette = SEMANTIC_METAINFO['classes'], SEMANTIC_METAINFO['palette']
    inferencer = MMSegInferencer(config, weights, classes, palette, device='cpu')
    labels = inferencer(str(pictures / 'b.jpg'))['predictions']
    (shares,) = content['pictures'].values()
    assert shares == {
        classes[i]: pytest.approx((labels == i).mean(), abs=1e-4) for i in np.unique(labels)
    }
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    with Image.open(tmp_path / 'b.png') as drawn:
        assert drawn.size == (96 * 4, 100 * 4)


def test_classifier(untrained, pictures, tmp_path):
    config, weights = untrained('classification')
    content = demo.main([str(pictures / 'b.jpg'), config, weights, '--out-dir', str(tmp_path)])
    (best,) = content['pictures'].values()
    (expected,) = ImageClassificationInferencer(config, weights)(str(pictures / 'b.jpg'))
    assert sum(expected['pred_scores']) == pytest.approx(1, abs=1e-4)
    assert best[0]['class'] == expected['pred_class']
    assert best[0]['score'] == pytest.approx(expected['pred_score'], abs=1e-4)
    assert {entry['class'] for entry in best} == set(METAINFO['classes'])
    assert (tmp_path / 'b.png').is_file()


def test_video(untrained, video, tmp_path):
    content = demo.main([str(video), *untrained('segmentation'), '--out-dir', str(tmp_path)])
    frames = content['video']['frames']
    assert len(frames) == 3
    assert all(sum(frame.values()) == pytest.approx(1, abs=1e-3) for frame in frames)
    written = mmcv.VideoReader(str(tmp_path / 'clip.mp4'))
    assert (len(written), written.fps) == (3, 5)
    assert (written.width, written.height) == (6 * 96, 6 * 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['clip.mp4', 'predictions.json']


def test_without_space_nothing_is_left(untrained, pictures, video, tmp_path, fails):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, source in (('b.png', pictures / 'b.jpg'), ('clip.mp4', video)):
        out = tmp_path / name
        arguments = [source, *untrained('classification'), '--out-dir', out]
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
        try:
            message = fails(demo.main, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert f'{out / name}' in message or f'{out}/.partial-{name} could not be' in message
        assert list(out.iterdir()) == []


def test_what_is_drawn_has_the_colours_of_the_picture(untrained, pictures):
    # An earlier predictor of another library is no hindrance.
    Predictor(*untrained('segmentation'))
    predictor = Predictor(*untrained('classification'))
    blue = np.zeros((96, 96, 3), np.uint8)
    blue[..., 2] = 200
    drawn = np.asarray(predictor(blue).draw())
    assert drawn[-20:, -20:].mean((0, 1)).tolist() == pytest.approx([0, 0, 200], abs=2)


def test_names_of_classes_without_a_checkpoint_that_has_them():
    cfg = load_config('configs/segmentation/upernet_overlock_t.py')
    meta = dataset_meta(cfg, {})
    assert len(meta['classes']) == len(meta['palette']) == 150
    assert dataset_meta(cfg, {'dataset_meta': {'CLASSES': ('a', 'b')}}) == {'classes': ('a', 'b')}
    cfg = load_config('configs/demo/cascade_overlock_shapes.py')
    assert dataset_meta(cfg, {})['classes'] == METAINFO['classes']


def test_bad_input(fails, untrained, pictures, tmp_path):
    config, weights = untrained('classification')
    out = ['--out-dir', tmp_path / 'out']
    assert 'not a BMP' in fails(demo.main, pictures / 'notes.txt', config, weights, *out)
    assert '/no/where' in fails(demo.main, '/no/where', config, weights, *out)
    (tmp_path / 'clip.mp4').write_text('no video')
    message = fails(demo.main, tmp_path / 'clip.mp4', config, weights, *out)
    assert 'cannot be read as a video' in message
    message = fails(demo.main, pictures, config, weights, '--score-thr', '30', *out)
    assert 'in [0, 1), got 30' in message
    message = fails(demo.main, pictures, config, tmp_path / 'no.pth', *out)
    assert 'no.pth' in message
    _, others = untrained('segmentation')
    assert 'does not fit the model' in fails(demo.main, pictures, config, others, *out)
    other = tmp_path / 'other.py'
    other.write_text("default_scope = 'mmpose'\n")
    message = fails(demo.main, pictures, other, weights, *out)
    assert "default_scope='mmpose'; known are 'mmdet' (detection)" in message
    (tmp_path / 'file').write_text('')
    message = fails(demo.main, pictures, config, weights, '--out-dir', tmp_path / 'file' / 'out')
    assert 'is not writable' in message
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_pictures_of_five_bands(task, of_five_bands, tmp_path):
    tifffile = pytest.importorskip('tifffile', reason='tifffile reads pictures of five bands')
    bands = np.random.default_rng(0).integers(0, 255, (96, 128, 5), dtype=np.uint8)
    tifffile.imwrite(tmp_path / 'five.tif', bands, photometric='minisblack', planarconfig='contig')
    arguments = [str(tmp_path / 'five.tif'), *of_five_bands(task)]
    content = demo.main([*arguments, '--out-dir', str(tmp_path / 'out')])
    assert list(content['pictures']) == [str(tmp_path / 'five.tif')]
    with Image.open(tmp_path / 'out/five.png') as drawn:
        assert drawn.width == drawn.height * 128 / 96 >= 3 * 128  # enlarged


@pytest.mark.parametrize(('height', 'width'), [(1, 2000), (2000, 1), (20, 4000)])
def test_strips_are_enlarged_within_bounds(height, width):
    assert enlarging_factor(np.zeros((height, width, 3), np.uint8)) == 1


def test_a_strip_that_cannot_be_resized_is_named(untrained, fails, tmp_path):
    config, weights = untrained('detection')
    Image.new('RGB', (2000, 1)).save(tmp_path / 'strip.png')
    message = fails(
        demo.main, tmp_path / 'strip.png', config, weights, '--out-dir', tmp_path / 'out'
    )
    assert f'{tmp_path}/strip.png is 2000 x 1 pixels' in message
