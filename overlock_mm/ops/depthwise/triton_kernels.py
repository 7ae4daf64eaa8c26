"""Triton kernels of the depthwise operators, for maps whose channels are adjacent in memory.

A program owns ROWS x COLUMNS pixels of one sample and SLICE channels. It goes over the columns of
the kernel; for each of them it loads every input row once, for all the output rows that the row
belongs to, and every tap once, for all output rows. A thread thus holds eight channels of one
column in registers, and 16 bytes that it loads serve up to ROWS x 8 multiply-adds.

All blocks of values have the shape [COLUMNS, SLICE], even those of one value per channel: another
shape would be laid out over other threads, and get here through shared memory. Strides are given
in the order (batch, row, column); channels have the stride 1. Offsets in a sample have 32 bits,
or 64 where WIDE says that these are too few. A kernel takes seconds to compile, so only what the
inner loop needs is a constant; an optional tensor that is not there is any other of its dtype.
"""

import triton
import triton.language as tl

#: Arguments that do not make another binary where they are one or a multiple of 16: networks have
#: branches of many dilations, and detectors see images of many sizes.
COUNTS = ('batches', 'height', 'width', 'dilation', 'chunks', 'pixels')
OPTIONS = ('has_bias', 'has_addend', 'statistic')


@triton.jit
def gelu(x):
    """Compute the exact GELU in float32, off by 4e-7 |x| at most.

    ``x * Phi(x) = max(x, 0) - |x| * Phi(-|x|)``, and the tail of the normal distribution by formula
    7.1.26 of Abramowitz and Stegun. ``tl.erf`` takes twice as many instructions.
    """
    distance = tl.minimum(tl.abs(x), 12.0)  # where the tail is 0; infinity times 0 is none
    root = tl.rsqrt(1.0 + 0.3275911 * 0.7071067811865476 * distance)
    t = root * root
    tail = 1.061405429 * t - 1.453152027
    tail = tail * t + 1.421413741
    tail = tail * t - 0.284496736
    tail = tail * t + 0.254829592
    tail = tail * t * (0.5 * distance) * tl.exp2(-0.7213475204444817 * distance * distance)
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - tail


