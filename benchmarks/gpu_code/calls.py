"""Calls whose kernels are looked at: operator, shape, dtype and memory layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import cases, depthwise
from benchmarks.cases import Case
from benchmarks.depthwise import DepthwiseCase
from overlock_mm import ops
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS as CONTMIX
from overlock_mm.ops.depthwise.backends import BACKENDS as DEPTHWISE

#: As ``benchmarks run`` names them: a map of COCO, and maps of 224 x 224 images.
CASES = (
    'contmix-b2-g8-c16-50x80-k13',
    'contmix-b64-g8-c16-14x14-k13',
    'neighborhood_aggregate-b8-g8-c16-14x14-k13',
    'depthwise_norm-b8-c256-14x14-k3',
    'depthwise_mean-b8-c256-14x14-k13',
    'depthwise_mlp-b8-c1024-14x14-k3',
)
LAYOUTS = ('channels_last', 'NCHW')
DTYPES = ('bfloat16', 'float16', 'float32')


@dataclass(frozen=True)
class GpuCall:
    """One call of a backend.

    Attributes:
        case: The shape.
        part: 'forward' or 'backward'.
        dtype: Of the maps; the parameters of ContMix stay float32.
        layout: Of the maps: 'channels_last' or 'NCHW'.
    """

    case: Case | DepthwiseCase
    part: str
    dtype: str
    layout: str

    @property
    def name(self) -> str:
        """Shape, part, dtype and layout."""
        return f'{self.case.name} {self.part} {self.dtype} {self.layout}'

    @property
    def taps(self) -> int:
        """Taps of the whole call: those of a token in ContMix, of an output elsewhere."""
        case = self.case
        maps = case.channels if isinstance(case, DepthwiseCase) else case.groups
        return case.batch * maps * case.height * case.width * case.kernel_size**2

    @property
    def floor_bytes(self) -> int:
        """Bytes that any implementation must move."""
        tensors = self._tensors('meta')
        if isinstance(self.case, DepthwiseCase):
            return self.case.floor_bytes(tensors)
        forward = cases.floor_bytes(tensors, backward=False)
        if self.part == 'forward':
            return forward
        return cases.floor_bytes(tensors, backward=True) - forward

    @torch.no_grad()
    def run(self, backend: str) -> None:
        """Call the functions of a backend: 'triton' on tensors without data, or 'cuda'."""
        case, tensors = self.case, self._tensors('cuda' if backend == 'cuda' else 'meta')
        if isinstance(case, DepthwiseCase):
            functions = DEPTHWISE[backend].functions
            x, weight, bias, *norm = tensors
            weight = ops.channels_innermost(weight)
            if case.op == 'depthwise_norm':
                functions['depthwise_conv2d_norm'](
                    x, weight, bias, *norm, depthwise.EPS, None, None
                )
                return
            gelu, stat = (
                case.op == 'depthwise_mlp',
                'mean' if case.op == 'depthwise_mean' else 'norm',
            )
            functions['depthwise_conv2d_stats'](x, weight, bias, None, None, gelu, stat)
            return
        functions = CONTMIX[backend].functions
        if case.op == 'neighborhood_aggregate':
            if self.part == 'forward':
                functions['neighborhood_aggregate_forward'](*tensors, case.kernel_size, 1)
            else:
                grad_out = torch.empty_like(tensors[1])
                functions['neighborhood_aggregate_backward'](
                    grad_out, *tensors, case.kernel_size, 1
                )
            return
        arguments = ContMixArguments(*tensors, case.kernel_size, case.channels**-0.5)
        if self.part == 'forward':
            functions['contmix_forward'](arguments)
            return
        out = torch.empty_like(arguments.value)
        batch, groups, _, height, width = out.shape
        logsumexp = out.new_empty(batch, groups, height, width, dtype=torch.float32)
        functions['contmix_backward'](torch.empty_like(out), arguments, out, logsumexp)

    def _tensors(self, device: str) -> list[Tensor]:
        case = self.case
        tensors = case.arguments(torch.device(device), getattr(torch, self.dtype))
        planes = self.layout == 'NCHW'
        if isinstance(case, DepthwiseCase):
            return [tensors[0].contiguous() if planes else tensors[0], *tensors[1:]]
        if planes or case.op == 'neighborhood_aggregate':
            return tensors
        return cases.in_channels_last(tensors)


def all_calls() -> Iterator[GpuCall]:
    """The calls of the report: bfloat16 in every case, the other dtypes in the first."""
    by_name = {case.name: case for case in cases.all_cases()}
    for name in CASES:
        case = by_name[name]
        parts = ('forward',) if isinstance(case, DepthwiseCase) else ('forward', 'backward')
        # The aggregation has a layout of its own, with the channels innermost.
        layouts = LAYOUTS[:1] if case.op == 'neighborhood_aggregate' else LAYOUTS
        for dtype in DTYPES if name == CASES[0] else DTYPES[:1]:
            for layout in layouts:
                yield from (GpuCall(case, part, dtype, layout) for part in parts)
