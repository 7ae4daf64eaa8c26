"""The public functions: check the arguments, choose a backend, call it."""

from torch import Tensor

from overlock_mm.ops.contmix import checks
from overlock_mm.ops.contmix.backends import select_backend


def neighborhood_aggregate(
    weight: Tensor, value: Tensor, kernel_size: int, *, backend: str | None = None
) -> Tensor:
    """Weighted sum over each token's K x K window, the linear part of ContMix.

    Border rule: a window never leaves the map and is never padded. For row i of
    H rows it starts at ``clamp(i - K // 2, 0, H - K)``, columns likewise, so every
    token has exactly K * K neighbours and is off-centre near a border.

    Args:
        weight: [B, G, H, W, K*K], taps in row-major order.
        value: [B, G, H, W, C], same dtype and device.
        kernel_size: K, odd, 3 to 17, at most H and W.
        backend: One of :func:`available_backends`; None chooses.

    Returns:
        [B, G, H, W, C] in the dtype of ``value``, accumulated in float32 (float64
        for float64).

    Raises:
        ValueError: A shape, device, kernel size or backend is not as stated.
        TypeError: A dtype is not as stated.

    Example:
        >>> weight = torch.rand(2, 4, 14, 14, 49).softmax(-1)
        >>> neighborhood_aggregate(weight, torch.rand(2, 4, 14, 14, 16), 7).shape
        torch.Size([2, 4, 14, 14, 16])
    """
    checks.check_neighborhood_aggregate(weight, value, kernel_size)
    return select_backend(backend).neighborhood_aggregate(weight, value, kernel_size)


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
    """Dynamic convolution whose per-token kernels carry global context.

    For each token n and group g (paper section 3.3)::

        affinity[s] = sum over Cq of scale * query[n] * key[s]
        logits      = proj_weight @ affinity + proj_bias + position bias
        out[n]      = sum over the window of softmax(logits) * value

    with the border rule of :func:`neighborhood_aggregate`. The position bias of a
    neighbour at row r seen from row i is row ``r - i + K - 1`` of ``rpb``, columns
    likewise.

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
        backend: One of :func:`available_backends`; None chooses.

    Returns:
        [B, G, C, H, W] in the dtype of ``value``. Logits, softmax and sums are
        float32 (float64 for float64), also under autocast.

    Raises:
        ValueError: A shape, device, kernel size or backend is not as stated.
        TypeError: A dtype is not as stated.

    Example:
        >>> query, key = torch.rand(2, 4, 16, 14, 14), torch.rand(2, 4, 16, 49)
        >>> value, rpb = torch.rand(2, 4, 8, 14, 14), torch.zeros(4, 13, 13)
        >>> contmix(query, key, value, torch.rand(49, 49), torch.zeros(49), rpb, 7).shape
        torch.Size([2, 4, 8, 14, 14])
    """
    checks.check_contmix(query, key, value, proj_weight, proj_bias, rpb, kernel_size)
    return select_backend(backend).contmix(
        query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale
    )
