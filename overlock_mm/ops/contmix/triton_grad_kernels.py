"""Triton kernels of the backward pass of ContMix.

Three kernels, so that each sum has one owner, which adds in a fixed order: no
atomics, and the same bits in every run.

- query gradient: a program owns a tile and walks the windows of its tokens;
- value gradient: a program owns a tile and walks the windows that hold its tokens, which
  are those of an interval of rows and columns (`inverse_first`, `inverse_last`);
- parameter gradients: a program owns one window row and a share of the tiles with the same
  columns. Map rows are visited in classes whose windows are shifted alike, so that a class and
  a window row meet a single row of the position bias.

Gradients of the keys and of the projection follow from that of their product F. Names of sizes
and shapes of parameters are those of triton_kernels. In float16 the gradients of logits could
underflow, so GRAD_DTYPE, in which they enter matrix products, is float32 then.
"""

import triton
import triton.language as tl

from overlock_mm.ops.contmix.triton_kernels import (
    COUNTS,
    LOG2E,
    load_biases,
    load_folded,
    one_hot_shifts,
    row_logits,
    shift_of,
)
from overlock_mm.ops.contmix.triton_tiles import (
    band_start,
    factor,
    inverse_first,
    inverse_last,
    load_row,
    product,
    skewed,
    store_row,
    tile_of,
    window_start,
)


@triton.jit
def band_position(x, band, width, K: tl.constexpr, ROW: tl.constexpr, BAND: tl.constexpr):
    """Return where in the band each tap of a token's window row lies, [T, ROW]."""
    position = (window_start(x, width, K) - band)[:, None] + tl.arange(0, ROW)[None, :]
    return tl.minimum(position, BAND - 1)


@triton.jit
def load_logsumexp(logsumexp, flat, valid):
    """Load them in units of log 2; infinite, which makes all weights zero, beyond the map."""
    return tl.load(logsumexp + flat, mask=valid, other=float('inf')) * LOG2E


@triton.jit
def row_logit_grad(logits, lse, go, values, go_dot_out, position, PRECISION: tl.constexpr):
    """Compute the gradient of the logits of one window row, [T, ROW] float32."""
    products = product(
        go, tl.trans(values), tl.zeros([go.shape[0], values.shape[0]], tl.float32), PRECISION
    )
    weight_grad = skewed(products, position)
    return tl.exp2(logits - lse[:, None]) * (weight_grad - go_dot_out[:, None])


@triton.jit(do_not_specialize=COUNTS)
def query_grad_kernel(
    grad_out,
    grad_out_strides,
    query,
    query_strides,
    value,
    value_strides,
    folded,
    biases,
    out,
    out_strides,
    logsumexp,
    delta,
    d_query,
    d_query_strides,
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
    GRAD_DTYPE: tl.constexpr,
):
    """Compute the query gradient and delta of a tile; grid (B * G * H * tiles,).

    delta [B, G, H, W] is the sum over C of grad_out * out, which the parameter gradients read.
    """
    pair, y, first = tile_of(tl.program_id(0), height, width, TOKENS)
    batch = pair // groups
    group = pair % groups
    x = first + tl.arange(0, TOKENS)
    valid = x < width
    flat = (tl.cast(pair, tl.int64) * height + y) * width + x
    q = load_row(query, query_strides, batch, group, y, x, valid, QUERY_CHANNELS, QP)
    go = load_row(grad_out, grad_out_strides, batch, group, y, x, valid, CHANNELS, CP)
    mixed = load_row(out, out_strides, batch, group, y, x, valid, CHANNELS, CP)
    go_dot_out = tl.sum(go.to(tl.float32) * mixed.to(tl.float32), 1)
    tl.store(delta + flat, go_dot_out, mask=valid)
    lse = load_logsumexp(logsumexp, flat, valid)

    band = band_start(first, width, K)
    column = band + tl.arange(0, BAND)
    position = band_position(x, band, width, K, ROW, BAND)
    shift = shift_of(y, height, K)
    shifts = one_hot_shifts(x, width, K, ROW, q.dtype)
    first_row = window_start(y, height, K)
    d_q = tl.zeros([TOKENS, QP], tl.float32)
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
        d_logits = row_logit_grad(logits, lse, go, values, go_dot_out, position, PRECISION)
        d_q = product(
            factor(d_logits, GRAD_DTYPE, PRECISION),
            tl.trans(f).to(GRAD_DTYPE),
            d_q,
            PRECISION,
        )
    store_row(d_query, d_query_strides, batch, group, y, x, valid, d_q / LOG2E, QUERY_CHANNELS, QP)


