"""The function that fused layers call. It does not check its arguments."""

import torch
from torch import Tensor

from overlock_mm.ops.dispatch import bypasses_dispatcher, overridable
from overlock_mm.ops.pointwise import reference_backend
from overlock_mm.ops.pointwise.backends import BACKENDS, Call
from overlock_mm.ops.precision import in_autocast


@overridable
def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    factor: Tensor | None = None,
    addend: Tensor | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Apply a 1 x 1 convolution to a channels_last map, as one matrix product.

    ::

        conv(x * factor) + bias    # or + addend

    The factor of a large map goes into one matrix per sample, which saves a pass over the map.

    Args:
        x: [B, I, H, W].
        weight: [O, I].
        bias: [O].
        factor: Per sample and channel, [B, I]; it may be of a higher precision.
        addend: [B, O, H, W], in channels_last memory; not beside a bias.
        inplace: Let the result take the memory of ``addend``. Not every backend does.
        backend: 'onednn' or 'reference' (torch's own product); None takes that of
            :func:`overlock_mm.ops.use_backend`, or else the first that can run the call.

    Returns:
        [B, O, H, W] in channels_last memory.

    Raises:
        RuntimeError: The forced backend cannot run the call.
    """
    batch, _, height, width = x.shape
    start = 0
    if factor is not None:
        # Statistics of half-precision maps come in float32, as norms overflow in float16.
        factor = factor.to(x.dtype)
        if height * width >= 2 * len(weight):
            weight, start = weight * factor[:, None], 1
        else:
            x = x * factor[..., None, None]
    added = bias if addend is None else _rows(addend, start)
    out = _linear(_rows(x, start), weight, added, inplace, backend)
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _rows(x: Tensor, start: int) -> Tensor:
    """Return pixels of [B, C, H, W] as rows: [B * H * W, C] for axis 0, [B, H * W, C] for 1."""
    return x.permute(0, 2, 3, 1).flatten(start, 2)


def _linear(
    rows: Tensor, weight: Tensor, added: Tensor | None, inplace: bool, backend: str | None
) -> Tensor:
    if torch.compiler.is_compiling():
        return reference_backend.linear(rows, weight, added, False)
    others = (weight,) if added is None else (weight, added)
    simple = (
        bypasses_dispatcher((rows, *others))
        and all(x.dtype == rows.dtype for x in others)
        and rows.numel() > 0
        and not in_autocast(rows.device.type)
    )
    call = Call('pointwise_conv2d', rows.device, rows.dtype, simple)
    return BACKENDS.select(call, backend).functions['linear'](
        rows, weight, added, inplace and simple
    )
