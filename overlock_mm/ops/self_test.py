"""A small problem for each GPU backend before its first use.

Kernels are compiled for the card that is there, by compilers of many versions, and cards behave
differently. So the first call of an operator with certain sizes and dtype is preceded by a small
one, whose results are compared with those of the definition in float64 on the CPU. A backend that
raises or differs does not run such calls, and the reason says what happened. It costs
milliseconds, besides what the call itself would compile. ``OVERLOCK_SELF_TEST=0`` turns it off.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger('overlock_mm')

#: Types of devices whose backends are tested. What runs on the CPU is tested with the package.
DEVICES = ('cuda',)
#: How far a result may be from that of the definition, relative to its largest value: a gradient
#: in half precision starts from an output that has been rounded already.
TOLERANCES = {
    torch.float32: 1e-4,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
REMEDY = (
    'Please report this with the output of python -m overlock_mm.doctor. OVERLOCK_SELF_TEST=0, '
    'set before the start, turns the self-test off.'
)

Functions = Mapping[str, Callable[..., Any]]
#: Runs a small problem like a call: (functions of a backend, call, device, dtype) -> results. The
#: inputs have the same values on all devices and in all dtypes, those of the call's dtype.
Problem = Callable[[Functions, Any, torch.device, torch.dtype], list[Tensor]]

_verdicts: dict[tuple[str, str, Any], str | None] = {}


def why_not_trusted(
    family: str, backend: str, problem: Problem, functions: Functions, defined: Functions, call: Any
) -> str | None:
    """The reason why a backend failed its self-test, or None; tested once, then remembered.

    Args:
        family: Name of the family of operators.
        backend: Name of the backend.
        problem: The family's.
        functions: The backend's.
        defined: Those of the definition.
        call: The call in question.
    """
    if call.device.type not in DEVICES or os.environ.get('OVERLOCK_SELF_TEST') == '0':
        return None
    key = (family, backend, call)
    if key not in _verdicts:
        if is_watched():
            return None
        _verdicts[key] = verdict = _verdict(problem, functions, defined, call)
        if verdict is not None:
            logger.warning('Backend %r of %s is not used: %s', backend, call.op, verdict)
    return _verdicts[key]


def random_tensors(seed: int = 0) -> Callable[..., Tensor]:
    """A function that returns normally distributed float64 tensors, the same in every process.

    They are on the CPU, also where another device is the default.
    """
    generator = torch.Generator('cpu').manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64, device='cpu')


def is_watched() -> bool:
    """Whether a tracer, a mode, a transform or a graph capture would record the small problem."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _verdict(problem: Problem, functions: Functions, defined: Functions, call: Any) -> str | None:
    where = f'In a self-test on {_name(call.device)} in {str(call.dtype).removeprefix("torch.")}'
    device = call.device.type
    # The calls of backends come from below autocast, and so do these.
    with (
        torch.no_grad(),
        torch.autocast('cpu', enabled=False),
        torch.autocast(device, enabled=False),
    ):
        wanted = problem(defined, call, torch.device('cpu'), torch.float64)
        try:
            # Copies to the CPU wait for the kernels, so what they raise is raised here.
            results = [x.double().cpu() for x in problem(functions, call, call.device, call.dtype)]
        except torch.OutOfMemoryError:
            raise  # it says nothing of the backend, which a fuller memory must not rule out
        except Exception as error:
            message = ' '.join(str(error).split())
            return f'{where} it raised {type(error).__name__}: {message[:500]} {REMEDY}'
    bound = TOLERANCES[call.dtype]
    errors = [_error(x, y) for x, y in zip(results, wanted, strict=True)]
    worst = max(errors)
    if worst <= bound:
        return None
    return (
        f'{where} result {errors.index(worst)} of {len(errors)}, counted from 0, differs from the '
        f'definition by {worst:.1e} of its largest value, and {bound:.1e} is allowed. {REMEDY}'
    )


def _error(result: Tensor, wanted: Tensor) -> float:
    if result.shape != wanted.shape:
        return torch.inf
    error = (result - wanted).abs().max() / wanted.abs().max()
    return torch.inf if error.isnan() else error.item()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
