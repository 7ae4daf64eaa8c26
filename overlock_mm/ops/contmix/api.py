"""The public functions, which check the arguments and call the operators."""

from torch import Tensor

from overlock_mm.ops.checks import check_tensors
from overlock_mm.ops.contmix import checks
from overlock_mm.ops.contmix.arguments import ContMixArguments
from overlock_mm.ops.contmix.backends import BACKENDS
from overlock_mm.ops.contmix.registration import CONTMIX, NEIGHBORHOOD_AGGREGATE
from overlock_mm.ops.dispatch import overridable
from overlock_mm.ops.precision import lower_to_autocast


@overridable
def neighborhood_aggregate(
    weight: Tensor,
    value: Tensor,
    kernel_size: int,
    *,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Sum values over each token's K x K window, weighted: the linear part of ContMix.

    Border rule: a window never leaves the map and is never padded. For row i of
    H rows it starts at ``clamp(i - K // 2, 0, H - K)``, and columns in the same way, so every
    token has exactly K * K neighbours and is off-centre near a border. With a dilation
    d the map falls into d * d interleaved maps, and the rule holds in each of them.

    Args:
        weight: [B, G, H, W, K*K], taps in row-major order.
        value: [B, G, H, W, C], same dtype and device.
        kernel_size: K, odd, 3 to 17; K * dilation is at most H and W.
        dilation: Distance of neighbouring taps.
        backend: One of :func:`available_backends`, and no other; None takes that of
            :func:`use_backend`, or else the first that can run the call.

    Returns:
        [B, G, H, W, C] in the dtype of ``value``, accumulated in float32 (float64
        for float64). Under autocast both tensors are lowered to its dtype.

    Raises:
        ValueError: A shape, device, kernel size, dilation or backend is not as stated.
        TypeError: A dtype is not as stated.
        RuntimeError: The forced backend cannot run the call.

    Example:
        >>> weight = torch.rand(2, 4, 14, 14, 49).softmax(-1)
        >>> neighborhood_aggregate(weight, torch.rand(2, 4, 14, 14, 16), 7).shape
        torch.Size([2, 4, 14, 14, 16])
    """
    check_tensors(weight=weight, value=value)
    weight, value = lower_to_autocast(weight, value)
    checks.check_neighborhood_aggregate(weight, value, kernel_size, dilation)
    BACKENDS.check(backend)
    return NEIGHBORHOOD_AGGREGATE(weight, value, kernel_size, dilation, backend=backend)


@overridable
def contmix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    rpb: Tensor,
    kernel_size: int,
    *,
    scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Apply a dynamic convolution whose per-token kernels depend on global context.

    For each token n and group g (paper section 3.3)::

        affinity[s] = sum over Cq of scale * query[n] * key[s]
        logits      = proj_weight @ affinity + proj_bias + position bias
        out[n]      = sum over the window of softmax(logits) * value

    with the border rule of :func:`neighborhood_aggregate`. The position bias of a
    neighbour at row r seen from row i is row ``r - i + K - 1`` of ``rpb``, and columns
    in the same way.

    Args:
        query: [B, G, Cq, H, W].
        key: [B, G, Cq, S], one vector per region of the context.
        value: [B, G, C, H, W]; query, key and value share dtype and device.
        proj_weight: [K*K, S], shared by all groups; the parameters share a dtype,
            which may differ from that of the activations.
        proj_bias: [K*K].
        rpb: [G, 2K-1, 2K-1], relative position bias.
        kernel_size: K, odd, 3 to 17, at most H and W.
        scale: Factor on the affinity.
        backend: One of :func:`available_backends`, and no other; None takes that of
            :func:`use_backend`, or else the first that can run the call.

    Returns:
        [B, G, C, H, W] in the dtype and the order of strides of ``value``: neither
        NCHW nor channels_last tensors are copied. Logits, softmax and sums are float32
        (float64 for float64). Under autocast query, key and value are lowered to its
        dtype.

    Raises:
        ValueError: A shape, device, kernel size or backend is not as stated.
        TypeError: A dtype is not as stated.
        RuntimeError: The forced backend cannot run the call.

    Example:
        >>> query, key = torch.rand(2, 4, 16, 14, 14), torch.rand(2, 4, 16, 49)
        >>> value, rpb = torch.rand(2, 4, 8, 14, 14), torch.zeros(4, 13, 13)
        >>> contmix(query, key, value, torch.rand(49, 49), torch.zeros(49), rpb, 7).shape
        torch.Size([2, 4, 8, 14, 14])
    """
    check_tensors(query=query, key=key, value=value)
    query, key, value = lower_to_autocast(query, key, value)
    arguments = ContMixArguments(query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale)
    checks.check_contmix(arguments)
    BACKENDS.check(backend)
    out, _ = CONTMIX(*arguments, backend=backend)
    return out
