"""Triton kernels of the backward pass of ContMix.

Three kernels, so that each sum has one owner, which adds in a fixed order: no
atomics, and the same bits in every run.

- query gradient: a program owns tokens and walks their windows;
- value gradient: a program owns tokens and walks the windows that hold them, which
  are those of an interval of rows and columns (`inverse_first`, `inverse_last`);
- parameter gradients: a program owns one window row of the projection and a share
  of all tokens. Tokens are visited in classes of rows whose windows are shifted
  alike, so that a class and a window row meet a single row of the position bias.

Names of sizes and shapes of parameters are those of triton_kernels.
"""

import triton
import triton.language as tl

from overlock_mm.ops.contmix.triton_kernels import (
    load_keys,
    load_projection,
    row_logits,
    row_weight_grad,
)
from overlock_mm.ops.contmix.triton_tiles import (
    factor,
    inverse_first,
    inverse_last,
    load_tokens,
    store_tokens,
    window_start,
)


@triton.jit
def query_grad_kernel(
    grad_out,
    grad_out_strides,
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
    delta,
    d_query,
    d_query_strides,
    d_key,
    scale,
    groups,
    height,
    width,
    chunks,
    QUERY_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REGIONS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    CP: tl.constexpr,
    SP: tl.constexpr,
    SLICE: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the query gradient, delta and a partial key gradient; grid (B * G * chunks,).

    Writes d_query, delta [B, G, H, W] = sum over C of grad_out * out, which the
    parameter gradients read, and the sums d_key [B * G, chunks, Cq, S] over the
    token tiles that the program visits.
    """
    count = height * width
    pair = tl.program_id(0) // chunks
    chunk = tl.program_id(0) % chunks
    batch = pair // groups
    group = pair % groups
    keys = load_keys(key, key_strides, batch, group, QUERY_CHANNELS, REGIONS, QP, SP)
    key_sum = tl.zeros([QP, SP], tl.float32)
    for tile in range(chunk, tl.cdiv(count, TOKENS), chunks):
        token = tile * TOKENS + tl.arange(0, TOKENS)
        valid = token < count
        y = tl.minimum(token, count - 1) // width
        x = tl.minimum(token, count - 1) % width
        flat = tl.cast(pair, tl.int64) * count + token

        q = load_tokens(query, query_strides, batch, group, y, x, valid, 0, QUERY_CHANNELS, QP)
        affinity = factor(tl.dot(q, keys, input_precision=PRECISION) * scale, PRECISION)
        go = load_tokens(grad_out, grad_out_strides, batch, group, y, x, valid, 0, CHANNELS, CP)
        mixed = load_tokens(out, out_strides, batch, group, y, x, valid, 0, CHANNELS, CP)
        go_dot_out = tl.sum(go * mixed, 1)
        tl.store(delta + flat, go_dot_out, mask=valid)
        # An infinite log-sum-exp gives the tokens beyond the map zero weights.
        lse = tl.load(logsumexp + flat, mask=valid, other=float('inf'))

        d_affinity = tl.zeros([TOKENS, SP], tl.float32)
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
            d_weight = row_weight_grad(
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
                CHANNELS,
                K,
                ROW,
                TOKENS,
                SLICE,
            )
            d_logits = tl.exp(logits - lse[:, None]) * (d_weight - go_dot_out[:, None])
            d_affinity = tl.dot(
                factor(d_logits, PRECISION), projection, d_affinity, input_precision=PRECISION
            )

        d_affinity = factor(d_affinity * scale, PRECISION)
        d_q = tl.dot(d_affinity, tl.trans(keys), input_precision=PRECISION)
        store_tokens(
            d_query, d_query_strides, batch, group, y, x, valid, 0, d_q, QUERY_CHANNELS, QP
        )
        key_sum = tl.dot(tl.trans(q), d_affinity, key_sum, input_precision=PRECISION)

    channel = tl.arange(0, QP)[:, None]
    region = tl.arange(0, SP)[None, :]
    offset = tl.cast(tl.program_id(0), tl.int64) * (QUERY_CHANNELS * REGIONS)
    offset = offset + channel * REGIONS + region
    tl.store(d_key + offset, key_sum, mask=(channel < QUERY_CHANNELS) & (region < REGIONS))


@triton.jit
def value_grad_kernel(
    grad_out,
    grad_out_strides,
    query,
    query_strides,
    key,
    key_strides,
    proj_weight,
    proj_bias,
    rpb,
    logsumexp,
    d_value,
    d_value_strides,
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
    """Compute the value gradient of a segment of a map row; grid (B * G * H * segments,).

    For each row of queries whose windows reach this map row, their weights
    [queries, taps] are skewed into a banded matrix [queries, tokens], which
    multiplies the queries' output gradients.
    """
    segments = tl.cdiv(width, TOKENS)
    pair = tl.program_id(0) // (height * segments)
    batch = pair // groups
    group = pair % groups
    y = tl.program_id(0) // segments % height
    first = (tl.program_id(0) % segments) * TOKENS
    x = first + tl.arange(0, TOKENS)
    valid = x < width
    last = tl.minimum(first + TOKENS, width) - 1

    keys = load_keys(key, key_strides, batch, group, QUERY_CHANNELS, REGIONS, QP, SP)
    last_column = inverse_last(last, width, K)
    total = tl.zeros([TOKENS, CP], tl.float32)
    for query_y in range(inverse_first(y, K), inverse_last(y, height, K) + 1):
        tap_row = y - window_start(query_y, height, K)
        projection = load_projection(proj_weight, tap_row, REGIONS, K, ROW, SP, PRECISION)
        for query_first in range(inverse_first(first, K), last_column + 1, TOKENS):
            column = query_first + tl.arange(0, TOKENS)
            reaches = column <= last_column
            qx = tl.minimum(column, width - 1)
            qy = query_y + tl.zeros_like(qx)
            q = load_tokens(
                query, query_strides, batch, group, qy, qx, reaches, 0, QUERY_CHANNELS, QP
            )
            affinity = factor(tl.dot(q, keys, input_precision=PRECISION) * scale, PRECISION)
            logits = row_logits(
                affinity,
                projection,
                proj_bias,
                rpb,
                group,
                tap_row,
                qy,
                qx,
                height,
                width,
                K,
                ROW,
                PRECISION,
            )
            flat = (tl.cast(pair, tl.int64) * height + query_y) * width + qx
            lse = tl.load(logsumexp + flat, mask=reaches, other=float('inf'))
            weight = tl.exp(logits - lse[:, None])
            tap = x[None, :] - window_start(qx, width, K)[:, None]
            banded = tl.gather(weight, tl.minimum(tl.maximum(tap, 0), K - 1), 1)
            banded = factor(tl.where((tap >= 0) & (tap < K), banded, 0.0), PRECISION)
            go = load_tokens(
                grad_out, grad_out_strides, batch, group, qy, qx, reaches, 0, CHANNELS, CP
            )
            total = tl.dot(tl.trans(banded), go, total, input_precision=PRECISION)

    row = y + tl.zeros_like(x)
    store_tokens(d_value, d_value_strides, batch, group, row, x, valid, 0, total, CHANNELS, CP)


@triton.jit
def parameter_grad_kernel(
    grad_out,
    grad_out_strides,
    query,
    query_strides,
    key,
    key_strides,
    value,
    value_strides,
    proj_weight,
    proj_bias,
    rpb,
    logsumexp,
    delta,
    d_proj_weight,
    d_proj_bias,
    d_rpb,
    scale,
    batches,
    groups,
    height,
    width,
    chunks,
    QUERY_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REGIONS: tl.constexpr,
    K: tl.constexpr,
    ROW: tl.constexpr,
    QP: tl.constexpr,
    SP: tl.constexpr,
    RPB_ROW: tl.constexpr,
    SLICE: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute partial parameter gradients of a window row; grid (chunks * G * K,).

    Writes d_proj_weight [chunks, G, K*K, S], d_proj_bias [chunks, G, K*K] and
    d_rpb [chunks, G, K, 2K-1, 2K-1], whose third axis is the window row; its rows
    that the window row does not meet stay as they are. RPB_ROW is 2K-1, padded.
    """
    program = tl.program_id(0)
    tap_row = program % K
    group = program // K % groups
    chunk = program // K // groups

    projection = load_projection(proj_weight, tap_row, REGIONS, K, ROW, SP, PRECISION)
    bias_column = tl.arange(0, RPB_ROW)
    weight_sum = tl.zeros([ROW, SP], tl.float32)
    bias_sum = tl.zeros([ROW], tl.float32)
    # Window start minus token row is shift - (K - 1); all rows of a class share it. Away from
    # the borders it is -(K // 2), and near them each row is a class of its own.
    for shift in range(K):
        shift_row = shift + tl.zeros([], tl.int32)
        above = tl.where(shift_row > K // 2, K - 1 - shift_row, height - 1 - shift_row)
        first_row = tl.where(shift_row == K // 2, K // 2, above)
        rows = tl.where(shift_row == K // 2, height - K + 1, 1)
        tiles = tl.cdiv(rows * width, TOKENS)
        rpb_sum = tl.zeros([RPB_ROW], tl.float32)
        for item in range(chunk, batches * tiles, chunks):
            batch = item // tiles
            member = (item % tiles) * TOKENS + tl.arange(0, TOKENS)
            valid = member < rows * width
            token = first_row * width + tl.minimum(member, rows * width - 1)
            y = token // width
            x = token % width
            flat = (tl.cast(batch, tl.int64) * groups + group) * (height * width) + token

            keys = load_keys(key, key_strides, batch, group, QUERY_CHANNELS, REGIONS, QP, SP)
            q = load_tokens(query, query_strides, batch, group, y, x, valid, 0, QUERY_CHANNELS, QP)
            affinity = factor(tl.dot(q, keys, input_precision=PRECISION) * scale, PRECISION)
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
            d_weight = row_weight_grad(
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
                CHANNELS,
                K,
                ROW,
                TOKENS,
                SLICE,
            )
            lse = tl.load(logsumexp + flat, mask=valid, other=float('inf'))
            go_dot_out = tl.load(delta + flat, mask=valid, other=0.0)
            d_logits = tl.exp(logits - lse[:, None]) * (d_weight - go_dot_out[:, None])

            weight_sum = tl.dot(
                tl.trans(factor(d_logits, PRECISION)),
                affinity,
                weight_sum,
                input_precision=PRECISION,
            )
            bias_sum += tl.sum(d_logits, 0)
            tap = bias_column[None, :] - (window_start(x, width, K) - x + K - 1)[:, None]
            skewed = tl.gather(d_logits, tl.minimum(tl.maximum(tap, 0), K - 1), 1)
            rpb_sum += tl.sum(tl.where((tap >= 0) & (tap < K), skewed, 0.0), 0)

        side: tl.constexpr = 2 * K - 1
        rpb_row = tl.cast(program, tl.int64) * side + shift_row + tap_row
        tl.store(d_rpb + rpb_row * side + bias_column, rpb_sum, mask=bias_column < side)

    tap = tl.arange(0, ROW)
    row = tl.cast(program // K, tl.int64) * (K * K) + tap_row * K + tap
    tl.store(d_proj_bias + row, bias_sum, mask=tap < K)
    region = tl.arange(0, SP)
    tl.store(
        d_proj_weight + row[:, None] * REGIONS + region[None, :],
        weight_sum,
        mask=(tap < K)[:, None] & (region < REGIONS)[None, :],
    )
