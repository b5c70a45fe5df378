"""Operators of onnxruntime (com.microsoft) that exported and compressed models contain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.operators.convolution import conv
from packlight.graph.torch.operators.elementwise import gelu, hard_sigmoid, leaky_relu
from packlight.graph.torch.operators.normalization import rms_normalization
from packlight.graph.torch.operators.quantized import (
    dequantize_linear,
    dynamic_quantize_linear,
    quantize_linear,
)
from packlight.graph.torch.operators.recurrent import lstm
from packlight.graph.torch.values import Tensor


def fast_gelu(X: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by the hyperbolic tangent, of X + bias."""
    return functional.gelu(X if bias is None else X + bias, approximate="tanh")


def bias_gelu(A: Tensor, B: Tensor) -> Tensor:
    """Gelu of a sum."""
    return functional.gelu(A + B)


def quick_gelu(X: Tensor, *, alpha: float = 1.702) -> Tensor:
    """X sigmoid(alpha X)."""
    return X * torch.sigmoid(alpha * X)


def skip_layer_normalization(
    input: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: int = 1,
) -> Any:
    """Layer normalization of input + skip + bias, and as fourth output that sum."""
    total = input + skip if bias is None else input + skip + bias
    Y = functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if outputs == 1:
        return Y
    mean = total.mean(-1, keepdim=True)
    inverse = torch.rsqrt(total.var(-1, correction=0, keepdim=True) + epsilon)
    return Y, mean, inverse, total


def skip_simplified_layer_normalization(
    input: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Any, ...]:
    """RMS normalization of input + skip + bias, and as fourth output that sum."""
    total = input + skip if bias is None else input + skip + bias
    return rms_normalization(total, gamma, epsilon=epsilon), None, None, total


def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalization of word, position and segment embeddings; counts of the mask; the sum."""
    length = input_ids.shape[1]
    if position_ids is None:
        position_ids = torch.arange(length, device=input_ids.device).unsqueeze(0)
    total = functional.embedding(input_ids.long(), word_embedding)
    total = total + functional.embedding(position_ids.long(), position_embedding)
    if segment_ids is not None and segment_embedding is not None:
        total = total + functional.embedding(segment_ids.long(), segment_embedding)
    Y = functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    if mask is None:
        counts = torch.zeros(input_ids.shape[0], dtype=torch.int32, device=Y.device)
    else:
        counts = mask.sum(1, dtype=torch.int32)
    return Y, counts, total


def attention(
    input: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
    outputs: int = 1,
) -> Any:
    """Self-attention of input [batch, length, in] with weights [in, q + k + v].

    past, present: [2, batch, heads, length, size]. mask_index: [batch] lengths, [batch, total]
    or [batch, length, total], 0 where nothing is to be seen.
    """
    sizes = list(qkv_hidden_sizes) if qkv_hidden_sizes else [weights.shape[1] // 3] * 3
    product = input @ weights if bias is None else input @ weights + bias
    query, key, value = (
        part.reshape(*part.shape[:2], num_heads, -1).transpose(1, 2)
        for part in torch.split(product, sizes, -1)
    )
    if past is not None:
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
    length, total = query.shape[2], key.shape[2]
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask_index is not None:
        seen = _seen(mask_index, total)
        scores = scores + torch.where(seen, 0.0, mask_filter_value)
    if unidirectional:
        before = torch.ones(length, total, dtype=torch.bool, device=input.device)
        hidden = ~before.tril(total - length)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    if attention_bias is not None:
        scores = scores + attention_bias
    Y = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
    return Y if outputs == 1 else (Y, torch.stack([key, value]))


def _seen(mask: Tensor, total: int) -> Tensor:
    """Which places may be looked at, in a shape that broadcasts over [batch, heads, q, k]."""
    if mask.ndim == 1:
        places = torch.arange(total, device=mask.device)
        return (places < mask.unsqueeze(1))[:, None, None]
    seen = mask != 0
    return seen[:, None, None] if mask.ndim == 2 else seen[:, None]


_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "LeakyRelu": lambda x, alpha=0.01: leaky_relu(x, alpha=alpha),
    "Clip": lambda x, low, high: x.clamp(low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: hard_sigmoid(x, alpha=alpha, beta=beta),
}


def fused_conv(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    Z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: tuple[float, ...] = (),
    **windows: Any,
) -> Tensor:
    """A convolution, plus Z, with an activation."""
    Y = conv(X, W, B, **windows)
    if Z is not None:
        Y = Y + Z
    return _ACTIVATIONS[activation](Y, *activation_params) if activation else Y


def fused_mat_mul(
    A: Tensor,
    B: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Alpha A B, either transposed first."""
    if transBatchA or transBatchB:
        raise NotImplementedError("FusedMatMul with transposed batches")
    left = A.transpose(-1, -2) if transA else A
    right = B.transpose(-1, -2) if transB else B
    return left @ right if alpha == 1.0 else alpha * (left @ right)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """The numbers of `bits` bits in bytes [..., n], lowest bits first: [..., n * 8 / bits]."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    spread: Tensor = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return spread.flatten(-2)


def _decode_blocks(codes: Tensor, scales: Tensor, zero_points: Tensor | None, bits: int) -> Tensor:
    """Codes [rows, blocks, size] times the scale of each block [rows, blocks]."""
    blocks = codes.shape[1]
    if zero_points is None:
        zero: Any = 1 << (bits - 1)
    elif zero_points.is_floating_point():
        zero = zero_points.reshape(-1, blocks, 1)
    else:
        unpacked = unpack_bits(zero_points.reshape(codes.shape[0], -1), bits)
        zero = unpacked[:, :blocks].unsqueeze(-1).to(scales.dtype)
    decoded: Tensor = (codes.to(scales.dtype) - zero) * scales.reshape(-1, blocks, 1)
    return decoded


def mat_mul_n_bits(
    A: Tensor,
    B: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int,
    accuracy_level: int = 0,
) -> Tensor:
    """A times a weight [N, K] stored in blocks along K, with the activations as they are."""
    if g_idx is not None:
        raise NotImplementedError("MatMulNBits with g_idx")
    codes = unpack_bits(B.reshape(N, -1, B.shape[-1]), bits)
    weight = _decode_blocks(codes, scales, zero_points, bits).flatten(1)[:, :K]
    return functional.linear(A, weight.to(A.dtype), bias)


def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """Rows of a table [rows, size] stored in blocks along its rows."""
    if (gather_axis, quantize_axis % data.ndim, data.ndim) != (0, 1, 2):
        raise NotImplementedError("GatherBlockQuantized along other axes than 0 and 1")
    rows = indices.long().to(data.device)
    picked = rows.reshape(-1)
    packed = data.dtype == torch.uint8 and bits < 8 and data.shape[1] * 8 // bits > scales.shape[1]
    codes = unpack_bits(data[picked], bits) if packed else data[picked]
    blocks = scales.shape[1]
    size = codes.shape[1]
    padded = functional.pad(codes, (0, blocks * block_size - size))
    zero = None if zero_points is None else zero_points[picked]
    found = _decode_blocks(
        padded.reshape(len(picked), blocks, block_size), scales[picked], zero, bits
    )
    return found.flatten(1)[:, :size].reshape(*rows.shape, size)


def dynamic_quantize_mat_mul(
    A: Tensor,
    B: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A quantized as it comes, times B [in, out] of 8 bits."""
    codes, scale, zero = dynamic_quantize_linear(A)
    left = dequantize_linear(codes, scale, zero)
    weight = dequantize_linear(B, b_scale, b_zero_point, axis=1)
    return left @ weight if bias is None else left @ weight + bias


