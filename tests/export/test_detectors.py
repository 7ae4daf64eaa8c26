"""Whole detectors: what their graphs find is what mmdet's ``predict`` finds."""

import onnx
import onnxruntime
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from overlock_mm import OverLoCK
from overlock_mm.export import PastedMasks, export_onnx, exportable
from overlock_mm.export.torch_program import export_program
from overlock_mm.runtime import ModelDescription
from overlock_mm.runtime.description import KEY
from overlock_mm.runtime.engines import load_engine
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT
from tests.models.helpers import TINY

WIDTHS = list(OverLoCK(TINY).out_channels)
RETINANET = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='OverLoCK', arch=TINY),
    neck=dict(
        type='FPN', in_channels=WIDTHS, out_channels=32, start_level=1, num_outs=5,
        add_extra_convs='on_input',
    ),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=32, stacked_convs=1, feat_channels=32,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128],
        ),
    ),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.2, nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=30,
    ),
)  # fmt: skip


def two_stage(name):
    cfg = load_config(ROOT / f'configs/detection/{name}.py').model
    cfg.neck.update(out_channels=32)
    cfg.rpn_head.update(in_channels=32, feat_channels=32)
    cfg.roi_head.bbox_roi_extractor.out_channels = cfg.roi_head.mask_roi_extractor.out_channels = 32
    boxes = cfg.roi_head.bbox_head
    for head in boxes if isinstance(boxes, list) else [boxes]:
        head.update(in_channels=32, fc_out_channels=32, num_classes=3)
        if 'conv_out_channels' in head:
            head.update(conv_out_channels=32, num_shared_convs=1)
    cfg.roi_head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=3, num_convs=1)
    cfg.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    cfg.test_cfg.rcnn.update(score_thr=0.15, max_per_img=30)
    return cfg


def rtmdet():
    cfg = load_config(ROOT / 'configs/detection/rtmdet_ins_overlock_t.py').model
    cfg.neck.update(out_channels=32, num_csp_blocks=1)
    cfg.bbox_head.update(in_channels=32, feat_channels=32, num_classes=3)
    cfg.test_cfg.update(nms_pre=100, score_thr=0.3, max_per_img=30)
    return cfg


DETECTORS = {
    'cascade': lambda: two_stage('cascade_overlock_t'),
    'mask_rcnn': lambda: two_stage('mask_rcnn_overlock_t_1x'),
    'retinanet': lambda: ConfigDict(RETINANET),
    'rtmdet': rtmdet,
}


@pytest.fixture(autouse=True)
def same_images_in_any_order():
    torch.manual_seed(0)


def find_something(model):
    """Give the classes weights that find something in noise, for all random numbers."""
    stds = {'fc_cls': 0.2, 'rpn_cls': 0.2, 'retina_cls': 0.05}
    for part, module in model.named_modules():
        std = 0.3 if '.rtm_cls.' in f'.{part}' else stds.get(part.rpartition('.')[2])
        if std is not None:
            torch.nn.init.normal_(module.weight, std=std)
            torch.nn.init.zeros_(module.bias)


@pytest.fixture(scope='module')
def detector():
    """A detector by its name, with weights that find something in noise; made once."""
    made = {}

    def make(name):
        if name not in made:
            init_default_scope('mmdet')
            cfg = DETECTORS[name]()
            cfg['backbone'].update(arch=TINY, init_cfg=None, norm_cfg=dict(type='BN'))
            cfg['neck'].update(in_channels=WIDTHS[1:] if name == 'rtmdet' else WIDTHS)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[name] = MODELS.build(cfg).eval()
                find_something(made[name])
        return made[name]

    return make


def predicted(model, image, sizes):
    """What mmdet predicts, in pixels of the image."""
    samples = []
    for size in sizes.tolist():
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(metainfo=meta))
    with torch.no_grad():
        return [sample.pred_instances for sample in model.predict(image, samples, rescale=False)]


def assert_same(outputs, expected):
    boxes, scores, labels, counts = outputs[:4]
    assert counts.tolist() == [len(instances) for instances in expected]
    for image, instances in enumerate(expected):
        count = len(instances)
        torch.testing.assert_close(scores[image, :count], instances.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes[image, :count], instances.bboxes, atol=1e-3, rtol=1e-4)
        assert labels[image, :count].tolist() == instances.labels.tolist()
        assert (labels[image, count:] == -1).all()
        assert not scores[image, count:].any()


