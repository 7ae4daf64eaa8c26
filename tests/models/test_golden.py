"""Outputs and gradients of the published network, from outside this project."""

import pytest
import torch

from overlock_mm.checkpoint import convert_official
from tests import official
from tests.data import recipe

CASES = official.golden_cases()


def run(case, dtype=torch.float64):
    model = official.load_official(case['task'], case['variant'])
    model.train(case['mode'] == 'train').to(dtype)
    batch, _, height, width = case['input']
    image = torch.as_tensor(recipe.image(batch, height, width)).to(dtype)
    with torch.set_grad_enabled(case['mode'] == 'train'):
        return model, official.outputs_of(model, case['task'], image)


def assert_matches(tensor, golden, tolerance, floor=0.0):
    """Sampled values and statistics agree relative to the largest value."""
    assert list(tensor.shape) == golden['shape']
    bound = tolerance * golden['absmax'] + floor
    flat = tensor.detach().double().flatten()
    values = torch.tensor(golden['values'], dtype=torch.float64)
    samples = flat[torch.as_tensor(recipe.sample_indices(flat.numel(), len(values)))]
    assert (samples - values).abs().max() <= bound
    assert abs(flat.mean() - golden['mean']) <= bound
    assert abs(flat.std(correction=0) - golden['std']) <= bound
    assert abs(flat.abs().max() - golden['absmax']) <= bound


def assert_outputs(outputs, case, tolerance):
    assert len(outputs) == len(case['outputs'])
    for out, golden in zip(outputs, case['outputs'], strict=True):
        assert_matches(out, golden, tolerance)


@pytest.mark.parametrize('case', CASES, ids=official.case_id)
def test_float64_outputs_and_gradients(case):
    model, outputs = run(case)
    assert_outputs(outputs, case, 1e-9)
    if case['mode'] == 'eval':
        return

    cotangents = [torch.as_tensor(recipe.cotangent(i, out.shape)) for i, out in enumerate(outputs)]
    loss = sum((out * w).sum() for out, w in zip(outputs, cotangents, strict=True))
    assert abs(loss.item() - case['loss']) <= 1e-9 * max(1, abs(case['loss']))
    loss.backward()

    task = official.TASK_NAMES[case['task']]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norms = convert_official(case['grad_norm'], task)
    assert norms.keys() == gradients.keys()
    # Some gradients are zero by mathematics (a bias before a batch norm).
    floor = 1e-12 * max(norms.values())
    for name, norm in norms.items():
        assert abs(gradients[name].norm().item() - norm) <= 1e-7 * norm + floor, name
    for name, golden in convert_official(case['grad_samples'], task).items():
        assert_matches(gradients[name], golden, 1e-7, floor)


# With batch statistics of two images this network amplifies rounding: weights rounded to
# float32 move the float64 output by 2.4e-5, and every layer adds to it.
ILL_CONDITIONED = {'cls-t-2x3x224x240-train': 5e-4}


@pytest.mark.parametrize('case', CASES, ids=official.case_id)
def test_float32_outputs(case):
    _, outputs = run(case, torch.float32)
    assert_outputs(outputs, case, ILL_CONDITIONED.get(official.case_id(case), 1e-4))
