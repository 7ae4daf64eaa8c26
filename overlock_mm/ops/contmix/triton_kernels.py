"""Triton kernel of the fused ContMix, and what its backward pass shares with it.

The logits of a token's K x K window are never stored. They are made window row by
window row, [T tokens, K taps] at a time, as a matrix product of the tokens'
affinities [T, S] and the K projection rows of that window row, and made again in
the backward pass, where the saved log-sum-exp turns them into weights at once.

Padded sizes: ROW is K, QP Cq, CP C and SP S, each padded to a power of two of 16 or
more, as `tl.dot` demands. Shapes of parameters, all contiguous float32:
proj_weight [K*K, S], proj_bias [K*K], rpb [G, 2K-1, 2K-1].
"""

import triton
import triton.language as tl

from overlock_mm.ops.contmix.triton_tiles import (
    factor,
    load_neighbours,
    load_tokens,
    store_tokens,
    window_start,
)


@triton.jit
def load_keys(
    key,
    strides,
    batch,
    group,
    QUERY_CHANNELS: tl.constexpr,
    REGIONS: tl.constexpr,
    QP: tl.constexpr,
    SP: tl.constexpr,
):
    """Load the keys of one (batch, group), [QP, SP] float32."""
    channel = tl.arange(0, QP)[:, None]
    region = tl.arange(0, SP)[None, :]
    base = tl.cast(batch, tl.int64) * strides[0] + tl.cast(group, tl.int64) * strides[1]
    offset = base + channel.to(tl.int64) * strides[2] + region.to(tl.int64) * strides[3]
    mask = (channel < QUERY_CHANNELS) & (region < REGIONS)
    return tl.load(key + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_projection(
    proj_weight,
    tap_row,
    REGIONS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    SP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Load the projection of one window row as a factor of products, [ROW, SP] float32."""
    tap = tl.arange(0, ROW)[:, None]
    region = tl.arange(0, SP)[None, :]
    mask = (tap < K) & (region < REGIONS)
    rows = tl.load(proj_weight + (tap_row * K + tap) * REGIONS + region, mask=mask, other=0.0)
    return factor(rows, PRECISION)


@triton.jit
def row_logits(
    affinity,
    projection,
    proj_bias,
    rpb,
    group,
    tap_row,
    y,
    x,
    height,
    width,
    K: tl.constexpr,
    ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the logits of one window row, [T, ROW] float32, -inf in the padding."""
    tap = tl.arange(0, ROW)
    in_window = tap < K
    # The bias of the neighbour at row r seen from row y is row r - y + K - 1.
    bias_row = window_start(y, height, K) - y + tap_row + K - 1
    bias_column = window_start(x, width, K) - x + K - 1
    offset = (group * (2 * K - 1) + bias_row) * (2 * K - 1) + bias_column
    bias = tl.load(rpb + offset[:, None] + tap[None, :], mask=in_window[None, :], other=0.0)
    bias += tl.load(proj_bias + tap_row * K + tap, mask=in_window, other=0.0)[None, :]
    logits = tl.dot(affinity, tl.trans(projection), input_precision=PRECISION) + bias
    return tl.where(in_window[None, :], logits, float('-inf'))


@triton.jit
def window_row(tap_row, y, x, valid, height, width, K: tl.constexpr, ROW: tl.constexpr):
    """Return map rows, map columns and validity of one row of every token's window, [T, ROW]."""
    tap = tl.arange(0, ROW)[None, :]
    column = window_start(x, width, K)[:, None] + tap
    row = (window_start(y, height, K) + tap_row)[:, None] + tl.zeros_like(column)
    return row, column, valid[:, None] & (tap < K)


@triton.jit
def row_weight_grad(
    grad_out,
    grad_out_strides,
    value,
    value_strides,
    batch,
    group,
    tap_row,
    y,
    x,
    valid,
    height,
    width,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Compute the gradient of the weights of one window row, [T, ROW] float32.

    A few channels at a time: the tile [T, ROW, channels] of values sets how much
    shared memory and how many registers the backward kernels need.
    """
    row, column, mask = window_row(tap_row, y, x, valid, height, width, K, ROW)
    grad = tl.zeros([TOKENS, ROW], tl.float32)
    for first in range(0, CHANNELS, SLICE):
        go = load_tokens(
            grad_out, grad_out_strides, batch, group, y, x, valid, first, CHANNELS, SLICE
        )
        values = load_neighbours(
            value, value_strides, batch, group, row, column, mask, first, CHANNELS, SLICE
        )
        grad += tl.sum(go[:, None, :] * values, 2)
    return grad


@triton.jit
def forward_kernel(
    query,
    query_strides,
    key,
    key_strides,
    value,
    value_strides,
    proj_weight,
    proj_bias,
    rpb,
    out,
    out_strides,
    logsumexp,
    scale,
    groups,
    height,
    width,
    QUERY_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REGIONS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    CP: tl.constexpr,
    SP: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute output and log-sum-exp [B, G, H, W] of one token tile; grid (B * G * tiles,)."""
    count = height * width
    tiles = tl.cdiv(count, TOKENS)
    pair = tl.program_id(0) // tiles
    batch = pair // groups
    group = pair % groups
    token = (tl.program_id(0) % tiles) * TOKENS + tl.arange(0, TOKENS)
    valid = token < count
    y = tl.minimum(token, count - 1) // width
    x = tl.minimum(token, count - 1) % width

    q = load_tokens(query, query_strides, batch, group, y, x, valid, 0, QUERY_CHANNELS, QP)
    keys = load_keys(key, key_strides, batch, group, QUERY_CHANNELS, REGIONS, QP, SP)
    # Scaled after the product: half precision inputs then meet in it exactly, in TF32 too.
    affinity = factor(tl.dot(q, keys, input_precision=PRECISION) * scale, PRECISION)

    largest = tl.full([TOKENS], float('-inf'), tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    mixed = tl.zeros([TOKENS, CP], tl.float32)
    for tap_row in range(K):
        projection = load_projection(proj_weight, tap_row, REGIONS, K, ROW, SP, PRECISION)
        logits = row_logits(
            affinity,
            projection,
            proj_bias,
            rpb,
            group,
            tap_row,
            y,
            x,
            height,
            width,
            K,
            ROW,
            PRECISION,
        )
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        rescale = tl.exp(largest - new_largest)
        weight = tl.exp(logits - new_largest[:, None])
        row, column, mask = window_row(tap_row, y, x, valid, height, width, K, ROW)
        values = load_neighbours(
            value, value_strides, batch, group, row, column, mask, 0, CHANNELS, CP
        )
        total = total * rescale + tl.sum(weight, 1)
        mixed = mixed * rescale[:, None] + tl.sum(weight[:, :, None] * values, 1)
        largest = new_largest

    mixed = mixed / total[:, None]
    store_tokens(out, out_strides, batch, group, y, x, valid, 0, mixed, CHANNELS, CP)
    flat = tl.cast(pair, tl.int64) * count + token
    tl.store(logsumexp + flat, largest + tl.log(total), mask=valid)
