"""The public functions, which check the arguments and call the registered operators.

They work in channels_last memory. In inference, where a network of small depthwise convolutions
spends its time on passes over maps, activation, addition, normalisation and statistics ride along
in the pass of the convolution. The convolution without these has kernels for its gradients too.
"""

from torch import Tensor

from overlock_mm.ops.checks import check_tensors
from overlock_mm.ops.depthwise import checks
from overlock_mm.ops.depthwise.registration import (
    DEPTHWISE_CONV2D,
    DEPTHWISE_CONV2D_NORM,
    DEPTHWISE_CONV2D_STATS,
)
from overlock_mm.ops.dispatch import overridable
from overlock_mm.ops.precision import lower_to_autocast


@overridable
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    input_bias: Tensor | None = None,
    addend: Tensor | None = None,
    gelu_input: bool = False,
    gelu_output: bool = False,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Apply a depthwise convolution of stride 1 with zero padding dilation * (k // 2).

    ::

        y = conv(gelu(x + input_bias)) + bias + addend    # gelu if gelu_input
        return gelu(y)                                    # gelu if gelu_output

    GELU is the exact one, as ``F.gelu`` by default.

    Args:
        x: [B, C, H, W]; channels_last memory is read as it is, other layouts are converted.
        weight: [C, 1, k, k], k odd, 3 to 17. Fastest as :func:`channels_innermost` returns it.
        bias: [C]; the parameters share a dtype, which may differ from that of x, to which backends
            may round them.
        input_bias: [C]; the padding is zero all the same.
        addend: [B, C, H, W], in the dtype of x.
        gelu_input: Apply GELU before the convolution.
        gelu_output: Apply GELU to the result.
        dilation: Distance of neighbouring taps.
        backend: One of ``available_backends('depthwise_conv2d')``, and no other; None takes
            that of :func:`use_backend`, or else the first that can run the call.

    Returns:
        [B, C, H, W] in the dtype of x, in channels_last memory. Sums are float32 (float64 for
        float64). Under autocast x and addend are lowered to its dtype. Gradients of parameters are
        summed in the dtype of the sums.

    Raises:
        ValueError: A shape, device, kernel size, dilation or backend is not as stated.
        TypeError: A dtype is not as stated.
        RuntimeError: The forced backend cannot run the call.

    Example:
        >>> x = torch.rand(2, 16, 14, 14).to(memory_format=torch.channels_last)
        >>> depthwise_conv2d(x, torch.rand(16, 1, 3, 3), gelu_input=True).shape
        torch.Size([2, 16, 14, 14])
    """
    x, addend = _lowered(x, addend)
    checks.check_call(x, weight, bias, input_bias, addend, backend, dilation)
    return DEPTHWISE_CONV2D(
        x, weight, bias, input_bias, addend, gelu_input, gelu_output, dilation, backend=backend
    )


@overridable
def depthwise_conv2d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    *,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply a depthwise convolution, then LayerNorm over the channels of its result.

    Args:
        x: See :func:`depthwise_conv2d`.
        weight: See :func:`depthwise_conv2d`.
        bias: See :func:`depthwise_conv2d`.
        norm_weight: [C], in the dtype of ``weight``.
        norm_bias: [C], in the dtype of ``weight``.
        eps: Added to the variance.
        skip_weight: [C] or None, in the dtype of ``weight``.
        skip_bias: [C] or None, to be added to the skip product; needs ``skip_weight``.
        backend: See :func:`depthwise_conv2d`.

    Returns:
        With ``y = conv(x) + bias``: ``skip_weight * y + skip_bias``, or y without them, for the
        residual path around the norm; and ``LayerNorm(y)``. Both as :func:`depthwise_conv2d`
        returns.

    Raises:
        ValueError: A shape, device, kernel size, eps or backend is not as stated.
        TypeError: A dtype is not as stated.
        RuntimeError: The forced backend cannot run the call.
    """
    x, _ = _lowered(x, None)
    checks.check_call(x, weight, bias, None, None, backend)
    checks.check_norm(weight, norm_weight, norm_bias, eps, skip_weight, skip_bias)
    return DEPTHWISE_CONV2D_NORM(
        x, weight, bias, norm_weight, norm_bias, eps, skip_weight, skip_bias, backend=backend
    )


@overridable
def depthwise_conv2d_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    input_bias: Tensor | None = None,
    addend: Tensor | None = None,
    gelu_input: bool = False,
    stat: str = 'mean',
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply a depthwise convolution and compute a statistic of each channel of its result.

    Args:
        x: See :func:`depthwise_conv2d`.
        weight: See :func:`depthwise_conv2d`.
        bias: See :func:`depthwise_conv2d`.
        input_bias: See :func:`depthwise_conv2d`.
        addend: See :func:`depthwise_conv2d`.
        gelu_input: See :func:`depthwise_conv2d`.
        stat: 'mean' over rows and columns, as squeeze-excite takes it, or 'norm', the L2
            norm over them, as global response normalisation takes it.
        backend: See :func:`depthwise_conv2d`.

    Returns:
        ``y`` as :func:`depthwise_conv2d` returns it, and its statistic [B, C] in float32
        (float64 for float64), as the norm of a large map overflows float16. It does not depend
        on the number of threads.

    Raises:
        ValueError: A shape, device, kernel size, statistic or backend is not as stated.
        TypeError: A dtype is not as stated.
        RuntimeError: The forced backend cannot run the call.
    """
    x, addend = _lowered(x, addend)
    checks.check_call(x, weight, bias, input_bias, addend, backend)
    checks.check_stat(stat)
    return DEPTHWISE_CONV2D_STATS(
        x, weight, bias, input_bias, addend, gelu_input, stat, backend=backend
    )


def channels_innermost(weight: Tensor) -> Tensor:
    """Return the weight [C, 1, k, k] with its channels adjacent in memory.

    The compiled kernels read it so; of a weight in another layout they make a copy in every
    call. ``Tensor.copy_``, and with it ``load_state_dict``, keeps the layout.
    """
    return weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _lowered(x: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return both in the dtype of autocast, if that is on."""
    check_tensors(x=x)
    if addend is None:
        (x,) = lower_to_autocast(x)
        return x, None
    check_tensors(addend=addend)
    x, addend = lower_to_autocast(x, addend)
    return x, addend
