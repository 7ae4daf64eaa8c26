"""Tools on models that are neither two-stage detectors nor have convolutional heads."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from overlock_mm import OverLoCK
from overlock_mm.analysis import measure_complexity
from overlock_mm.analysis.activation_maps import activation_map
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
