"""Whole detectors and segmentors give the same with either implementation of the operators."""

import pytest
import torch
from mmcv.ops import multi_scale_deform_attn

from tests.mmcv_ops.families import assert_same, compiled, operators_of, stand_in
from tests.mmcv_ops.networks import DEFORMABLE_DETR, FOR_GPU, NETWORKS, run

TOLERANCE = 1e-4


@pytest.mark.parametrize('name', NETWORKS)
def test_losses_gradients_and_predictions(name):
    with operators_of(compiled()):
        expected = run(NETWORKS[name])
    with operators_of(stand_in()):
        assert_same(run(NETWORKS[name]), expected, TOLERANCE)


def test_deformable_attention(monkeypatch):
    """On the CPU mmcv has PyTorch code of its own, to which the operator is compared."""

    def by_operator(value, shapes, locations, weights):
        areas = shapes.prod(1)
        function = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
        return function.apply(value, shapes, areas.cumsum(0) - areas, locations, weights, 64)

    expected = run(DEFORMABLE_DETR)
    name = 'multi_scale_deformable_attn_pytorch'
    monkeypatch.setattr(multi_scale_deform_attn, name, by_operator)
    with operators_of(stand_in()):
        assert_same(run(DEFORMABLE_DETR), expected, TOLERANCE)


@pytest.mark.parametrize('name', FOR_GPU)
def test_operators_that_mmcv_has_for_gpus_only(name):
    with operators_of(stand_in()):
        outputs = run(FOR_GPU[name])
    assert any(name.startswith('by ') for name in outputs)
    assert all(torch.as_tensor(value).isfinite().all() for value in outputs.values())
