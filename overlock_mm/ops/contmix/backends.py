"""Which implementation runs a call, and why another one cannot.

A backend is a module with four functions that know nothing of autograd::

    contmix_forward(query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale)
        -> (out, logsumexp [B, G, H, W])
    contmix_backward(grad_out, query, key, value, proj_weight, proj_bias, rpb, out,
                     logsumexp, kernel_size, scale)
        -> one gradient for each of the six tensors, in its shape and dtype
    neighborhood_aggregate_forward(weight, value, kernel_size, dilation) -> out
    neighborhood_aggregate_backward(grad_out, weight, value, kernel_size, dilation)
        -> (d_weight, d_value)

and ``why_not(call)``, which lists every reason why it cannot run a call. Arguments
are validated and not empty, with any strides. Outputs and gradients of query, value and
weight have the strides that ``torch.empty_like`` gives them, the others are contiguous.
Modules are imported when first asked.
"""

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, Protocol

import torch
from torch import Tensor

logger = logging.getLogger('overlock_mm')

#: Name of a backend -> its module, in the order of automatic choice.
BACKENDS: Mapping[str, str] = {
    'cuda': 'overlock_mm.ops.contmix.cuda_backend',
    'triton': 'overlock_mm.ops.contmix.triton_backend',
    'cpu': 'overlock_mm.ops.contmix.cpu_backend',
    'reference': 'overlock_mm.ops.contmix.reference_backend',
}

_logged: set[tuple[str, str, str]] = set()


class AnyCall(Protocol):
    """What selection must know of a call to any operator of this package.

    Attributes:
        backends: Name of a backend -> its module, in the order of automatic choice.
        reference_is_slow: Whether it deserves a warning that the last of them runs the call.
        op: Name of the operator.
        device: Of all tensors.
        dtype: Of the activations.
    """

    backends: ClassVar[Mapping[str, str]]
    reference_is_slow: ClassVar[bool]

    @property
    def op(self) -> str: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102


@dataclass(frozen=True)
class Call:
    """What a backend must know of a call to say whether it can run it.

    Attributes:
        op: 'contmix' or 'neighborhood_aggregate'.
        device: Of all tensors.
        dtype: Of the activations.
        kernel_size: K.
        dilation: 1 for contmix.
        channels: C, channels of a group's values.
        query_channels: Cq; 0 for neighborhood_aggregate.
        regions: S; 0 for neighborhood_aggregate.
    """

    backends: ClassVar[Mapping[str, str]] = BACKENDS
    reference_is_slow: ClassVar[bool] = True

    op: str
    device: torch.device
    dtype: torch.dtype
    kernel_size: int
    dilation: int = 1
    channels: int = 16
    query_channels: int = 0
    regions: int = 0

    @classmethod
    def contmix(cls, query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> 'Call':
        """Describe ``contmix(query, key, value, ..., kernel_size)``."""
        return cls(
            op='contmix',
            device=value.device,
            dtype=value.dtype,
            kernel_size=kernel_size,
            channels=value.shape[2],
            query_channels=query.shape[2],
            regions=key.shape[3],
        )

    @classmethod
    def neighborhood_aggregate(cls, value: Tensor, kernel_size: int, dilation: int = 1) -> 'Call':
        """Describe ``neighborhood_aggregate(weight, value, kernel_size, dilation)``."""
        return cls(
            op='neighborhood_aggregate',
            device=value.device,
            dtype=value.dtype,
            kernel_size=kernel_size,
            dilation=dilation,
            channels=value.shape[-1],
        )

    @classmethod
    def typical(cls) -> 'Call':
        """ContMix as stage 3 of variant T calls it, on the GPU if there is one."""
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        return cls('contmix', device, torch.float32, 13, query_channels=16, regions=49)


def available_backends(call: AnyCall | None = None) -> dict[str, list[str]]:
    """Why each backend can or cannot run a call.

    Args:
        call: The call in question; None asks for :meth:`Call.typical`.

    Returns:
        Name of each backend, in the order of automatic choice, and all reasons why it
        cannot run the call. A backend without reasons can.

    Example:
        >>> [name for name, reasons in available_backends().items() if not reasons][-1]
        'reference'
    """
    call = call or Call.typical()
    return {name: _module(call, name).why_not(call) for name in call.backends}


def check_backend(backend: str | None, backends: Mapping[str, str] = BACKENDS) -> None:
    """Raise a ValueError unless the name is that of a backend or None."""
    if backend is not None and backend not in backends:
        known = ', '.join(backends)
        raise ValueError(f'backend must be None or one of: {known}; got {backend!r}.')


def select_backend(call: AnyCall, backend: str | None = None) -> ModuleType:
    """The module that runs a call.

    Args:
        call: The call.
        backend: Name of the backend to use and no other; None takes the first one in
            the order of ``call.backends`` that can, and logs once which one it is.

    Raises:
        ValueError: No backend has this name.
        RuntimeError: The forced backend cannot run the call; states all reasons.
    """
    check_backend(backend, call.backends)
    if backend is not None:
        module = _module(call, backend)
        reasons = module.why_not(call)
        if reasons:
            raise RuntimeError(
                f'Backend {backend!r} cannot run {call.op} here: {_listed(reasons)} '
                'Pass backend=None to let overlock_mm choose.'
            )
        return module

    refusals: dict[str, list[str]] = {}
    for name in call.backends:
        module = _module(call, name)
        reasons = module.why_not(call)
        if not reasons:
            _log_choice(call, name, refusals)
            return module
        refusals[name] = reasons
    raise RuntimeError(f'No backend can run {call}: {refusals}')  # the reference always can


def _module(call: AnyCall, name: str) -> ModuleType:
    return importlib.import_module(call.backends[name])


def _listed(reasons: list[str]) -> str:
    return ' '.join(f'({number}) {reason}' for number, reason in enumerate(reasons, 1))


def _log_choice(call: AnyCall, chosen: str, refusals: dict[str, list[str]]) -> None:
    """Say once per op, kind of device and backend what was chosen, and what would be faster."""
    topic = (call.op, call.device.type, chosen)
    if topic in _logged:
        return
    _logged.add(topic)
    if chosen != 'reference' or not call.reference_is_slow:
        logger.info('%s on %s runs on backend %r.', call.op, call.device.type, chosen)
        return
    # Two backends of one binary share reasons.
    reasons = dict.fromkeys(reason for listed in refusals.values() for reason in listed)
    logger.warning(
        '%s on %s runs on the slow backend %r, because %s cannot run it: %s',
        call.op,
        call.device.type,
        chosen,
        ', '.join(refusals),
        _listed(list(reasons)),
    )
