"""Triton kernels of the fused ContMix: the folded parameters, and the forward pass.

Affinity and projection are linear, so their product with the keys is made once for every
(batch, group): F = scale * P K^T, [K*K, Cq], with which the logits of a token are F q plus biases.
They are never stored. They are made window row by window row for a *tile*, T neighbouring tokens
of one map row, and again in the backward pass, where the saved log-sum-exp turns them into weights
at once.

The windows of a tile's tokens overlap. In one map row they cover a *band* of at most P columns,
and with weights skewed from [tokens, taps] to [tokens, columns of the band], zero outside of the
windows, the weighted sum of values is a matrix product. A program is a single warp: nothing in it
waits for other warps, and even small maps occupy the whole GPU.

Padded sizes: ROW is K, QP Cq and CP C, each padded to a power of two of 16 or more, as `tl.dot`
demands. K is odd, so that a padding tap always exists.

What `fold_kernel` prepares, contiguous, with logits in units of log 2:

- folded [parts, B*G, K, QP, ROW]: F, for each window row by channel and tap, in the dtype of the
  activations. Half precision has two parts, F rounded and what that leaves, whose sum is as good
  as float32.
- tap_bias [K, ROW], float32: the bias of the projection, -inf in the padding.
- position_bias [G, 2K-1, K-1+ROW], float32, zero in the padding.
"""

import triton
import triton.language as tl

