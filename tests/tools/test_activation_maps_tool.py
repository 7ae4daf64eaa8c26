"""activation_maps.py for the three tasks; what it explains beside the libraries' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from PIL import Image

from overlock_mm.analysis.networks import Network, load_network
from overlock_mm.analysis.targets import (
    BoxScore,
    FoundScore,
    NoTargetError,
    Question,
    RegionScore,
    choose_target,
    label_of,
    segmentation_logits,
)
from overlock_mm.analysis.views import picture_pipeline, read_view
from overlock_mm.datasets.shapes import METAINFO, SEMANTIC_METAINFO
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT
from tools.visualization import activation_maps as tool


@pytest.fixture(scope='module')
def seen(untrained, pictures):
    """The network of a task and its view of the first picture."""
    made = {}

    def make(task):
        if task not in made:
            network = load_network(*untrained(task))
            made[task] = network, read_view(network, picture_pipeline(network), pictures / 'a.png')
        return made[task]

    return make


def test_classifier_over_a_folder_two_networks(untrained, pictures, tmp_path):
    both = untrained('classification')
    out = tmp_path / 'maps'
    content = tool.main(
        [str(pictures), *both, '--compare', *both, '--stages', 'overview', 'out0']
        + ['--out-dir', str(out), '--class', 'ring']
    )
    assert content == json.loads((out / 'activation_maps.json').read_text())
    assert content['method'] == 'gradcam'
    assert sorted(p.name for p in out.iterdir()) == ['a.png', 'activation_maps.json', 'b.png']
    for path, rows in content['pictures'].items():
        assert rows[0] == rows[1]
        assert rows[0]['network'] == 'classifier_small'
        assert rows[0]['target']['class'] == 'ring'
        assert set(rows[0]['peaks']) == {'overview', 'out0'}
        with Image.open(out / f'{Path(path).stem}.png') as figure:
            # Two rows of three.
            assert figure.width > 900 and figure.height > 500


def test_predicted_class(seen):
    network, view = seen('classification')
    target = choose_target(network, view, Question())
    with torch.no_grad():
        logits = network.model(view.inputs, mode='tensor')[0]
        assert target.label == logits.argmax()
        assert target.confidence == pytest.approx(float(logits.softmax(0).max()))
        assert target.score(view.inputs).item() == pytest.approx(float(logits.max()))
    assert view.inputs.shape == (1, 3, 96, 96)
    with pytest.raises(ValueError, match='is cropped'):
        view.to_input((1, 1))


def test_segmentor_at_a_point(untrained, pictures, tmp_path):
    content = tool.main(
        [str(pictures / 'a.png'), *untrained('segmentation'), '--point', '30', '40']
        + ['--stages', 'focus4', '--out-dir', str(tmp_path)]
    )
    assert content['method'] == 'layercam'
    ((row,),) = content['pictures'].values()
    assert row['target']['point'] == [30, 40]
    assert row['target']['class'] in SEMANTIC_METAINFO['classes']
    assert (tmp_path / 'a.png').is_file()


def test_class_of_a_region(seen):
    network, view = seen('segmentation')
    with torch.no_grad():
        logits = segmentation_logits(network.model, view.inputs)[0]
    # The picture of 96 x 120 is enlarged to 128 x 160.
    region = logits[:, 64:96, 32:64]
    target = choose_target(network, view, Question(region=(24, 48, 48, 72)))
    assert isinstance(target.score, RegionScore)
    assert target.box == pytest.approx((32, 64, 64, 96), abs=0.5)
    assert target.label == region.argmax(0).flatten().mode().values
    expected = region[target.label].mean()
    torch.testing.assert_close(target.score(view.inputs).detach()[0, 0], expected)
    corner = choose_target(network, view, Question(region=(119.9, 95.9, 120, 96)))
    assert int(corner.score.region.sum()) == 1
    named = choose_target(network, view, Question(name='ring', point=(119.9, 95.9)))
    assert SEMANTIC_METAINFO['classes'][named.label] == 'ring'
    torch.testing.assert_close(named.score(view.inputs).detach()[0, 0], logits[named.label, -1, -1])


def test_detector(untrained, pictures, tmp_path):
    content = tool.main(
        [str(pictures / 'a.png'), *untrained('detection'), '--stages', 'base3', '--rank', '2']
        + ['--out-dir', str(tmp_path)]
    )
    ((row,),) = content['pictures'].values()
    assert row['target']['class'] in METAINFO['classes']
    assert len(row['target']['box']) == 4
    assert (tmp_path / 'a.png').is_file()


def test_box_of_a_detection(seen):
    """Its logit is the cascade's own for that box; gradients come without the proposals."""
    network, view = seen('detection')
    target = choose_target(network, view, Question())
    assert isinstance(target.score, BoxScore)
    model, (x1, y1, x2, y2) = network.model, target.box
    with torch.no_grad():
        maps = model.extract_feat(view.inputs)
        rois = bbox2roi([torch.tensor([target.box])])
        stages = [model.roi_head._bbox_forward(i, maps, rois)['cls_score'] for i in range(3)]
    expected = torch.stack(stages).mean(0)[0, target.label]
    torch.testing.assert_close(target.score(view.inputs).detach()[0, 0], expected)
    inputs = view.inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target.score._score(inputs).sum(), inputs)
    assert gradient.isfinite().all() and gradient.any()

    # Near the same place, given in pixels of the file; it was enlarged by 4 / 3.
    asked = [value * 0.75 for value in (x1, y1, x2, y2)]
    near = choose_target(network, view, Question(box=asked, name=str(target.label)))
    assert near.box == pytest.approx(target.box)
    pair = torch.cat((view.inputs, view.inputs.flip(3)))
    assert target.score(pair).shape == (2, 1)