@pytest.mark.parametrize('name', DETECTORS)
def test_boxes_of_mmdet(name, detector):
    model = detector(name)
    image = torch.randn(2, 3, 64, 96)
    sizes = torch.tensor([[64, 96], [50, 70]])  # the second one is padded
    part = exportable(model).eval()
    with torch.no_grad():
        outputs = part(image, sizes)
    expected = predicted(model, image, sizes)
    assert min(len(instances) for instances in expected) > 1
    assert_same(outputs, expected)


@pytest.fixture(scope='module')
def detector_file(detector, tmp_path_factory):
    """A detector's file for images of any size, by its name; made once."""
    made = {}

    def make(name):
        if name not in made:
            path = tmp_path_factory.mktemp(name) / 'detector.onnx'
            metadata = {KEY: ModelDescription('detection').to_json()}
            part = exportable(detector(name))
            with torch.random.fork_rng():
                export_onnx(part, path, None, metadata=metadata, compare=False)
            made[name] = path
        return made[name]

    return make


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('engine', ('onnxruntime', 'openvino'))
def test_file_for_images_of_any_size(engine, name, detector, detector_file):
    pytest.importorskip(engine, reason='OpenVINO is optional: pip install openvino')
    part, path = exportable(detector(name)).eval(), detector_file(name)
    filled = 0
    assert {entry.domain for entry in onnx.load(path).opset_import} == {''}
    loaded = load_engine(path, 'cpu', 1, engine, None)

    def run(image, sizes):
        outputs = loaded.run({'image': image.numpy(), 'image_size': sizes.numpy()})
        return [torch.from_numpy(array) for array in outputs.values()]

    # RTMDet's neck takes multiples of 32 pixels.
    shapes = ((1, 96, 160), (3, 64, 32)) if name == 'rtmdet' else ((1, 75, 130), (3, 64, 41))
    for batch, height, width in shapes:
        image = torch.randn(batch, 3, height, width)
        sizes = torch.tensor([[height, width]] * batch)
        outputs = run(image, sizes)
        # In pairs, as detections of nearly equal scores change places.
        with torch.no_grad():
            assert part.difference(outputs, part(image, sizes)) < 1e-4
        assert outputs[0].shape[1] <= 30  # of more boxes than that
        filled += int((outputs[3] == 30).sum())
    assert filled  # of more objects than the bound
    # Nothing is left of boxes in a picture without a size.
    image = torch.randn(2, 3, 64, 96)
    outputs = run(image, torch.tensor([[0, 0], [64, 96]]))
    assert outputs[3][0] == 0 and outputs[3][1] > 0
    assert (outputs[2][0] == -1).all()


@pytest.mark.parametrize('name', ('cascade', 'mask_rcnn'))
def test_masks_beside_the_boxes(name, detector):
    model = detector(name)
    image = torch.randn(1, 3, 64, 96)
    sizes = torch.tensor([[64, 96]])
    with torch.no_grad():
        boxes, _, _, counts, masks = exportable(model).eval()(image, sizes)
    (expected,) = predicted(model, image, sizes)
    # Pasted by mmdet's own function.
    head = model.roi_head.mask_head[-1] if name == 'cascade' else model.roi_head.mask_head
    count = int(counts[0])
    pasted = head._predict_by_feat_single(
        masks[0, :count, None].expand(-1, 3, -1, -1).logit(),
        boxes[0, :count].clone(),
        expected.labels,
        dict(scale_factor=(1.0, 1.0), ori_shape=(64, 96)),
        model.roi_head.test_cfg,
        rescale=True,
    )
    assert count and (pasted != expected.masks).float().mean() < 1e-4


