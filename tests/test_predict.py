"""``Predictor``: one answer from a file and from a config with weights, with and without torch."""

import json
import sys

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image

from overlock_mm import Predictor
from overlock_mm.runtime import ModelDescription, ModelFileError
from overlock_mm.runtime.description import KEY
from tools.deployment import export_onnx
from tools.visualization import demo


@pytest.fixture(scope='module')
def files(untrained, tmp_path_factory):
    """Config and weights of a detector, and the file that was exported from them."""
    config, weights = untrained('detection')
    out = tmp_path_factory.mktemp('exported') / 'detector.onnx'
    export_onnx.main([config, weights, str(out), '--dynamic', '--no-check'])
    return config, weights, out


@pytest.fixture
def pictures(tmp_path):
    """Three pictures, two of one size."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (('a.png', (64, 96)), ('b.jpg', (50, 70)), ('c.png', (64, 96))):
        pixels = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    np.testing.assert_allclose(actual.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-4)
    assert actual.names == expected.names
    assert (actual.masks != expected.masks).mean() < 1e-3


@pytest.mark.slow
def test_a_file_and_its_config_give_one_answer(files, pictures):
    config, weights, out = files
    expected = Predictor(config, weights)(pictures)
    actual = Predictor(out)(pictures)
    assert [result.source for result in actual] == [str(p) for p in sorted(pictures.iterdir())]
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)
    # In batches, from arrays and one by one.
    batched = Predictor(out, batch_size=3)
    for one, other in zip(batched(str(pictures / '*')), actual, strict=True):
        assert_same(one, other)
    assert_same(batched(actual[0].image), actual[0])
    assert_same(batched(Image.open(pictures / 'a.png')), actual[0])
    (entry, *_) = actual[0].to_coco(7, category_ids=(10, 20, 30, 40, 50))
    assert entry['category_id'] == 10 * (int(actual[0].labels[0]) + 1)
    assert entry['segmentation']['size'] == [64, 96]
    assert entry['bbox'][2] == pytest.approx(float(np.diff(actual[0].boxes[0, ::2])[0]))


@pytest.mark.slow
@pytest.mark.parametrize('task', ('detection', 'segmentation'))
def test_five_bands(task, of_five_bands, tmp_path):
    config, weights = of_five_bands(task)
    out = tmp_path / 'bands.onnx'
    export_onnx.main([config, weights, str(out), '--dynamic', '--no-check'])
    file, model = Predictor(out), Predictor(config, weights)
    assert file.channels == model.channels == 5
    bands = np.random.default_rng(0).integers(0, 255, (70, 90, 5), dtype=np.uint8)
    actual, expected = file(bands), model(bands)
    if task == 'detection':
        assert_same(actual, expected)
        return
    assert (actual.label_map == expected.label_map).mean() > 0.999
    assert actual.draw().size == expected.draw().size
    with pytest.raises(ValueError, match=r'arrays \[H, W, 5\], got \[70, 90, 3\]'):
        file(bands[..., :3])
    tifffile = pytest.importorskip('tifffile', reason='tifffile reads pictures of five bands')
    path = tmp_path / 'bands.tif'
    tifffile.imwrite(path, bands, photometric='minisblack', planarconfig='contig')
    assert file(path).to_dict() == actual.to_dict()
    tifffile.imwrite(path, bands[..., :4], photometric='minisblack', planarconfig='contig')
    with pytest.raises(ValueError, match=r'bands\.tif holds \[70, 90, 4\]'):
        file(path)
    (tmp_path / 'no.tif').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'no\.tif cannot be read as a TIFF file'):
        file(tmp_path / 'no.tif')


@pytest.mark.slow
def test_a_file_runs_without_torch(files, pictures, run_python, tmp_path):
    code = """
