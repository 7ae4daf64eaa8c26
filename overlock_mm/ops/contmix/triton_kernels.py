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

What `fold_kernel` prepares, contiguous, in the dtype of the activations, with logits in units of
log 2. There are two parts, values rounded and what that leaves, where one would not be as good as
float32:

- folded [parts, B*G, K, QP, ROW]: F, for each window row by channel and tap; for half precision
  in two parts.
- biases [2, G, K, K, ROW, ROW]: the sum of both biases, for each shift of the rows and each
  window row by shift of the columns and tap, about minus infinity in the padding. The *shift* of a
  token is the start of its window minus its own row (or column), plus K - 1: K // 2 away from the
  borders, 0 to K - 1 near them. A tile selects its biases by a matrix product with the one-hot
  shifts of its tokens.
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

#: Arguments that do not make another binary where they are one or a multiple of 16: detectors see
#: images of many sizes, and only the width decides how a map can be loaded.
COUNTS = ('pairs', 'groups', 'height', 'chunks')


@triton.jit(do_not_specialize=COUNTS)
def fold_kernel(
    key,
    key_strides,
    proj_weight,
    proj_bias,
    rpb,
    folded,
    biases,
    scale,
    pairs,
    groups,
    QUERY_CHANNELS: tl.constexpr,
    REGIONS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    SP: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Fold a window row of a (batch, group), or add biases; grid (B * G * K + G * K * K,)."""
    tap_row = tl.program_id(0) % K
    tap = tl.arange(0, ROW)[None, :]
    if tl.program_id(0) < pairs * K:
        pair = tl.program_id(0) // K
        channel = tl.arange(0, QP)[:, None]
        base = tl.cast(pair // groups, tl.int64) * key_strides[0]
        base += tl.cast(pair % groups, tl.int64) * key_strides[1]
        total = tl.zeros([QP, ROW], tl.float32)
        for first in range(0, REGIONS, SP):
            region = first + tl.arange(0, SP)
            offset = base + channel.to(tl.int64) * key_strides[2]
            offset = offset + region.to(tl.int64)[None, :] * key_strides[3]
            mask = (channel < QUERY_CHANNELS) & (region < REGIONS)[None, :]
            keys = tl.load(key + offset, mask=mask, other=0.0).to(tl.float32)
            offset = (tap_row * K + tap) * REGIONS + region[:, None]
            mask = (tap < K) & (region < REGIONS)[:, None]
            projection = tl.load(proj_weight + offset, mask=mask, other=0.0)
            total = product(keys, projection.to(tl.float32), total, 'tf32x3')
        target = tl.cast(tl.program_id(0), tl.int64) * (QP * ROW) + channel * ROW + tap
        store_parts(folded, target, total * (scale * LOG2E), pairs * K, QP * ROW, PARTS)
    else:
        index = tl.program_id(0) - pairs * K
        shift = index // K % K
        group = index // K // K
        column = tl.arange(0, ROW)[:, None]
        side: tl.constexpr = 2 * K - 1
        inside = (tap < K) & (column < K)
        offset = (group * side + shift + tap_row) * side + column + tap
        bias = tl.load(rpb + offset, mask=inside, other=0.0).to(tl.float32)
        bias += tl.load(proj_bias + tap_row * K + tap, mask=tap < K, other=0.0).to(tl.float32)
        # Finite, because it meets the zeros of the one-hot shifts.
        lowest: tl.constexpr = -6e4 if biases.dtype.element_ty.is_fp16() else -1e30
        bias = tl.where(tap < K, bias * LOG2E, lowest)
        target = tl.cast(index, tl.int64) * (ROW * ROW) + column * ROW + tap
        store_parts(biases, target, bias, groups * K * K, ROW * ROW, 2)


@triton.jit
def store_parts(pointer, offset, x, count, SIZE: tl.constexpr, PARTS: tl.constexpr):
    """Write one of `count` matrices, rounded, and if there are two parts what that leaves."""
    if PARTS == 2:
        part = factor(x, pointer.dtype.element_ty, 'tf32')
        rest = (x - part.to(tl.float32)).to(pointer.dtype.element_ty)
        tl.store(pointer + offset, part)
        tl.store(pointer + tl.cast(count, tl.int64) * SIZE + offset, rest)
    else:
        tl.store(pointer + offset, x)


@triton.jit
def load_parts(
    pointer, index, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr
):
    """Load a matrix [ROWS, COLUMNS] of `count`, and its other part if there are two."""
    offset = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pointer += tl.cast(index, tl.int64) * (ROWS * COLUMNS)
    x = tl.load(pointer + offset)
    rest = x
    if PARTS == 2:
        rest = tl.load(pointer + tl.cast(count, tl.int64) * (ROWS * COLUMNS) + offset)
    return x, rest


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
    """Load F of a window row in parts, [QP, ROW]."""
    return load_parts(folded, pair * K + tap_row, pairs * K, QP, ROW, PARTS)


@triton.jit
def load_biases(biases, group, shift, tap_row, groups, K: tl.constexpr, ROW: tl.constexpr):
    """Load the biases of a window row for a shift of the rows in two parts, [ROW, ROW]."""
    return load_parts(biases, (group * K + shift) * K + tap_row, groups * K * K, ROW, ROW, 2)


@triton.jit
def shift_of(i, size, K: tl.constexpr):
    """Return the shift of row (or column) i."""
    return window_start(i, size, K) - i + K - 1


@triton.jit
def one_hot_shifts(x, width, K: tl.constexpr, ROW: tl.constexpr, DTYPE: tl.constexpr):
    """Return the shifts of a tile's columns, [T, ROW]; none beyond the map."""
    same = shift_of(x, width, K)[:, None] == tl.arange(0, ROW)[None, :]
    # By way of float32: the interpreter takes the bits of an integer for those of bfloat16.
    return same.to(tl.float32).to(DTYPE)


@triton.jit
def row_logits(q, shifts, f, f_rest, bias, bias_rest, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Compute a tile's logits of one window row, [T, ROW] float32."""
    # The one-hot shifts are exact in TF32, and so are the parts of the biases, nearly.
    logits = product(shifts, bias, tl.zeros([q.shape[0], f.shape[1]], tl.float32), 'tf32')
    logits = product(shifts, bias_rest, logits, 'tf32')
    if PARTS == 2:
        logits = product(q, f_rest, logits, PRECISION)
    return product(q, f, logits, PRECISION)


@triton.jit(do_not_specialize=COUNTS)
def forward_kernel(
    query,
    query_strides,
    value,
    value_strides,
    folded,
    biases,
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
    shift = shift_of(y, height, K)
    shifts = one_hot_shifts(x, width, K, ROW, q.dtype)
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
        bias, bias_rest = load_biases(biases, group, shift, tap_row, groups, K, ROW)
        logits = row_logits(q, shifts, f, rest, bias, bias_rest, PARTS, PRECISION)
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