@triton.jit(do_not_specialize=COUNTS)
def value_grad_kernel(
    grad_out,
    grad_out_strides,
    query,
    query_strides,
    folded,
    biases,
    logsumexp,
    d_value,
    d_value_strides,
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
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the value gradient of a tile; grid (B * G * H * tiles,)."""
    pair, y, first = tile_of(tl.program_id(0), height, width, TOKENS)
    batch = pair // groups
    group = pair % groups
    x = first + tl.arange(0, TOKENS)
    last_column = inverse_last(tl.minimum(first + TOKENS, width) - 1, width, K)
    # From a multiple of eight columns, for wide loads in NCHW layout.
    first_column = tl.multiple_of(inverse_first(first, K) // 8 * 8, 8)
    total = tl.zeros([TOKENS, CP], tl.float32)
    for query_first in range(first_column, last_column + 1, TOKENS):
        qx = query_first + tl.arange(0, TOKENS)
        valid = qx < width
        # A padding tap, whose weight is zero, where the window does not hold the token.
        tap = x[None, :] - window_start(qx, width, K)[:, None]
        tap = tl.where((tap >= 0) & (tap < K), tap, K)
        shifts = one_hot_shifts(qx, width, K, ROW, query.dtype.element_ty)
        for qy in range(inverse_first(y, K), inverse_last(y, height, K) + 1):
            q = load_row(query, query_strides, batch, group, qy, qx, valid, QUERY_CHANNELS, QP)
            go = load_row(grad_out, grad_out_strides, batch, group, qy, qx, valid, CHANNELS, CP)
            tap_row = y - window_start(qy, height, K)
            f, rest = load_folded(folded, pair, tap_row, pairs, K, ROW, QP, PARTS)
            shift = shift_of(qy, height, K)
            bias, bias_rest = load_biases(biases, group, shift, tap_row, groups, K, ROW)
            logits = row_logits(q, shifts, f, rest, bias, bias_rest, PARTS, PRECISION)
            flat = (tl.cast(pair, tl.int64) * height + qy) * width + qx
            lse = load_logsumexp(logsumexp, flat, valid)
            weight = factor(tl.exp2(logits - lse[:, None]), grad_out.dtype.element_ty, PRECISION)
            total = product(tl.trans(skewed(weight, tap)), go, total, PRECISION)
    store_row(d_value, d_value_strides, batch, group, y, x, x < width, total, CHANNELS, CP)


@triton.jit(do_not_specialize=COUNTS)
def parameter_grad_kernel(
    grad_out,
    grad_out_strides,
    query,
    query_strides,
    value,
    value_strides,
    folded,
    biases,
    logsumexp,
    delta,
    d_folded,
    d_tap_bias,
    d_position_bias,
    pairs,
    groups,
    height,
    width,
    chunks,
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
    GRAD_DTYPE: tl.constexpr,
):
    """Compute partial gradients of one window row; grid (B * G * tiles * chunks * K,).

    Writes, each contiguous with the grid's axes first: d_folded [QP, ROW], that of F, and
    d_tap_bias [ROW]. Of d_position_bias [B * G, tiles, K, chunks + K - 1, 2 ROW] each chunk writes
    a row for its share of the map rows away from the borders, and its share of the others.
    """
    program = tl.program_id(0)
    tap_row = program % K
    chunk = program // K % chunks
    tiles = tl.cdiv(width, TOKENS)
    first = program // K // chunks % tiles * TOKENS
    pair = program // K // chunks // tiles
    batch = pair // groups
    group = pair % groups
    x = first + tl.arange(0, TOKENS)
    valid = x < width
    band = band_start(first, width, K)
    column = band + tl.arange(0, BAND)
    position = band_position(x, band, width, K, ROW, BAND)
    shifts = one_hot_shifts(x, width, K, ROW, query.dtype.element_ty)
    bias_column = tl.arange(0, 2 * ROW)
    bias_tap = bias_column[None, :] - shift_of(x, width, K)[:, None]
    bias_tap = tl.where((bias_tap >= 0) & (bias_tap < K), bias_tap, K)

    f, rest = load_folded(folded, pair, tap_row, pairs, K, ROW, QP, PARTS)
    folded_sum = tl.zeros([QP, ROW], tl.float32)
    tap_sum = tl.zeros([TOKENS, ROW], tl.float32)
    # Window start minus token row is shift - (K - 1); all rows of a class share it. Away from
    # the borders it is -(K // 2), and near them each row is a class of its own.
    for index in range(chunk - chunks, K - 1, chunks):
        border = index + tl.zeros([], tl.int32)
        shift = tl.where(border >= K // 2, border + 1, border)
        row = tl.where(shift > K // 2, K - 1 - shift, height - 1 - shift)
        shift = tl.where(border < 0, K // 2, shift)
        row = tl.where(border < 0, K // 2 + chunk, row)
        end = tl.where(border < 0, K // 2 + height - K + 1, row + 1)
        bias, bias_rest = load_biases(biases, group, shift, tap_row, groups, K, ROW)
        class_sum = tl.zeros([TOKENS, ROW], tl.float32)
        for y in range(row, end, chunks):
            flat = (tl.cast(pair, tl.int64) * height + y) * width + x
            q = load_row(query, query_strides, batch, group, y, x, valid, QUERY_CHANNELS, QP)
            go = load_row(grad_out, grad_out_strides, batch, group, y, x, valid, CHANNELS, CP)
            value_row = window_start(y, height, K) + tap_row
            values = load_row(
                value, value_strides, batch, group, value_row, column, column < width, CHANNELS, CP
            )
            lse = load_logsumexp(logsumexp, flat, valid)
            go_dot_out = tl.load(delta + flat, mask=valid, other=0.0)
            logits = row_logits(q, shifts, f, rest, bias, bias_rest, PARTS, PRECISION)
            d_logits = row_logit_grad(logits, lse, go, values, go_dot_out, position, PRECISION)
            class_sum += d_logits
            folded_sum = product(
                tl.trans(q).to(GRAD_DTYPE),
                factor(d_logits, GRAD_DTYPE, PRECISION),
                folded_sum,
                PRECISION,
            )
        tap_sum += class_sum
        rows = tl.cast(program // K // chunks, tl.int64) * K + tap_row
        target = rows * (chunks + K - 1) + chunk + tl.where(border < 0, 0, chunks - chunk + border)
        tl.store(
            d_position_bias + target * (2 * ROW) + bias_column,
            tl.sum(skewed(class_sum, bias_tap), 0),
        )

    tap = tl.arange(0, ROW)
    tl.store(d_tap_bias + tl.cast(program, tl.int64) * ROW + tap, tl.sum(tap_sum, 0))
    element = tl.arange(0, QP)[:, None] * ROW + tap[None, :]
    tl.store(d_folded + tl.cast(program, tl.int64) * (QP * ROW) + element, folded_sum)