@pytest.mark.slow
def test_pasted_masks(detector, tmp_path):
    model = detector('mask_rcnn')
    path = tmp_path / 'detector.onnx'
    differences = export_onnx(PastedMasks(exportable(model)), path, None)
    assert max(differences.values()) < 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    image = torch.randn(2, 3, 75, 130)
    sizes = torch.tensor([[75, 130], [60, 90]])
    inputs = {'image': image.numpy(), 'image_size': sizes.numpy()}
    *_, counts, masks, pasted = session.run(None, inputs)
    assert masks.shape[2:] == (28, 28) and pasted.dtype == bool
    assert pasted.shape[2:] == (75, 130)
    for found, count, (height, width), expected in zip(
        pasted, counts, sizes.tolist(), predicted(model, image, sizes), strict=True
    ):
        assert count and not found[count:].any()
        wanted = expected.masks.numpy()  # of the image without its padding
        assert (found[:count, :height, :width] != wanted).mean() < 1e-4


class Pyramid(torch.nn.Module):
    """A backbone that is traced in no time."""

    in_channels = 3

    def __init__(self):
        super().__init__()
        pairs = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, 2 if i else 4, 1) for i, (a, b) in enumerate(pairs)
        )

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


@pytest.mark.slow
def test_program_of_torch_export(detector, tmp_path, monkeypatch):
    model = detector('mask_rcnn')
    monkeypatch.setattr(model, 'backbone', Pyramid())
    path = tmp_path / 'detector.pt2'
    export_program(PastedMasks(exportable(model)), path, (64, 96))
    program = torch.export.load(path).module()
    image = torch.randn(1, 3, 64, 96)
    for sizes in (torch.tensor([[50, 70]]), torch.tensor([[0, 0]])):
        with torch.no_grad():
            outputs = program(image, sizes)
        assert_same(outputs, predicted(model, image, sizes))
        assert outputs[-1].any() == (sizes.min() > 0)


@pytest.mark.parametrize('name', ('retinanet', 'rtmdet'))
def test_only_masks_of_boxes_are_pasted(name, detector):
    with pytest.raises(TypeError, match='Only masks of boxes can be pasted'):
        PastedMasks(exportable(detector(name)))


def test_masks_of_rtmdet(detector):
    model = detector('rtmdet')
    image = torch.randn(1, 3, 64, 96)
    sizes = torch.tensor([[64, 96]])
    with torch.no_grad():
        _, _, _, counts, logits = exportable(model).eval()(image, sizes)
    (expected,) = predicted(model, image, sizes)
    masks = torch.nn.functional.interpolate(logits, scale_factor=8, mode='bilinear') > 0
    assert counts[0] and (masks[0, : counts[0]] != expected.masks).float().mean() < 1e-4


def test_difference_is_of_pairs(detector):
    part = exportable(detector('retinanet'))
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40], [1, 1, 9, 9]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.3]]), torch.tensor([[0, 1, 1]])
    expected = [boxes, scores, labels, torch.tensor([3])]
    swapped = [boxes[:, [1, 0, 2]], scores[:, [1, 0, 2]], labels[:, [1, 0, 2]], expected[3]]
    assert part.difference(swapped, expected) == 0
    moved = [boxes + torch.tensor([0.0, 0, 0.4, 0]), *expected[1:]]
    assert part.difference(moved, expected) == pytest.approx(0.01, abs=1e-6)
    # The last one may have crossed the threshold; the first one may not.
    assert part.difference([*expected[:3], torch.tensor([2])], expected) < 1e-6
    other = [boxes, scores, torch.tensor([[2, 1, 1]]), expected[3]]
    assert part.difference(other, expected) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ('name', 'change', 'words'),
    (
        ('retinanet', dict(nms=dict(type='soft_nms', iou_threshold=0.5)), 'ONNX has no soft_nms'),
        ('retinanet', dict(max_per_img=-1), 'is not bounded'),
    ),
)
def test_what_has_no_graph(name, change, words, detector, monkeypatch):
    cfg = detector(name).bbox_head.test_cfg
    for key, value in change.items():
        monkeypatch.setitem(cfg, key, type(cfg)(value) if isinstance(value, dict) else value)
    with pytest.raises(TypeError, match=f'{words}.*--features-only'):
        exportable(detector(name))
    assert exportable(detector(name), features_only=True).output_names[0] == 'feature0'


def test_a_head_without_a_box_coder(detector, monkeypatch):
    """As that of YOLOX."""
    head = detector('retinanet').bbox_head
    monkeypatch.delattr(head, 'bbox_coder')
    monkeypatch.delitem(head.test_cfg, 'max_per_img')
    with pytest.raises(TypeError, match='decodes boxes in a way of its own'):
        exportable(detector('retinanet'))
