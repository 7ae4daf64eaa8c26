"""Tools on models that are neither two-stage detectors nor have convolutional heads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS, DefaultScope

from overlock_mm import OverLoCK
from overlock_mm.analysis import measure_complexity
from overlock_mm.analysis.activation_maps import activation_map
from overlock_mm.analysis.networks import Network
from overlock_mm.analysis.targets import Question, choose_target
from overlock_mm.export import exportable
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT
from tests.models.helpers import TINY
from tools.analysis_tools.get_flops import forward_of, scope_of

pytestmark = pytest.mark.slow

NAMES = {
    'rtmdet': 'detection/rtmdet_ins_overlock_t',
    'instances': 'detection/mask2former_ins_overlock_t',
    'semantic': 'segmentation/mask2former_overlock_t',
}


@pytest.fixture(scope='module')
def tiny():
    """Config and model by name, on a tiny backbone."""
    widths = list(OverLoCK(TINY).out_channels)
    made = {}
    for name, path in NAMES.items():
        cfg = load_config(ROOT / f'configs/{path}.py')
        cfg.model.backbone.update(arch=TINY, init_cfg=None, norm_cfg=dict(type='BN'))
        part = {'rtmdet': 'neck', 'instances': 'panoptic_head', 'semantic': 'decode_head'}[name]
        cfg.model[part].in_channels = widths[1:] if name == 'rtmdet' else widths
        if name != 'rtmdet':
            for layers in (
                cfg.model[part].transformer_decoder,
                cfg.model[part].pixel_decoder.encoder,
            ):
                layers.num_layers = 1
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            made[name] = cfg, MODELS.build(cfg.model)
    return made


@pytest.mark.parametrize(
    ('name', 'scope'),
    [('rtmdet', 'one stage'), ('instances', 'features'), ('semantic', 'features')],
)
def test_multiply_adds_are_counted_as_far_as_they_are_fixed(name, scope, tiny):
    cfg, model = tiny[name]
    assert scope_of(cfg, model) == scope
    if name == 'rtmdet':
        # The head's convolutions at 64, 16 and 4 places are most of it.
        counted = measure_complexity(model, forward_of(scope), (64, 64))
        assert counted.dense > 64 * 8 * 256 * 256 * 9


def test_maps_of_a_neck_without_a_number_of_outputs_are_exported(tiny):
    part = exportable(tiny['rtmdet'][1].eval(), features_only=True)
    assert part.output_names == ('feature0', 'feature1', 'feature2')
    assert part.size_divisor == 32
    with pytest.raises(TypeError, match='neither a two-stage detector nor'):
        exportable(tiny['instances'][1])
    assert exportable(tiny['instances'][1], features_only=True).output_names[-1] == 'feature3'


def test_a_head_that_reads_samples_is_refused(tiny):
    with pytest.raises(TypeError, match='Mask2FormerHead is called with more than the maps'):
        exportable(tiny['semantic'][1])


@pytest.mark.parametrize('name', ['instances', 'semantic'])
def test_scores_of_queries_are_explained_by_their_gradient(name, tiny):
    cfg, model = tiny[name]
    model.eval().requires_grad_(False)
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), batch_input_shape=(64, 64))
    )
    view = SimpleNamespace(inputs=inputs, picture=np.zeros((64, 64, 3)), sample=sample)
    target = choose_target(Network(name, cfg, model), view, Question())
    assert target.score(inputs).item() == pytest.approx(target.confidence, rel=1e-4)
    inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(target.score._score(inputs).sum(), inputs)
    assert gradient.isfinite().all() and gradient.any()


def test_a_score_without_a_gradient_is_told():
    class Detached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 1)

        def forward(self, inputs):
            return self.layer(inputs).detach().mean().reshape(1, 1)

    score = Detached()
    with pytest.raises(ValueError, match='--method scorecam'):
        activation_map(score, score.layer, torch.rand(1, 3, 8, 8), 'layercam')
