"""A case on a device: what runs it, what is right, and what is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases, depthwise, implementations
from benchmarks.cases import Case
from benchmarks.depthwise import DepthwiseCase
from overlock_mm.ops.contmix import reference, reference_backend
from overlock_mm.ops.contmix.arguments import ContMixArguments

#: Tolerance, as a share of the largest value of an output or gradient; all sums are in float32.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps}

Function = Callable[..., Any]


class Mismatch(RuntimeError):
    """The result of an implementation differs from the reference."""


@dataclass
class Problem:
    """A case with its tensors.

    Attributes:
        case: What is measured.
        dtype: Of the activations.
        ours: Our backends that can run it, in the order of automatic choice.
        others: What they are compared with.
        results: Calls a function; its output and gradients.
        expected: Those of the definition, in float32 from the same values.
        parts: What is timed, as calls of a function.
        floors: For each part the bytes and operations that it needs at least.
        needed_bytes: Estimates what a function takes beyond the tensors, by its name.
    """

    case: Case | DepthwiseCase
    dtype: torch.dtype
    ours: dict[str, Function]
    others: dict[str, Function]
    results: Callable[[Function], list[Tensor]]
    expected: list[Tensor]
    parts: dict[str, Callable[[Function], object]]
    floors: dict[str, dict[str, int]]
    needed_bytes: Callable[[str], int]

    def check(self, name: str, function: Function) -> None:
        """Raise a Mismatch unless output and all gradients are those of the reference."""
        check(name, self.results(function), self.expected, self.dtype)


def check(name: str, actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Raise a Mismatch unless output and all gradients are those of the reference."""
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        bound = TOLERANCES[dtype] * wanted.abs().max().item()
        error = (got.detach().float() - wanted).abs().max().item()
        if not error <= bound:  # NaN too
            what = 'the output' if index == 0 else f'gradient {index}'
            raise Mismatch(f'{name}: {what} is off by {error:.3g}, may be off by {bound:.3g}.')


