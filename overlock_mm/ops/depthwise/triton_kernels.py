"""Triton kernels of the depthwise operators.

A program owns a tile of pixels of one sample and a slice of channels, or all of them where a
LayerNorm follows; neighbouring threads take neighbouring channels. Strides are given in the
order (batch, channel, row, column), those of the weight as (channel, row, column). Optional
tensors are None. Offsets are 64-bit: a map may exceed 2^31 elements.
"""

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """Compute the exact GELU in float32."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def map_offset(strides, batch, channel, y, x):
    """Return element offsets of pixels and channels, int64: [T], [T] and [N] -> [T, N]."""
    pixel = tl.cast(batch, tl.int64) * strides[0]
    pixel = pixel + y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3]
    return pixel[:, None] + channel.to(tl.int64)[None, :] * strides[1]


@triton.jit
def load_parameter(pointer, channel, CHANNELS: tl.constexpr):
    """Load one value per channel as a row, [1, N] float32."""
    return tl.load(pointer + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]


@triton.jit
def convolve(
    x,
    x_strides,
    weight,
    weight_strides,
    bias,
    input_bias,
    batch,
    channel,
    row,
    column,
    height,
    width,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    GELU_INPUT: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Compute the convolution with bias at a tile's pixels, [T, N] float32."""
    present = channel < CHANNELS
    total = tl.zeros([TOKENS, SLICE], tl.float32)
    if bias is not None:
        total += load_parameter(bias, channel, CHANNELS)
    for tap_row in range(K):
        for tap_column in range(K):
            y = row + tap_row - K // 2
            z = column + tap_column - K // 2
            inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
            mask = inside[:, None] & present[None, :]
            offset = map_offset(x_strides, batch, channel, y, z)
            value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
            if input_bias is not None:
                # The padding stays zero.
                value = tl.where(mask, value + load_parameter(input_bias, channel, CHANNELS), 0.0)
            if GELU_INPUT:
                value = gelu(value)
            tap = channel.to(tl.int64) * weight_strides[0]
            tap += tap_row * weight_strides[1] + tap_column * weight_strides[2]
            w = tl.load(weight + tap, mask=present, other=0.0).to(tl.float32)
            total += value * w[None, :]
    return total


@triton.jit
def tile_of(index, height, width, TOKENS: tl.constexpr):
    """Return rows, columns and validity of a tile's pixels, clamped to the map."""
    token = index * TOKENS + tl.arange(0, TOKENS)
    count = height * width
    last = tl.minimum(token, count - 1)
    return last // width, last % width, token < count


@triton.jit
def depthwise_kernel(
    x,
    x_strides,
    weight,
    weight_strides,
    bias,
    input_bias,
    addend,
    addend_strides,
    out,
    out_strides,
    sums,
    height,
    width,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    GELU_INPUT: tl.constexpr,
    GELU_OUTPUT: tl.constexpr,
    SQUARES: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Compute a tile of the map and its sums [B, tiles, C]; grid (B * tiles * slices,)."""
    slices = tl.cdiv(CHANNELS, SLICE)
    tiles = tl.cdiv(height * width, TOKENS)
    channel = tl.program_id(0) % slices * SLICE + tl.arange(0, SLICE)
    tile = tl.program_id(0) // slices  # batch * tiles + tile
    batch = tile // tiles
    row, column, valid = tile_of(tile % tiles, height, width, TOKENS)
    total = convolve(
        x,
        x_strides,
        weight,
        weight_strides,
        bias,
        input_bias,
        batch,
        channel,
        row,
        column,
        height,
        width,
        CHANNELS,
        K,
        GELU_INPUT,
        TOKENS,
        SLICE,
    )
    mask = valid[:, None] & (channel < CHANNELS)[None, :]
    if addend is not None:
        offset = map_offset(addend_strides, batch, channel, row, column)
        total += tl.load(addend + offset, mask=mask, other=0.0).to(tl.float32)
    if GELU_OUTPUT:
        total = gelu(total)
    offset = map_offset(out_strides, batch, channel, row, column)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)
    if sums is not None:
        total = tl.where(mask, total * total if SQUARES else total, 0.0)
        flat = tl.cast(tile, tl.int64) * CHANNELS + channel
        tl.store(sums + flat, tl.sum(total, 0), mask=channel < CHANNELS)


@triton.jit
def norm_kernel(
    x,
    x_strides,
    weight,
    weight_strides,
    bias,
    norm_weight,
    norm_bias,
    skip_weight,
    skip_bias,
    out,
    normed,
    out_strides,
    eps,
    height,
    width,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Compute a tile of both maps for all channels (SLICE is C padded); grid (B * tiles,)."""
    tiles = tl.cdiv(height * width, TOKENS)
    batch = tl.program_id(0) // tiles
    row, column, valid = tile_of(tl.program_id(0) % tiles, height, width, TOKENS)
    channel = tl.arange(0, SLICE)
    total = convolve(
        x,
        x_strides,
        weight,
        weight_strides,
        bias,
        None,
        batch,
        channel,
        row,
        column,
        height,
        width,
        CHANNELS,
        K,
        False,
        TOKENS,
        SLICE,
    )
    # The norm is that of the map after a separate convolution.
    total = total.to(out.dtype.element_ty).to(tl.float32)
    present = (channel < CHANNELS)[None, :]
    mean = tl.sum(total, 1) / CHANNELS
    distance = tl.where(present, total - mean[:, None], 0.0)
    variance = tl.sum(distance * distance, 1) / CHANNELS
    result = distance / tl.sqrt(variance + eps)[:, None]
    result = result * load_parameter(norm_weight, channel, CHANNELS)
    result += load_parameter(norm_bias, channel, CHANNELS)
    if skip_weight is not None:
        total = total * load_parameter(skip_weight, channel, CHANNELS)
    if skip_bias is not None:
        total += load_parameter(skip_bias, channel, CHANNELS)
    mask = valid[:, None] & present
    offset = map_offset(out_strides, batch, channel, row, column)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)
    tl.store(normed + offset, result.to(out.dtype.element_ty), mask=mask)