import json, sys
blocked = 'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'rich'
sys.modules.update(dict.fromkeys(blocked))
from overlock_mm import Predictor
results = Predictor(sys.argv[1])(sys.argv[2], progress=True)
results[0].draw().save(sys.argv[3])
json.dump([result.to_dict() for result in results], open(sys.argv[4], 'w'))
"""
    _, _, out = files
    drawn, answers = tmp_path / 'drawn.png', tmp_path / 'answers.json'
    done = run_python('-c', code, out, pictures, drawn, answers)
    assert done.returncode == 0, done.stderr
    assert '3 of 3 pictures' in done.stdout
    expected = [result.to_dict() for result in Predictor(out)(pictures)]
    assert json.loads(answers.read_text()) == expected
    with Image.open(drawn) as image:
        assert image.size == (96 * 6, 64 * 6)  # enlarged


@pytest.mark.slow
def test_frames_of_a_video(files, tmp_path, capsys):
    path = tmp_path / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (96, 64))
    for frame in np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    predictor = Predictor(files[2])
    results = list(predictor.stream(path))
    assert [result.image.shape for result in results] == [(64, 96, 3)] * 3
    for one, other in zip(predictor(str(path), progress=True), results, strict=True):
        assert_same(one, other)
    assert '3 of 3 pictures' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('source', 'error', 'words'),
    (
        ([], ValueError, 'list of pictures is empty'),
        ('none.jpg', FileNotFoundError, 'There is no picture'),
        (np.zeros((8, 8, 4)), ValueError, r'arrays \[H, W, 3\], got \[8, 8, 4\]'),
        (7, TypeError, 'got int'),
        (b'a.jpg', TypeError, 'got bytes'),
        (np.array([['a']] * 3)[..., None].repeat(3, 2), ValueError, 'arrays of numbers'),
        (np.full((8, 8, 3), np.nan), ValueError, 'NaN'),
        (np.full((8, 8, 3), 0.5), ValueError, 'are from 0 to 1. Multiply them by 255'),
    ),
)
def test_pictures_that_are_none(source, error, words, tmp_path):
    predictor = Predictor(small_file(tmp_path))
    with pytest.raises(error, match=words):
        predictor(source)


def test_a_picture_that_is_damaged(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'a\.png cannot be read as a picture'):
        Predictor(small_file(tmp_path))(tmp_path / 'a.png')


def small_file(folder, **metadata):
    """A file of a classifier that averages the picture."""
    path = folder / 'small.onnx'
    node = onnx.helper.make_node('ReduceMean', ['image'], ['scores'], axes=[2, 3], keepdims=0)
    shapes = (['batch', 3, 'height', 'width'], ['batch', 3])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(('image', 'scores'), shapes, strict=True)
    ]
    graph = onnx.helper.make_graph([node], 'small', values[:1], values[1:])
    opset = onnx.helper.make_opsetid('', 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    description = ModelDescription(
        'classification',
        ('red', 'green', 'blue'),
        head={'scores': 'softmax'},
        mean=(2.0, 2.0, 2.0),
        std=(1.0, 1.0, 1.0),
    )
    onnx.helper.set_model_props(model, metadata or {KEY: description.to_json()})
    onnx.save(model, path)
    return path


def test_channels_are_red_green_and_blue(tmp_path):
    image = np.zeros((5, 6, 3), np.uint8)
    image[..., 2] = 9
    result = Predictor(small_file(tmp_path))(image)
    assert result.names == ['blue']
    assert result.best(1) == [('blue', 7.0)]
    Image.fromarray(image).save(tmp_path / 'blue.png')
    assert Predictor(small_file(tmp_path))(tmp_path / 'blue.png').names == ['blue']


@pytest.mark.parametrize(
    ('make', 'error', 'words'),
    (
        (lambda folder: folder / 'none.onnx', FileNotFoundError, 'is not there'),
        (lambda folder: folder, FileNotFoundError, 'is a folder'),
        (lambda folder: small_file(folder, task='x'), ModelFileError, 'holds no metadata'),
        (
            lambda folder: small_file(folder, **{KEY: ModelDescription('features').to_json()}),
            ModelFileError,
            'ends in maps of features',
        ),
    ),
)
def test_files_that_are_not_run(make, error, words, tmp_path):
    with pytest.raises(error, match=words):
        Predictor(make(tmp_path))


def test_files_of_another_kind(tmp_path):
    (tmp_path / 'damaged.onnx').write_bytes(b'damaged')
    with pytest.raises(ModelFileError, match='cannot be loaded by ONNX Runtime: it is damaged'):
        Predictor(tmp_path / 'damaged.onnx')
    for suffix, words in (
        ('.pth', r'Predictor\(config, weights\)'),
        ('.pt2', 'torch.export.load reads it'),
        ('.bin', 'Give the .xml file'),
        ('.xml', 'weights.bin belongs into the same folder'),
    ):
        path = tmp_path / f'weights{suffix}'
        path.write_bytes(b'')
        if suffix == '.xml':
            path.with_suffix('.bin').unlink()
        with pytest.raises(ModelFileError, match=words):
            Predictor(path)
    with pytest.raises(ValueError, match=r"holds its weights: Predictor\('model\.onnx'\)"):
        Predictor('model.onnx', 'weights.pth')
    with pytest.raises(ValueError, match=r"Predictor\('config\.py', weights\)"):
        Predictor('config.py')


@pytest.mark.parametrize(
    ('module', 'suffix', 'words'),
    (('onnxruntime', 'onnx', 'onnxruntime'), ('openvino', 'xml', 'pip install openvino')),
)
def test_a_runtime_that_is_not_installed(module, suffix, words, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    path = tmp_path / f'model.{suffix}'
    path.write_bytes(b'')
    path.with_suffix('.bin').write_bytes(b'')
    with pytest.raises(ImportError, match=f'not installed.*{words}'):
        Predictor(path)


@pytest.mark.slow
def test_the_demo_gives_the_answers_of_a_file(files, pictures, tmp_path):
    config, weights, out = files
    options = ['--score-thr', '0', '--device', 'cpu']
    expected = demo.main(
        [str(pictures), config, weights, '--out-dir', str(tmp_path / 'a'), *options]
    )
    actual = demo.main([str(pictures), str(out), '--out-dir', str(tmp_path / 'b'), *options])
    assert actual['pictures'].keys() == expected['pictures'].keys()
    for path, objects in expected['pictures'].items():
        for one, other in zip(actual['pictures'][path], objects, strict=True):
            assert one['class'] == other['class']
            # Both are rounded.
            assert one['score'] == pytest.approx(other['score'], abs=2e-4)
            assert one['box'] == pytest.approx(other['box'], abs=0.11)
    drawn = sorted(path.name for path in (tmp_path / 'b').iterdir())
    assert drawn == ['a.png', 'b.png', 'c.png', 'predictions.json']
