"""The published network's outputs and gradients on every backend of the CPU."""

import pytest

from overlock_mm.layers.contmix import ContMix
from tests.ops.test_cpu_backends import BACKENDS

pytest.importorskip('mmpretrain', reason='The golden cases are networks of mmpretrain.')

from tests import official  # noqa: E402
from tests.models import test_golden  # noqa: E402

# Of the smallest variant: one case of each task and mode.
CASES = {(c['task'], c['mode']): c for c in official.golden_cases() if c['variant'] == 'xt'}


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES.values(), ids=official.case_id)
def test_golden_case(case, backend, monkeypatch):
    load_official = official.load_official

    def load_with_backend(task, variant):
        model = load_official(task, variant)
        for module in model.modules():
            if isinstance(module, ContMix):
                module.backend = backend
        return model

    monkeypatch.setattr(official, 'load_official', load_with_backend)
    test_golden.test_float64_outputs_and_gradients(case)
