"""The kernels of the GPU under compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.gpu.helpers import ON_GPU

pytestmark = ON_GPU
ROOT = Path(__file__).resolve().parents[3]
MEMCHECK = """
import sys, torch
from overlock_mm.ops import contmix, neighborhood_aggregate
from tests.ops import depthwise_helpers, helpers
backend = sys.argv[1]
for shape in helpers.SHAPES:
    tensors = helpers.contmix_arguments(shape, torch.bfloat16, 'strided', device='cuda')
    helpers.with_gradients(lambda *x: contmix(*x, shape.kernel_size, backend=backend), tensors)
    tensors = helpers.aggregate_arguments(shape, torch.float32, device='cuda')
    helpers.with_gradients(
        lambda *x: neighborhood_aggregate(*x, shape.kernel_size, backend=backend), tensors)
for shape in depthwise_helpers.SHAPES:
    for op, options in depthwise_helpers.OPTIONS:
        depthwise_helpers.assert_right(shape, op, options, backend, device='cuda')
torch.cuda.synchronize()
"""


@pytest.mark.sanitizer
@pytest.mark.skipif(
    shutil.which('compute-sanitizer') is None, reason='compute-sanitizer is not on the PATH.'
)
@pytest.mark.parametrize('tool', ['memcheck', 'racecheck'])
def test_compute_sanitizer_finds_nothing(fused, tool):
    if (fused, tool) == ('triton', 'racecheck'):
        pytest.skip("Triton's own reductions are reported as races.")
    result = subprocess.run(
        [
            *('compute-sanitizer', '--tool', tool, '--error-exitcode', '9'),
            *('--report-api-errors', 'no'),  # those of torch, which handles them
            *(sys.executable, '-c', MEMCHECK, fused),
        ],
        cwd=ROOT,
        # Without torch's caching a stray access leaves its tensor, not only its element.
        env={**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
