"""Triton kernels of `neighborhood_aggregate`, forward and backward, with dilation.

With dilation d the map falls into d * d interleaved sub-maps (rows and columns of
equal remainder), each of which follows the border rule with its own length. Strides
are those of triton_tiles: (batch, group, channel, row, column); for the weights the
taps take the place of the channels. A program owns the tokens whose result it
writes, for SLICE channels at a time where there are channels, so sums have a fixed order
and every run gives the same bits.
"""

import triton
import triton.language as tl

from overlock_mm.ops.contmix.triton_tiles import (
    inverse_first,
    inverse_last,
    load_neighbours,
    load_tokens,
    store_tokens,
    token_offset,
    window_start,
)


@triton.jit
def sub_length(i, size, dilation):
    """Return the length of the sub-map that holds row (or column) i."""
    return (size - i % dilation + dilation - 1) // dilation


@triton.jit
def dilated_start(i, size, dilation, K: tl.constexpr):
    """Return the first row (or column) of token i's dilated window."""
    start = window_start(i // dilation, sub_length(i, size, dilation), K)
    return start * dilation + i % dilation


@triton.jit
def forward_kernel(
    weight,
    weight_strides,
    value,
    value_strides,
    out,
    out_strides,
    groups,
    height,
    width,
    dilation,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    SLICE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Sum over each token's window, weighted; grid (B * G * tiles * slices,)."""
    count = height * width
    tiles = tl.cdiv(count, TOKENS)
    slices = tl.cdiv(CHANNELS, SLICE)
    first = tl.program_id(0) % slices * SLICE
    pair = tl.program_id(0) // slices // tiles
    batch = pair // groups
    group = pair % groups
    token = (tl.program_id(0) // slices % tiles) * TOKENS + tl.arange(0, TOKENS)
    valid = token < count
    y = tl.minimum(token, count - 1) // width
    x = tl.minimum(token, count - 1) % width

    tap = tl.arange(0, ROW)[None, :]
    mask = valid[:, None] & (tap < K)
    column = dilated_start(x, width, dilation, K)[:, None] + tap * dilation
    first_row = dilated_start(y, height, dilation, K)[:, None] + tl.zeros_like(column)
    tap_offset = token_offset(weight_strides, batch, group, y, x)[:, None]
    total = tl.zeros([TOKENS, SLICE], tl.float32)
    for tap_row in range(K):
        offset = tap_offset + (tap_row * K + tap).to(tl.int64) * weight_strides[2]
        w = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
        row = first_row + tap_row * dilation
        values = load_neighbours(
            value, value_strides, batch, group, row, column, mask, first, CHANNELS, SLICE
        )
        total += tl.sum(w[:, :, None] * values, 1)
    store_tokens(out, out_strides, batch, group, y, x, valid, first, total, CHANNELS, SLICE)


@triton.jit
def weight_grad_kernel(
    grad_out,
    grad_out_strides,
    value,
    value_strides,
    d_weight,
    d_weight_strides,
    groups,
    height,
    width,
    dilation,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    SLICE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Compute the weights' gradient, grad_out times each neighbour; grid (B * G * tiles,)."""
    count = height * width
    tiles = tl.cdiv(count, TOKENS)
    pair = tl.program_id(0) // tiles
    batch = pair // groups
    group = pair % groups
    token = (tl.program_id(0) % tiles) * TOKENS + tl.arange(0, TOKENS)
    valid = token < count
    y = tl.minimum(token, count - 1) // width
    x = tl.minimum(token, count - 1) % width

    tap = tl.arange(0, ROW)[None, :]
    mask = valid[:, None] & (tap < K)
    column = dilated_start(x, width, dilation, K)[:, None] + tap * dilation
    first_row = dilated_start(y, height, dilation, K)[:, None] + tl.zeros_like(column)
    tap_offset = token_offset(d_weight_strides, batch, group, y, x)[:, None]
    for tap_row in range(K):
        row = first_row + tap_row * dilation
        grad = tl.zeros([TOKENS, ROW], tl.float32)
        for first in range(0, CHANNELS, SLICE):
            go = load_tokens(
                grad_out, grad_out_strides, batch, group, y, x, valid, first, CHANNELS, SLICE
            )
            values = load_neighbours(
                value, value_strides, batch, group, row, column, mask, first, CHANNELS, SLICE
            )
            grad += tl.sum(go[:, None, :] * values, 2)
        offset = tap_offset + (tap_row * K + tap).to(tl.int64) * d_weight_strides[2]
        tl.store(d_weight + offset, grad.to(d_weight.dtype.element_ty), mask=mask)


@triton.jit
def value_grad_kernel(
    grad_out,
    grad_out_strides,
    weight,
    weight_strides,
    d_value,
    d_value_strides,
    groups,
    height,
    width,
    dilation,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    SLICE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Sum each value's gradient over the windows with it; grid (B * G * tiles * slices,)."""
    count = height * width
    tiles = tl.cdiv(count, TOKENS)
    slices = tl.cdiv(CHANNELS, SLICE)
    first = tl.program_id(0) % slices * SLICE
    pair = tl.program_id(0) // slices // tiles
    batch = pair // groups
    group = pair % groups
    token = (tl.program_id(0) // slices % tiles) * TOKENS + tl.arange(0, TOKENS)
    valid = token < count
    y = tl.minimum(token, count - 1) // width
    x = tl.minimum(token, count - 1) % width

    # All of this in coordinates of the token's own sub-map.
    sub_y = y // dilation
    sub_x = (x // dilation)[:, None]
    sub_height = sub_length(y, height, dilation)
    sub_width = sub_length(x, width, dilation)[:, None]
    first_y = inverse_first(sub_y, K)
    first_x = inverse_first(sub_x, K)
    last_y = inverse_last(sub_y, sub_height, K)
    last_x = inverse_last(sub_x, sub_width, K)

    step = tl.arange(0, ROW)[None, :]
    total = tl.zeros([TOKENS, SLICE], tl.float32)
    for row in range(tl.max(last_y - first_y) + 1):
        query_y = first_y + row
        tap_row = sub_y - window_start(query_y, sub_height, K)
        for column in range(0, tl.max(last_x - first_x) + 1, ROW):
            query_x = first_x + column + step
            tap = tap_row[:, None] * K + sub_x - window_start(query_x, sub_width, K)
            mask = (valid & (query_y <= last_y))[:, None] & (query_x <= last_x)
            map_x = query_x * dilation + (x % dilation)[:, None]
            map_y = (query_y * dilation + y % dilation)[:, None] + tl.zeros_like(map_x)
            offset = token_offset(weight_strides, batch, group, map_y, map_x)
            offset += tap.to(tl.int64) * weight_strides[2]
            w = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
            go = load_neighbours(
                grad_out, grad_out_strides, batch, group, map_y, map_x, mask, first, CHANNELS, SLICE
            )
            total += tl.sum(w[:, :, None] * go, 1)
    store_tokens(d_value, d_value_strides, batch, group, y, x, valid, first, total, CHANNELS, SLICE)