def test_detection_found_again(seen):
    """For detectors without box heads: the score of the same prediction, with its gradient."""
    network, view = seen('detection')
    target = choose_target(network, view, Question(rank=2))
    score = FoundScore(network.model, target.label, torch.tensor(target.box), view.sample)
    inputs = view.inputs.clone().requires_grad_()
    value = score._score(inputs)
    assert value.item() == pytest.approx(target.confidence, rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), inputs)
    assert gradient.isfinite().all() and gradient.any()
    nowhere = FoundScore(network.model, target.label, torch.zeros(4) - 9, view.sample)
    assert nowhere(view.inputs).item() == 0


def test_detections_that_are_not_there(seen):
    network, view = seen('detection')
    with pytest.raises(NoTargetError, match='only 5 detections'):
        choose_target(network, view, Question(rank=6))
    with pytest.raises(NoTargetError, match='nothing detected there'):
        choose_target(network, view, Question(box=(0, 0, 0.1, 0.1)))
    with pytest.raises(ValueError, match='120 x 96'):
        choose_target(network, view, Question(box=(0, 0, 500, 50)))


def test_a_picture_without_a_target_is_drawn_all_the_same(seen, tmp_path):
    network, view = seen('detection')
    rows = [tool.explain(network, view, Question(rank=99), ['base3'], 'layercam')]
    tool.draw(rows, tmp_path / 'figure.png')
    assert tool.report(rows[0]) == {
        'network': 'cascade_small',
        'target': None,
        'reason': 'only 5 detections',
    }
    assert (tmp_path / 'figure.png').is_file()


def test_picture_as_the_network_sees_it(seen, pictures):
    network, view = seen('segmentation')
    assert view.picture.shape == (128, 160, 3)
    with Image.open(pictures / 'a.png') as image:
        mean = np.asarray(image).mean((0, 1))
    np.testing.assert_allclose(view.picture.mean((0, 1)), mean, atol=2)


def test_classes_by_name_and_index(seen):
    network, _ = seen('classification')
    assert label_of('ring', network) == label_of(str(METAINFO['classes'].index('ring')), network)
    with pytest.raises(ValueError, match=r"no class 'rign'. It has .*ring"):
        label_of('rign', network)
    with pytest.raises(ValueError, match=r"no class '5'"):
        label_of('5', network)


@pytest.mark.parametrize(
    ('task', 'options', 'expected'),
    [
        ('classification', ['--stages', 'focus5'], "no output 'focus5'"),
        ('classification', ['--stages', 'focus_net'], "never reaches 'focus_net'"),
        ('classification', ['--class', 'dog'], "no class 'dog'"),
        ('classification', ['--point', '3', '4'], 'a point is a target for segmentation'),
        ('segmentation', ['--box', '1', '2', '3', '4'], 'a box is a target for detection'),
        ('segmentation', ['--region', '3', '2', '3', '4'], 'x1 < x2'),
        ('segmentation', ['--point', '300', '4'], '120 x 96'),
        ('detection', ['--rank', '0'], 'counted from 1'),
    ],
)
def test_questions_without_sense(fails, untrained, pictures, tmp_path, task, options, expected):
    message = fails(
        tool.main, pictures / 'a.png', *untrained(task), *options, '--out-dir', tmp_path / 'out'
    )
    assert expected in message
    assert not list((tmp_path / 'out').iterdir())


def test_bad_files(fails, untrained, pictures, tmp_path):
    config, weights = untrained('classification')
    message = fails(tool.main, pictures / 'notes.txt', config, weights, '--out-dir', tmp_path)
    assert 'notes.txt (not a BMP' in message
    _, others = untrained('segmentation')
    message = fails(tool.main, pictures, config, others, '--out-dir', tmp_path)
    assert f'{others} does not fit the model' in message
    (tmp_path / 'file').write_text('')
    message = fails(tool.main, pictures, config, weights, '--out-dir', tmp_path / 'file' / 'out')
    assert 'is not writable' in message and '--out-dir' in message


def test_fewer_queries_than_results(fails, pictures, tmp_path, monkeypatch):
    cfg = load_config(ROOT / 'configs/detection/mask2former_ins_overlock_xt.py')
    cfg.model.panoptic_head.num_queries = 1
    network = Network('few', cfg, torch.nn.Identity())
    monkeypatch.setattr(tool, 'load_network', lambda *args, **kwargs: network)
    message = fails(tool.main, pictures, 'few.py', 'few.pth', '--out-dir', tmp_path)
    assert 'max_per_image=80' in message