def results_of(function: Function, tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Output and gradients."""
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, cotangent)]


def cotangent_of(tensors: list[Tensor]) -> Tensor:
    """Gradient of the output, which has the shape and dtype of the value."""
    value = tensors[2] if len(tensors) == 6 else tensors[1]
    steps = torch.arange(value.numel(), device=value.device)
    # In the layout of the value.
    return torch.empty_like(value).copy_(((steps * 7 % 13 - 6) / 6).view(value.shape)).detach()


def expected_results(case: Case, tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Output and gradients of the reference, in float32 from the same values."""
    tensors = [x.detach().float() for x in tensors]
    cotangent = cotangent.float()
    if case.op == 'neighborhood_aggregate':
        out = reference.neighborhood_aggregate(*tensors, case.kernel_size)
        return [
            out,
            *reference_backend.neighborhood_aggregate_backward(
                cotangent, *tensors, case.kernel_size, 1
            ),
        ]
    arguments = ContMixArguments(*tensors, case.kernel_size, implementations.SCALE)
    out, logsumexp = reference_backend.contmix_forward(arguments)
    return [out, *reference_backend.contmix_backward(cotangent, arguments, out, logsumexp)]


@contextmanager
def full_precision() -> Iterator[None]:
    """Products in float32 as such, not in TF32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def problem(case: Case | DepthwiseCase, device: torch.device, dtype: torch.dtype) -> Problem:
    """Make the tensors and the expected values.

    Raises:
        RuntimeError: They do not fit into the device's memory.
    """
    if not isinstance(case, DepthwiseCase):
        return _of_contmix(case, device, dtype)
    if case.op == 'depthwise_train':
        return _of_convolution(case, device, dtype)
    return _of_depthwise(case, device, dtype)


@dataclass(frozen=True)
class Differentiable:
    """A function and the tensors with whose layout it is called.

    Attributes:
        call: The function.
        tensors: Its arguments, all of which get gradients.
        cotangent: That of the output.
    """

    call: Callable[..., Tensor]
    tensors: list[Tensor]
    cotangent: Tensor

    def forward(self) -> Tensor:
        """Its output."""
        with torch.no_grad():
            return self.call(*self.tensors)

    def forward_backward(self) -> list[Tensor]:
        """Its output and all gradients."""
        return results_of(self.call, self.tensors, self.cotangent)


def _of_contmix(case: Case, device: torch.device, dtype: torch.dtype) -> Problem:
    planes = case.arguments(device, dtype)
    # On a GPU networks run in channels_last memory.
    tensors = cases.in_channels_last(planes) if device.type == 'cuda' else planes
    ours = implementations.backends(case, tensors)
    bound = _bound(ours, tensors)
    if tensors is not planes:
        bound |= _bound(ours, planes, ', NCHW')

    def floor(backward: bool) -> dict[str, int]:
        # Two products for the gradients and one recomputation for the forward's one.
        flops = case.forward_flops() * (4 if backward else 1)
        return {'bytes': cases.floor_bytes(tensors, backward), 'flops': flops}

    return Problem(
        case,
        dtype,
        bound,
        _bound(implementations.baselines(case, device), tensors),
        Differentiable.forward_backward,
        expected_results(case, tensors, cotangent_of(tensors)),
        PARTS,
        {'forward': floor(False), 'forward_backward': floor(True)},
        lambda name: (
            cases.floor_bytes(tensors, True)
            if name in bound
            else implementations.needed_bytes(case, name)
        ),
    )


def _of_convolution(case: DepthwiseCase, device: torch.device, dtype: torch.dtype) -> Problem:
    tensors = case.training_arguments(device, dtype)
    planes = [x.detach().contiguous().requires_grad_() for x in tensors]
    ours, library = depthwise.training_functions(case, device, dtype)
    full = [x.detach().float().requires_grad_() for x in tensors]
    cotangent = cotangent_of([tensors[1], tensors[0]])
    size = tensors[0].numel() * tensors[0].element_size()
    flops = case.forward_flops()
    return Problem(
        case,
        dtype,
        _bound(ours, tensors, cotangent=cotangent),
        {
            **_bound(library, tensors, cotangent=cotangent),
            **_bound(library, planes, ', NCHW', cotangent=cotangent.contiguous()),
        },
        Differentiable.forward_backward,
        results_of(library['library'], full, cotangent.float()),
        PARTS,
        {
            'forward': {'bytes': 2 * size, 'flops': flops},
            # The map and the output's gradient are read, and that of the map is written.
            'forward_backward': {'bytes': 5 * size, 'flops': 3 * flops},
        },
        lambda name: 4 * 4 * tensors[0].numel(),
    )


#: What is timed where there is a gradient.
PARTS: dict[str, Callable[[Function], object]] = {
    'forward': Differentiable.forward,
    'forward_backward': Differentiable.forward_backward,
}


def _bound(
    functions: Mapping[str, Callable[..., Tensor]],
    tensors: list[Tensor],
    suffix: str = '',
    cotangent: Tensor | None = None,
) -> dict[str, Function]:
    """The functions on tensors in a layout, which the suffix names."""
    cotangent = cotangent_of(tensors) if cotangent is None else cotangent
    return {
        name + suffix: Differentiable(function, tensors, cotangent)
        for name, function in functions.items()
    }


def _of_depthwise(case: DepthwiseCase, device: torch.device, dtype: torch.dtype) -> Problem:
    tensors = case.arguments(device, dtype)
    ours, others = depthwise.functions(case, tensors)

    def forward(function: Function) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return function()

    return Problem(
        case,
        dtype,
        ours,
        others,
        lambda function: list(function()),
        list(depthwise.expected_results(case, tensors)),
        {'forward': forward},
        {'forward': {'bytes': case.floor_bytes(tensors), 'flops': case.forward_flops()}},
        # A map in float32 for each step.
        lambda name: 4 * 4 * tensors[0].numel(),
    )