@triton.jit
def tile_of(index, height, width, dilation, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (sample, first row, first column) of a tile; its rows follow at steps of dilation."""
    columns = tl.cdiv(width, COLUMNS)
    blocks = tl.cdiv(tl.cdiv(height, dilation), ROWS) * dilation
    column = index % columns * COLUMNS
    index = index // columns
    block = index % blocks
    row = block % dilation + block // dilation * ROWS * dilation
    return index // blocks, row, column


@triton.jit(do_not_specialize=COUNTS + OPTIONS)
def depthwise_kernel(
    x,
    x_strides,
    weight,
    bias,
    input_bias,
    addend,
    addend_strides,
    out,
    out_strides,
    sums,
    height,
    width,
    channels,
    dilation,
    has_bias,
    has_addend,
    statistic,
    K: tl.constexpr,
    GELU_INPUT: tl.constexpr,
    GELU_OUTPUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute a tile of the map and a statistic of it, [B, tiles, C]; grid (B * tiles * slices,).

    The statistic is none (0), the sum (1) or the sum of squares (2) over the tile's pixels.
    """
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    slices = tl.cdiv(channels, SLICE)
    index = tl.program_id(0) // slices  # batch * tiles + tile
    batch, first_row, first_column = tile_of(index, height, width, dilation, ROWS, COLUMNS)
    batch = tl.cast(batch, tl.int64)
    column = first_column + tl.arange(0, COLUMNS)[:, None]
    channel = tl.program_id(0) % slices * SLICE + tl.arange(0, SLICE)[None, :]
    everywhere = channel + tl.zeros([COLUMNS, 1], tl.int32)
    present = everywhere < channels

    start = tl.load(bias + everywhere, mask=present & (has_bias > 0), other=0.0).to(tl.float32)
    if input_bias is not None:
        shift = tl.load(input_bias + everywhere, mask=present, other=0.0).to(tl.float32)
    totals = ()
    for _ in tl.static_range(ROWS):
        totals += (start,)

    x += batch * x_strides[0]
    top = first_row - K // 2 * dilation
    for tap_column in range(K):
        z = column + (tap_column - K // 2) * dilation
        on_map = (z >= 0) & (z < width) & present
        offset = z.to(OFFSET) * x_strides[2] + channel
        taps = ()  # those of this row and of the ROWS - 1 above it
        for row in tl.static_range(ROWS + K - 1):
            y = top + row * dilation
            inside = on_map & (y >= 0) & (y < height)
            pointer = x + (offset + tl.cast(y, OFFSET) * x_strides[1])
            value = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
            if input_bias is not None:
                value = tl.where(inside, value + shift, 0.0)  # the padding stays zero
            if GELU_INPUT:
                value = gelu(value)
            if row < K:
                pointer = weight + (row * K + tap_column) * channels + everywhere
                tap = tl.load(pointer, mask=present, other=0.0).to(tl.float32)
            taps = (tap,) + taps[: ROWS - 1]
            updated = ()
            for n in tl.static_range(ROWS):
                if row >= n and row - n < K:
                    updated += (totals[n] + value * taps[n],)
                else:
                    updated += (totals[n],)
            totals = updated

    out += batch * out_strides[0]
    offset = column.to(OFFSET) * out_strides[2] + channel
    valid = (column < width) & present
    total_sum = tl.zeros([COLUMNS, SLICE], tl.float32)
    for n in tl.static_range(ROWS):
        y = first_row + n * dilation
        mask = valid & (y < height)
        pointer = addend + batch * addend_strides[0] + channel
        pointer += tl.cast(y, OFFSET) * addend_strides[1]
        pointer += column.to(OFFSET) * addend_strides[2]
        total = totals[n] + tl.load(pointer, mask=mask & (has_addend > 0), other=0.0).to(tl.float32)
        if GELU_OUTPUT:
            total = gelu(total)
        pointer = out + (offset + tl.cast(y, OFFSET) * out_strides[1])
        tl.store(pointer, total.to(out.dtype.element_ty), mask=mask)
        total_sum += tl.where(mask, tl.where(statistic == 2, total * total, total), 0.0)
    if statistic > 0:
        flat = tl.cast(index, tl.int64) * channels + channel
        tl.store(sums + flat, tl.sum(total_sum, 0)[None, :], mask=channel < channels)


@triton.jit(do_not_specialize=COUNTS)
def norm_kernel(
    y,
    norm_weight,
    norm_bias,
    skip_weight,
    skip_bias,
    normed,
    eps,
    pixels,
    channels,
    PIXELS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Normalise pixels of y, [pixels, C], over their channels, and scale y; grid (tiles,).

    SLICE is C padded. The norm is that of y before it is scaled, in place, for the skip path.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, SLICE)
    present = channel < channels
    mask = (pixel < pixels)[:, None] & present[None, :]
    offset = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(y + offset, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / channels
    distance = tl.where(present[None, :], value - mean[:, None], 0.0)
    variance = tl.sum(distance * distance, 1) / channels
    result = distance / tl.sqrt(variance + eps)[:, None]
    result = result * load_parameter(norm_weight, channel, channels)
    result += load_parameter(norm_bias, channel, channels)
    tl.store(normed + offset, result.to(normed.dtype.element_ty), mask=mask)
    if skip_weight is not None:
        value = value * load_parameter(skip_weight, channel, channels)
        if skip_bias is not None:
            value += load_parameter(skip_bias, channel, channels)
        tl.store(y + offset, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def load_parameter(pointer, channel, channels):
    """Load one value per channel as a row, [1, N] float32."""
    return tl.load(pointer + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=COUNTS)
def weight_grad_kernel(
    x,
    x_strides,
    grad_out,
    grad_out_strides,
    sums,
    batches,
    height,
    width,
    channels,
    dilation,
    chunks,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sum the gradient of some taps over a share of the tiles, [chunks, K, K, C].

    Grid (chunks * slices * blocks of taps,). A group of taps are TAPS taps of one column of the
    kernel, from the top or from where the last group ends. A program has GROUPS of them side by
    side, COLUMNS lanes each, so that they share what they load in the first cache.
    """
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    lane = tl.arange(0, GROUPS * COLUMNS)[:, None]
    blocks: tl.constexpr = tl.cdiv(tl.cdiv(K, TAPS) * K, GROUPS)
    first_group = tl.program_id(0) % blocks * GROUPS
    group = first_group + lane // COLUMNS
    slices = tl.cdiv(channels, SLICE)
    index = tl.program_id(0) // blocks
    channel = index % slices * SLICE + tl.arange(0, SLICE)[None, :]
    chunk = index // slices
    present = channel < channels

    totals = ()
    for _ in tl.static_range(TAPS):
        totals += (tl.zeros([GROUPS * COLUMNS, SLICE], tl.float32),)
    tiles = batches * tl.cdiv(tl.cdiv(height, dilation), ROWS) * dilation * tl.cdiv(width, COLUMNS)
    for tile in range(chunk, tiles, chunks):
        batch, first_row, first_column = tile_of(tile, height, width, dilation, ROWS, COLUMNS)
        batch = tl.cast(batch, tl.int64)
        column = first_column + lane % COLUMNS
        mask = (column < width) & present
        offset = column.to(OFFSET) * grad_out_strides[2] + channel
        gradients = ()
        for n in tl.static_range(ROWS):
            y = first_row + n * dilation
            pointer = grad_out + batch * grad_out_strides[0]
            pointer += offset + tl.cast(y, OFFSET) * grad_out_strides[1]
            gradient = tl.load(pointer, mask=mask & (y < height), other=0.0)
            gradients += (gradient.to(tl.float32),)
        z = column + (group % K - K // 2) * dilation
        mask = (z >= 0) & (z < width) & present
        offset = z.to(OFFSET) * x_strides[2] + channel
        top = first_row + (group // K * TAPS - K // 2) * dilation
        for row in tl.static_range(ROWS + TAPS - 1):
            y = top + row * dilation
            inside = mask & (y >= 0) & (y < height)
            pointer = x + batch * x_strides[0] + (offset + y.to(OFFSET) * x_strides[1])
            value = tl.load(pointer, mask=inside, other=0.0).to(tl.float32)
            updated = ()
            for tap in tl.static_range(TAPS):
                if row >= tap and row - tap < ROWS:
                    updated += (totals[tap] + value * gradients[row - tap],)
                else:
                    updated += (totals[tap],)
            totals = updated

    group = first_group + tl.arange(0, GROUPS)[:, None]
    for tap in tl.static_range(TAPS):
        total = tl.sum(tl.reshape(totals[tap], [GROUPS, COLUMNS, SLICE]), 1)
        row = group // K * TAPS + tap
        offset = ((chunk * K + row) * K + group % K) * channels + channel
        tl.store(sums + offset, total, mask=(row < K) & present)