def mat_mul_integer_to_float(
    A: Tensor,
    B: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product of two quantized matrices, in floats."""
    left = dequantize_linear(A, a_scale, a_zero_point, axis=-1)
    product = left @ dequantize_linear(B, b_scale, b_zero_point, axis=-1)
    return product if bias is None else product + bias


def dynamic_quantize_lstm(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    P: Tensor | None,
    W_scale: Tensor,
    W_zero_point: Tensor,
    R_scale: Tensor,
    R_zero_point: Tensor,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """An LSTM with weights [directions, in, 4 hidden] of 8 bits; activations as they are."""
    weights: list[Tensor] = []
    for codes, scale, zero in ((W, W_scale, W_zero_point), (R, R_scale, R_zero_point)):
        form = (codes.shape[0], 1, -1)
        values = (codes.to(scale.dtype) - zero.reshape(form).to(scale.dtype)) * scale.reshape(form)
        weights.append(values.transpose(1, 2))
    W, R = weights
    return lstm(X, W, R, B, sequence_lens, initial_h, initial_c, P, **attributes)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "Attention": attention,
    "BiasGelu": bias_gelu,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "DynamicQuantizeMatMul": dynamic_quantize_mat_mul,
    "EmbedLayerNormalization": embed_layer_normalization,
    "FastGelu": fast_gelu,
    "FusedConv": fused_conv,
    "FusedMatMul": fused_mat_mul,
    "GatherBlockQuantized": gather_block_quantized,
    "Gelu": gelu,
    "MatMulIntegerToFloat": mat_mul_integer_to_float,
    "MatMulNBits": mat_mul_n_bits,
    "QuantizeLinear": quantize_linear,
    "QuickGelu": quick_gelu,
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_simplified_layer_normalization,
}
