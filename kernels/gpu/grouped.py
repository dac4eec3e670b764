"""The Triton programs: one layer's active experts in two launches, weights read by slot from the arena.

A program computes one tile: up to BLOCK_M of an expert's (token, expert) pairs times some rows of one of its matrices,
over the whole of the inner dimension. It is never split: partial sums added by several programs would make a row's bits
depend on how many took part.

Importing this module imports Triton. With TRITON_INTERPRET=1 set before, the programs run interpreted, on CPU tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether the programs below run on CPU tensors: chosen when Triton is imported."""

# Triton reads annotations as text too, so `from __future__ import annotations` leaves tl.constexpr what it is.


@triton.jit
def gate_up(
    hidden,  # [T, HIDDEN], compute type
    weights,  # the arena as elements of the stored type
    scales,  # the arena as int4's scales
    floats,  # the arena as float32: biases, int8's scales
    tiles,  # int32 [tiles, 3]: slot, first pair, pairs
    token_rows,  # int64 [pairs]
    inner,  # out: [pairs, INNER], compute type
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    WEIGHTS_AT: tl.constexpr,  # of the part within a slot, in elements of its own type; so all *_AT
    SCALES_AT: tl.constexpr,
    BIAS_AT: tl.constexpr,  # -1: no bias
    WEIGHTS_STRIDE: tl.constexpr,  # from slot to slot, in elements of the view; so all *_STRIDE
    SCALES_STRIDE: tl.constexpr,
    FLOATS_STRIDE: tl.constexpr,
    FORMAT: tl.constexpr,  # "float", "int8" or "int4"
    GROUP: tl.constexpr,  # input features that share a scale, int4 only
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # rows of the matrix: half of them gate rows, where there is a gate
    BLOCK_K: tl.constexpr,
):
    """First projection, gate and activation: a program makes BLOCK_N / 2 features of a tile; BLOCK_N without a gate."""
    FEATURES: tl.constexpr = BLOCK_N if GATE == "none" else BLOCK_N // 2
    BLOCKS: tl.constexpr = (INNER + FEATURES - 1) // FEATURES
    tile, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    slot, first, pairs = _tile(tiles, tile)
    pair = tl.arange(0, BLOCK_M)
    mine = pair < pairs
    tokens = tl.load(token_rows + first + pair, mask=mine, other=0)

    lane = tl.arange(0, BLOCK_N)
    if GATE == "none":
        rows = tl.minimum(block * FEATURES + lane, INNER - 1)
    else:
        # Gate and up rows of a feature side by side: both end in the same thread, and the pair splits for nothing.
        rows = tl.minimum(block * FEATURES + lane // 2, INNER - 1) + (lane % 2) * INNER
    acc = _product(
        hidden + tokens * HIDDEN,
        mine,
        weights + slot * WEIGHTS_STRIDE + WEIGHTS_AT,
        scales + slot * SCALES_STRIDE + SCALES_AT,
        floats + slot * FLOATS_STRIDE + SCALES_AT,
        rows,
        HIDDEN,
        FORMAT,
        GROUP,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if BIAS_AT >= 0:
        acc += tl.load(floats + slot * FLOATS_STRIDE + BIAS_AT + rows)[None, :]

    kind = inner.dtype.element_ty
    if GATE == "none":
        made = _activated(_rounded(acc, kind), ACTIVATION)
    else:
        gate, up = tl.split(tl.reshape(acc, (BLOCK_M, FEATURES, 2)))
        made = _gated(_rounded(gate, kind), _rounded(up, kind), kind, GATE, ACTIVATION, LIMIT, ALPHA)
    feature = block * FEATURES + tl.arange(0, FEATURES)
    at = (first + pair).to(tl.int64)[:, None] * INNER + feature[None, :]
    tl.store(inner + at, made.to(kind), mask=mine[:, None] & (feature < INNER)[None, :])


@triton.jit
def down(
    inner,  # [pairs, INNER], compute type
    weights,
    scales,
    floats,
    tiles,
    router_weights,  # [pairs]
    out,  # out: float32 [pairs, HIDDEN]
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    WEIGHTS_AT: tl.constexpr,
    SCALES_AT: tl.constexpr,
    BIAS_AT: tl.constexpr,
    WEIGHTS_STRIDE: tl.constexpr,
    SCALES_STRIDE: tl.constexpr,
    FLOATS_STRIDE: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Second projection, bias and router weight; arguments as `gate_up`'s."""
    BLOCKS: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    tile, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    slot, first, pairs = _tile(tiles, tile)
    pair = tl.arange(0, BLOCK_M)
    mine = pair < pairs
    at = (first + pair).to(tl.int64)

    feature = block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(feature, HIDDEN - 1)
    acc = _product(
        inner + at * INNER,
        mine,
        weights + slot * WEIGHTS_STRIDE + WEIGHTS_AT,
        scales + slot * SCALES_STRIDE + SCALES_AT,
        floats + slot * FLOATS_STRIDE + SCALES_AT,
        rows,
        INNER,
        FORMAT,
        GROUP,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    if BIAS_AT >= 0:
        acc += tl.load(floats + slot * FLOATS_STRIDE + BIAS_AT + rows)[None, :]
    acc *= tl.load(router_weights + at, mask=mine, other=0).to(tl.float32)[:, None]
    tl.store(out + at[:, None] * HIDDEN + feature[None, :], acc, mask=mine[:, None] & (feature < HIDDEN)[None, :])


@triton.jit
def _tile(tiles, tile):
    # 64 bits before anything is multiplied: an arena is larger than 2^31 bytes.
    return tl.load(tiles + tile * 3).to(tl.int64), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)


@triton.jit
def _product(
    x,  # pointers to the first element of BLOCK_M rows
    mine,  # which of them exist
    weights,  # the matrix, [*, K] elements or int4's packed bytes
    scales,  # int4's, [*, groups]
    row_scales,  # int8's, float32 [*]
    rows,  # [BLOCK_N] of the matrix; all exist
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """float32 [BLOCK_M, BLOCK_N]: x times the transposed rows, in ascending order of tiles of K."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    kind = x.dtype.element_ty
    if FORMAT == "int4":
        BYTES: tl.constexpr = BLOCK_K // 2
        WIDTH: tl.constexpr = (K + 31) // 32 * 16
        GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP
        TILE_GROUPS: tl.constexpr = BLOCK_K // GROUP if BLOCK_K > GROUP else 1
        byte = tl.arange(0, BYTES)
        group = tl.arange(0, TILE_GROUPS)
        # A run of 32 features is 16 bytes, low nibbles first: taken apart they are two products of their own.
        low_feature = byte // 16 * 32 + byte % 16
        for start in range(0, WIDTH, BYTES):
            packed = tl.load(
                weights + rows[None, :] * WIDTH + (start + byte)[:, None], mask=(start + byte < WIDTH)[:, None], other=0
            )
            at = start * 2 // GROUP + group
            scale = tl.load(scales + rows[None, :] * GROUPS + at[:, None], mask=(at < GROUPS)[:, None], other=0)
            scale = tl.broadcast_to(scale.to(tl.float32)[:, None, :], (TILE_GROUPS, BYTES // TILE_GROUPS, BLOCK_N))
            scale = tl.reshape(scale, (BYTES, BLOCK_N))
            low = ((packed & 15).to(tl.float32) - 8.0) * scale
            high = ((packed >> 4).to(tl.float32) - 8.0) * scale
            feature = start * 2 + low_feature
            x_low = tl.load(x[:, None] + feature[None, :], mask=mine[:, None] & (feature < K)[None, :], other=0)
            x_high = tl.load(
                x[:, None] + feature[None, :] + 16, mask=mine[:, None] & (feature + 16 < K)[None, :], other=0
            )
            acc = _dot(x_low, low.to(kind), acc)
            acc = _dot(x_high, high.to(kind), acc)
    else:
        k = tl.arange(0, BLOCK_K)
        for start in range(0, K, BLOCK_K):
            if K % BLOCK_K == 0:
                some_x = tl.load(x[:, None] + (start + k)[None, :], mask=mine[:, None], other=0)
                some = tl.load(weights + rows[None, :] * K + (start + k)[:, None])
            else:
                here = start + k < K
                some_x = tl.load(x[:, None] + (start + k)[None, :], mask=mine[:, None] & here[None, :], other=0)
                some = tl.load(weights + rows[None, :] * K + (start + k)[:, None], mask=here[:, None], other=0)
            acc = _dot(some_x, _cast(some, kind), acc)
        if FORMAT == "int8":
            # Once at the end: int8 is exact in every compute type, scaled weights would be rounded.
            acc *= tl.load(row_scales + rows)[None, :]
    return acc


@triton.jit
def _cast(x, kind):
    if INTERPRETED:
        # Triton's interpreter takes integers for bit patterns of bfloat16.
        x = x.to(tl.float32)
    return x.to(kind)


@triton.jit
def _dot(a, b, acc):
    if INTERPRETED:
        # Triton's interpreter multiplies the bit patterns of bfloat16: not supported, its authors say.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    # Else float32 would be rounded to TF32 first.
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _rounded(x, kind):
    """What eager execution keeps of an intermediate result."""
    return x.to(kind).to(tl.float32)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # tanh(y) = 2 sigmoid(2y) - 1
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        y = tl.maximum(x, 0.0)
        if ACTIVATION == "relu2":
            y *= y
    return y


@triton.jit
def _gated(
    gate,
    up,
    kind,
    GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
):
    """As ExpertLayout.gate says, each operation rounded to the compute type as eager execution does."""
    if GATE != "glu":
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    if GATE == "clamped_sigmoid":
        gate = tl.minimum(gate, LIMIT)
        gate = _rounded(gate * _rounded(tl.sigmoid(_rounded(gate * ALPHA, kind)), kind), kind)
        up = _rounded(up + 1.0, kind)
    else:
        if GATE == "clamped":
            gate = tl.minimum(gate, LIMIT)
        gate = _rounded(_activated(gate, ACTIVATION), kind)
        if GATE == "clamped_after":
            gate = tl.minimum(gate, LIMIT)
    return gate * up