from overlock_mm.ops.contmix.triton_tiles import (
    band_start,
    factor,
    load_row,
    product,
    skewed,
    store_row,
    tile_of,
    window_start,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def fold_kernel(
    key,
    key_strides,
    proj_weight,
    proj_bias,
    rpb,
    folded,
    tap_bias,
    position_bias,
    scale,
    batches,
    groups,
    QUERY_CHANNELS: tl.constexpr,
    REGIONS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    SP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Fold one window row of one (batch, group); grid (B * G * K,).

    The biases are copied by the programs of the first batch.
    """
    tap_row = tl.program_id(0) % K
    pair = tl.program_id(0) // K
    channel = tl.arange(0, QP)[:, None]
    tap = tl.arange(0, ROW)
    base = tl.cast(pair // groups, tl.int64) * key_strides[0]
    base += tl.cast(pair % groups, tl.int64) * key_strides[1]
    total = tl.zeros([QP, ROW], tl.float32)
    for first in range(0, REGIONS, SP):
        region = first + tl.arange(0, SP)
        offset = base + channel.to(tl.int64) * key_strides[2]
        offset = offset + region.to(tl.int64)[None, :] * key_strides[3]
        mask = (channel < QUERY_CHANNELS) & (region < REGIONS)[None, :]
        keys = tl.load(key + offset, mask=mask, other=0.0).to(tl.float32)
        offset = (tap_row * K + tap)[None, :] * REGIONS + region[:, None]
        mask = (tap < K)[None, :] & (region < REGIONS)[:, None]
        projection = tl.load(proj_weight + offset, mask=mask, other=0.0)
        total = tl.dot(keys, projection, total, input_precision='ieee')
    total *= scale * LOG2E
    part = total.to(folded.dtype.element_ty)
    target = tl.cast(tl.program_id(0), tl.int64) * (QP * ROW) + channel * ROW + tap[None, :]
    tl.store(folded + target, part)
    if PARTS == 2:
        rest = (total - part.to(tl.float32)).to(folded.dtype.element_ty)
        parts = tl.cast(batches * groups * K, tl.int64) * (QP * ROW)
        tl.store(folded + parts + target, rest)

    if pair == 0:
        bias = tl.load(proj_bias + tap_row * K + tap, mask=tap < K, other=float('-inf'))
        tl.store(tap_bias + tap_row * ROW + tap, bias * LOG2E)
    if pair < groups:
        side: tl.constexpr = 2 * K - 1
        columns: tl.constexpr = K - 1 + ROW
        column = tl.arange(0, 2 * ROW)
        for row in range(tap_row, side, K):
            bias = tl.load(rpb + (pair * side + row) * side + column, mask=column < side, other=0.0)
            flat = (pair * side + row) * columns + column
            tl.store(position_bias + flat, bias * LOG2E, mask=column < columns)


@triton.jit
def bias_offset(group, y, x, height, width, K: tl.constexpr, ROW: tl.constexpr):
    """Return where a tile's biases of window row 0 lie in `position_bias`, [T, ROW].

    The bias of the neighbour at row r seen from row y is row r - y + K - 1.
    """
    x = tl.minimum(x, width - 1)
    row = group * (2 * K - 1) + window_start(y, height, K) - y + K - 1
    column = window_start(x, width, K) - x + K - 1
    return row * (K - 1 + ROW) + column[:, None] + tl.arange(0, ROW)[None, :]


@triton.jit
def load_bias(tap_bias, position_bias, offset, tap_row, K: tl.constexpr, ROW: tl.constexpr):
    """Load both biases of a tile's logits of one window row, [T, ROW], -inf in the padding."""
    bias = tl.load(position_bias + offset + tap_row * (K - 1 + ROW))
    return bias + tl.load(tap_bias + tap_row * ROW + tl.arange(0, ROW))[None, :]


@triton.jit
def load_folded(
    folded,
    pair,
    tap_row,
    pairs,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Load F of a window row and, in half precision, what its rounding left, both [QP, ROW]."""
    element = tl.arange(0, QP)[:, None] * ROW + tl.arange(0, ROW)[None, :]
    base = (tl.cast(pair, tl.int64) * K + tap_row) * (QP * ROW)
    f = tl.load(folded + base + element)
    rest = f
    if PARTS == 2:
        rest = tl.load(folded + base + tl.cast(pairs, tl.int64) * (K * QP * ROW) + element)
    return f, rest


@triton.jit
def row_logits(q, f, rest, bias, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Compute a tile's logits of one window row, [T, ROW] float32."""
    logits = product(q, f, bias, PRECISION)
    if PARTS == 2:
        logits = product(q, rest, logits, PRECISION)
    return logits


@triton.jit
def forward_kernel(
    query,
    query_strides,
    value,
    value_strides,
    folded,
    tap_bias,
    position_bias,
    out,
    out_strides,
    logsumexp,
    pairs,
    groups,
    height,
    width,
    QUERY_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    CP: tl.constexpr,
    TOKENS: tl.constexpr,
    BAND: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute output and log-sum-exp [B, G, H, W] of one tile; grid (B * G * H * tiles,)."""
    pair, y, first = tile_of(tl.program_id(0), height, width, TOKENS)
    batch = pair // groups
    group = pair % groups
    x = first + tl.arange(0, TOKENS)
    valid = x < width
    q = load_row(query, query_strides, batch, group, y, x, valid, QUERY_CHANNELS, QP)

    band = band_start(first, width, K)
    column = band + tl.arange(0, BAND)
    # A column outside of a token's window gets the weight of a padding tap, which is zero.
    tap = column[None, :] - window_start(x, width, K)[:, None]
    tap = tl.where((tap >= 0) & (tap < K), tap, K)
    offset = bias_offset(group, y, x, height, width, K, ROW)
    first_row = window_start(y, height, K)

    largest = tl.full([TOKENS], float('-inf'), tl.float32)
    total = tl.zeros([TOKENS, ROW], tl.float32)
    mixed = tl.zeros([TOKENS, CP], tl.float32)
    for tap_row in range(K):
        values = load_row(
            value,
            value_strides,
            batch,
            group,
            first_row + tap_row,
            column,
            column < width,
            CHANNELS,
            CP,
        )
        f, rest = load_folded(folded, pair, tap_row, pairs, K, ROW, QP, PARTS)
        bias = load_bias(tap_bias, position_bias, offset, tap_row, K, ROW)
        logits = row_logits(q, f, rest, bias, PARTS, PRECISION)
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        rescale = tl.exp2(largest - new_largest)[:, None]
        weight = tl.exp2(logits - new_largest[:, None])
        total = total * rescale + weight
        weight = skewed(factor(weight, value.dtype.element_ty, PRECISION), tap)
        mixed = product(weight, values, mixed * rescale, PRECISION)
        largest = new_largest

    sums = tl.sum(total, 1)
    mixed = mixed / sums[:, None]
    store_row(out, out_strides, batch, group, y, x, valid, mixed, CHANNELS, CP)
    flat = (tl.cast(pair, tl.int64) * height + y) * width + x
    tl.store(logsumexp + flat, (largest + tl.log2(sums)) / LOG2E, mask=valid)
