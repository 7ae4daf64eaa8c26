"""``tools/deployment/export_onnx.py``: a file per task, and errors before the work."""

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from overlock_mm import Predictor
from overlock_mm.datasets.shapes import METAINFO
from overlock_mm.runtime import ModelDescription
from tests.conftest import ROOT
from tests.models.helpers import randomize_norms
from tools.deployment import export_onnx

CONFIGS = {
    'classifier': ROOT / 'configs/demo/classifier_overlock_shapes.py',
    'segmentor': ROOT / 'configs/demo/upernet_overlock_shapes.py',
    'detector': ROOT / 'configs/demo/cascade_overlock_shapes.py',
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Model and checkpoint of a task, made once."""
    made = {}

    def make(task):
        if task not in made:
            cfg = Config.fromfile(CONFIGS[task])
            init_default_scope(cfg.default_scope)
            torch.manual_seed(0)
            model = MODELS.build(cfg.model).eval()
            randomize_norms(model)
            path = tmp_path_factory.mktemp('weights') / f'{task}.pth'
            torch.save({'state_dict': model.state_dict()}, path)
            made[task] = model, path
        return made[task]

    return make


def run(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {'image': image.numpy()})


def metadata_of(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.slow
def test_classifier_with_preprocessing(trained, tmp_path, capsys):
    model, weights = trained('classifier')
    out = tmp_path / 'folder' / 'classifier.onnx'
    config = str(CONFIGS['classifier'])
    export_onnx.main(
        [config, str(weights), str(out), '--shape', '96', '96', '--with-preprocessing']
    )
    image = torch.randint(256, (2, 3, 96, 96)).float()
    batch = model.data_preprocessor({'inputs': image.flip(1)})  # it expects BGR
    with torch.no_grad():
        expected = model(batch['inputs'], mode='tensor').softmax(-1)
    (scores,) = run(out, image)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    description = ModelDescription.from_metadata(metadata_of(out), str(out))
    assert description.classes == METAINFO['classes']
    assert description.checkpoint_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not description.mean  # the graph subtracts it
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    actual, expected = Predictor(out)(picture), Predictor(config, weights)(picture)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-5)
    assert actual.to_dict() == expected.to_dict()
    assert '3 x 96 x 96: differs from PyTorch by' in capsys.readouterr().out


@pytest.mark.slow
def test_segmentor_of_any_size(trained, tmp_path):
    model, weights = trained('segmentor')
    out = tmp_path / 'segmentor.onnx'
    export_onnx.main([str(CONFIGS['segmentor']), str(weights), str(out), '--dynamic', '--no-check'])
    image = torch.randn(1, 3, 130, 230)
    with torch.no_grad():
        logits = model(image, mode='tensor')
        expected = torch.nn.functional.interpolate(logits, (130, 230), mode='bilinear')
    scores, labels = run(out, image)
    np.testing.assert_allclose(scores, expected.softmax(1).numpy(), atol=1e-4)
    assert (labels == expected.argmax(1).numpy()).mean() > 0.999
    assert metadata_of(out)['image_size'] == 'any'
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    file, config = Predictor(out), Predictor(CONFIGS['segmentor'], weights)
    assert (file(picture).label_map == config(picture).label_map).mean() > 0.999
    assert file(picture).draw().size == config(picture).draw().size


@pytest.mark.slow
def test_features_of_a_detector(trained, tmp_path, capsys):
    model, weights = trained('detector')
    out = tmp_path / 'detector.onnx'
    options = ['--dynamic', '--no-check', '--features-only']
    export_onnx.main([str(CONFIGS['detector']), str(weights), str(out), *options])
    image = torch.randn(1, 3, 96, 224)
    with torch.no_grad():
        expected = model.extract_feat(image)
    for actual, wanted in zip(run(out, image), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), atol=1e-4 * wanted.abs().max())
    assert 'without the heads' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    (
        (['configs/classification/overlok_t.py', 'x.pth', 'x.onnx'], 'There is no config file'),
        ([CONFIGS['classifier'], 'none.pth', 'x.onnx'], 'No checkpoint file at none.pth'),
        ([CONFIGS['classifier'], 'none.pth', 'x.pb'], 'must end in .onnx'),
        ([CONFIGS['classifier'], 'none.pth', 'x.onnx', '--opset', '16'], 'from 17'),
        ([CONFIGS['classifier'], 'none.pth', 'x.onnx', '--shape', '16', '64'], 'got 16 x 64'),
        ([CONFIGS['classifier'], 'none.pth', 'x.onnx', '--precision', 'int8'], '--images FOLDER'),
        ([CONFIGS['classifier'], 'none.pth', 'x.onnx', '--precision', 'bf16'], "precision='bf16'"),
    ),
)
def test_errors_before_the_work(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        export_onnx.main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob('*.onnx'))


def test_weights_of_another_model(trained, tmp_path, capsys):
    _, weights = trained('classifier')
    with pytest.raises(SystemExit):
        export_onnx.main([str(CONFIGS['segmentor']), str(weights), str(tmp_path / 'x.onnx')])
    assert 'does not fit the model' in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_nothing(trained, tmp_path, monkeypatch, fails):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device', str(tmp_path / 'out.onnx'))

    monkeypatch.setattr(export_onnx, 'export_onnx', full)
    _, weights = trained('classifier')
    message = fails(export_onnx.main, CONFIGS['classifier'], weights, tmp_path / 'out.onnx')
    assert 'No space left on device' in message and 'out.onnx' in message
    assert list(tmp_path.iterdir()) == []
