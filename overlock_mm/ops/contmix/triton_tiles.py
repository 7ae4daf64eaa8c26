"""Device functions that the Triton kernels share: the border rule, and tiles of tokens.

A *tile* is T neighbouring tokens of one map row of one (batch, group); tiles of channels are
[T, C] in the dtype of the tensor, padded with zeros to a power of two. Every tensor is addressed
through its own strides, given in the order (batch, group, channel, row, column), so that NCHW,
channels_last and slices of either are read in place. Offsets are 64-bit: a map may exceed 2^31
elements. The kernels of the aggregation, whose windows have gaps, take any tokens, given by rows
``y`` and columns ``x``, and read float32.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')


@triton.jit
def window_start(i, size, K: tl.constexpr):
    """Return the first row (or column) of token i's window, which never leaves the map."""
    return tl.minimum(tl.maximum(i - K // 2, 0), size - K)


@triton.jit
def inverse_first(j, K: tl.constexpr):
    """Return the first token whose window holds j."""
    return tl.where(j < K, 0, j - K // 2)


@triton.jit
def inverse_last(j, size, K: tl.constexpr):
    """Return the last token whose window holds j; all from first to last hold it."""
    return tl.where(j >= size - K, size - 1, j + K // 2)


@triton.jit
def factor(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Return a float32 factor of a matrix product in the dtype of the other one.

    For TF32 it is rounded to nearest. The matrix units would cut the last bits off, always towards
    zero: a bias that sums over many tokens keep. Infinities and NaN pass unchanged.
    """
    if DTYPE.is_fp32() and PRECISION == 'tf32':
        bits = x.to(tl.int32, bitcast=True)
        finite = (bits & 0x7F800000) != 0x7F800000
        x = tl.where(finite, (bits + 0x1000) & -0x2000, bits).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """Add the matrix product of two factors of one dtype to a float32 matrix."""
    if INTERPRETED:
        # The interpreter multiplies the bits of bfloat16 as if they were integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def tile_of(index, height, width, TOKENS: tl.constexpr):
    """Return (batch, group) as one number, row and first column of a tile."""
    tiles = tl.cdiv(width, TOKENS)
    return index // tiles // height, index // tiles % height, index % tiles * TOKENS


@triton.jit
def band_start(first, width, K: tl.constexpr):
    """Return the first column of the band under the windows of a tile that starts at `first`.

    It is a multiple of eight, so that a band in NCHW layout can be read 16 bytes at a time.
    """
    return tl.multiple_of(window_start(first, width, K) // 8 * 8, 8)


@triton.jit
def skewed(tile, column):
    """Take column[t, i] of row t for each i: [T, M] and [T, N] -> [T, N]."""
    return tl.gather(tile, column, 1)


@triton.jit
def row_elements(pointer, strides, batch, group, y, x, PADDED: tl.constexpr):
    """Return pointers to the channels of columns x of one map row, [T, PADDED]."""
    channel = tl.arange(0, PADDED)
    base = tl.cast(batch, tl.int64) * strides[0] + tl.cast(group, tl.int64) * strides[1]
    base += tl.cast(y, tl.int64) * strides[3]
    offset = x.to(tl.int64)[:, None] * strides[4] + channel.to(tl.int64)[None, :] * strides[2]
    return pointer + base + offset


@triton.jit
def row_mask(valid, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Return which of them exist."""
    return valid[:, None] & (tl.arange(0, PADDED) < CHANNELS)[None, :]


@triton.jit
def load_row(
    pointer,
    strides,
    batch,
    group,
    y,
    x,
    valid,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Load the channels of columns x of one map row, [T, PADDED] in its dtype, else zero."""
    element = row_elements(pointer, strides, batch, group, y, x, PADDED)
    return tl.load(element, mask=row_mask(valid, CHANNELS, PADDED), other=0.0)


@triton.jit
def store_row(
    pointer,
    strides,
    batch,
    group,
    y,
    x,
    valid,
    tile,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write the channels of columns x of one map row in the dtype of the tensor."""
    element = row_elements(pointer, strides, batch, group, y, x, PADDED)
    mask = row_mask(valid, CHANNELS, PADDED)
    tl.store(element, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def token_offset(strides, batch, group, y, x):
    """Return the element offset of a token's first channel, int64, in the shape of y and x."""
    base = tl.cast(batch, tl.int64) * strides[0] + tl.cast(group, tl.int64) * strides[1]
    return base + y.to(tl.int64) * strides[3] + x.to(tl.int64) * strides[4]


@triton.jit
def load_tokens(
    pointer,
    strides,
    batch,
    group,
    y,
    x,
    valid,
    first,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Load channels first to first + PADDED of a token tile, [T, PADDED] float32, else zero."""
    channel = first + tl.arange(0, PADDED)
    offset = token_offset(strides, batch, group, y, x)[:, None]
    offset = offset + channel.to(tl.int64)[None, :] * strides[2]
    mask = valid[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tokens(
    pointer,
    strides,
    batch,
    group,
    y,
    x,
    valid,
    first,
    tile,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write channels first to first + PADDED of a token tile in the dtype of the tensor."""
    channel = first + tl.arange(0, PADDED)
    offset = token_offset(strides, batch, group, y, x)[:, None]
    offset = offset + channel.to(tl.int64)[None, :] * strides[2]
    mask = valid[:, None] & (channel < CHANNELS)[None, :]
    tl.store(pointer + offset, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_neighbours(
    pointer,
    strides,
    batch,
    group,
    y,
    x,
    valid,
    first,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Load them for N neighbours of each token: y, x, valid [T, N] -> [T, N, PADDED] float32."""
    channel = first + tl.arange(0, PADDED)
    offset = token_offset(strides, batch, group, y, x)[:, :, None]
    offset = offset + channel.to(tl.int64)[None, None, :] * strides[2]
    mask = valid[:, :, None] & (channel < CHANNELS)[None, None, :]
    return tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)
