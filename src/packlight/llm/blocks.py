"""One decoder block as one plain function of its tensors, and what stands before and after all.

The block is written as a walk from one group of linear layers to the next: whoever walks sees
what reaches a group before its weights are used, and may replace them first. Every architecture
of the table takes the same walk; which tensors are there says what it meets.

    a = norm(x);  c = attention(q a, k a, v a);  x += norm?(o c)
    f = norm(x);  h = act(gate f) * (up f);      x += norm?(down h)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812

from packlight.llm.blocks_wiring import Rotary, Wiring

Tensor: TypeAlias = Any
"""A torch tensor."""

Weights: TypeAlias = Mapping[str, Tensor]
"""A block's tensors, by their GGUF name without `blk.N.`."""

EMBEDDING, HEAD = "token_embd.weight", "output.weight"

See: TypeAlias = Callable[[str, Tensor], None]
"""Is told the outputs [..., out] of a linear layer, by its name, before its bias is added."""


@dataclass(frozen=True)
class Site:
    """A group of linear layers that read the same inputs.

    names: of their weights. inputs: [..., in]. expert: which slice of weights [experts, out, in].
    stream: what the outputs are added to, where that is done with nothing between.
    """

    names: tuple[str, ...]
    inputs: Tensor
    expert: int | None = None
    stream: Tensor | None = None


Walk: TypeAlias = Generator[Site, None, Tensor]

_QKV = ("attn_q.weight", "attn_k.weight", "attn_v.weight")


def walk_block(
    weights: Weights, wiring: Wiring, layer: int, states: Tensor, see: See | None = None
) -> Walk:
    """Yield each group of linear layers with what reaches it; return the block's outputs.

    states: [windows, length, width]. A weight is read after its site was yielded.
    """
    x = yield from _walk_attention(weights, wiring, layer, states, see)
    return (yield from _walk_feed_forward(weights, wiring, x, see))


def run_block(
    weights: Weights, wiring: Wiring, layer: int, states: Tensor, see: See | None = None
) -> Tensor:
    """Give the outputs [windows, length, width] of a block."""
    return finish_walk(walk_block(weights, wiring, layer, states, see))


def finish_walk(walk: Walk, look: Callable[[Site], None] = lambda site: None) -> Tensor:
    """Walk on to the end of a block, and give its outputs. look: is told of each site."""
    while True:
        try:
            site = next(walk)
        except StopIteration as end:
            return end.value
        look(site)


def embed_tokens(weights: Weights, wiring: Wiring, tokens: Tensor) -> Tensor:
    """Give what enters the first block. tokens: [windows, length] int64.

    weights: `token_embd.weight` and, where positions are learned, `position_embd.weight`.
    """
    x = F.embedding(tokens, weights[EMBEDDING]) * wiring.embedding_scale
    if "token_embd_norm.weight" in weights:
        x = normalize(weights, wiring, "token_embd_norm", x)
    if "position_embd.weight" in weights:
        x = x + weights["position_embd.weight"][: tokens.shape[1]]
    return x


def head_inputs(weights: Weights, wiring: Wiring, states: Tensor) -> Tensor:
    """Give what reaches the output head. weights: `output_norm.*`."""
    return normalize(weights, wiring, "output_norm", states)


def head_logits(
    weights: Weights, wiring: Wiring, inputs: Tensor, words: slice = slice(None)
) -> Tensor:
    """Give the logits [..., words] of what reaches the head, `output` or the embedding.

    words: of the vocabulary, those that are asked for.
    """
    logits = F.linear(inputs, weights[head_name(weights)][words])
    if "output.bias" in weights:
        logits = logits + weights["output.bias"][words]
    return softcap(logits, wiring.final_softcap)


def head_name(names: Mapping[str, object]) -> str:
    """The tensor that is the output head: the embedding's own where both are tied."""
    return HEAD if HEAD in names else EMBEDDING


def normalize(weights: Weights, wiring: Wiring, name: str, x: Tensor) -> Tensor:
    """Root-mean-square or layer normalization over the last axis, in float32."""
    scale = weights[f"{name}.weight"]
    if wiring.norm == "layer":
        return F.layer_norm(
            x, x.shape[-1:], scale, weights.get(f"{name}.bias"), wiring.norm_epsilon
        )
    return F.rms_norm(x, x.shape[-1:], scale, wiring.norm_epsilon)


def softcap(values: Tensor, cap: float | None) -> Tensor:
    """Give cap * tanh(values / cap)."""
    return values if cap is None else torch.tanh(values / cap) * cap


def linear(weights: Weights, name: str, x: Tensor, see: See | None) -> Tensor:
    """Apply the weight of that name, and its bias where it has one."""
    outputs = F.linear(x, weights[name])
    if see is not None:
        see(name, outputs)
    bias = weights.get(name.removesuffix("weight") + "bias")
    return outputs if bias is None else outputs + bias


def _walk_attention(
    weights: Weights, wiring: Wiring, layer: int, states: Tensor, see: See | None
) -> Walk:
    a = normalize(weights, wiring, "attn_norm", states) if "attn_norm.weight" in weights else states
    heads, keys, size = wiring.heads, wiring.key_heads, wiring.head_size
    if "attn_qkv.weight" in weights:
        yield Site(("attn_qkv.weight",), a)
        fused = linear(weights, "attn_qkv.weight", a, see)
        q, k, v = fused.split([heads * size, keys * size, keys * size], dim=-1)
    else:
        yield Site(_QKV, a)
        q, k, v = (linear(weights, name, a, see) for name in _QKV)
    q = _heads(weights, wiring, "attn_q_norm", q, heads)
    k = _heads(weights, wiring, "attn_k_norm", k, keys)
    rotary = wiring.rotary[layer]
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    v = v.unflatten(-1, (keys, -1)).transpose(1, 2)
    mixed = attend(q, k, v, wiring, wiring.window[layer])
    mixed = mixed.transpose(1, 2).flatten(2)
    del a, q, k, v  # whoever keeps the walk waiting keeps what it holds
    after = "post_attention_norm.weight" in weights
    yield Site(("attn_output.weight",), mixed, stream=None if after else states)
    outputs = linear(weights, "attn_output.weight", mixed, see)
    if after:
        outputs = normalize(weights, wiring, "post_attention_norm", outputs)
    return states + outputs


def _heads(weights: Weights, wiring: Wiring, norm: str, x: Tensor, heads: int) -> Tensor:
    """Give [windows, heads, length, size], normalized by head or over all heads."""
    scale = weights.get(f"{norm}.weight")
    if scale is not None and scale.shape[-1] == x.shape[-1]:
        x, scale = normalize(weights, wiring, norm, x), None
    x = x.unflatten(-1, (heads, -1))
    if scale is not None:
        x = normalize(weights, wiring, norm, x)
    return x.transpose(1, 2)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs of dimensions of x [windows, heads, length, size] by their positions."""
    angles = torch.outer(
        torch.arange(x.shape[2], dtype=torch.float32),
        torch.tensor(rotary.frequencies, dtype=torch.float32),
    )
    cos, sin = torch.cos(angles) * rotary.magnitude, torch.sin(angles) * rotary.magnitude
    turned, rest = x[..., : rotary.size], x[..., rotary.size :]
    if rotary.pairs == "neighbours":
        first, second = turned[..., 0::2], turned[..., 1::2]
        pair = (first * cos - second * sin, first * sin + second * cos)
        turned = torch.stack(pair, dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, wiring: Wiring, window: int | None) -> Tensor:
    """Causal attention of q [windows, heads, length, size] over k and v with fewer heads."""
    length = q.shape[2]
    scale, grouped = wiring.attention_scale, q.shape[1] != k.shape[1]
    if wiring.attention_softcap is None and (window is None or window >= length):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
    row = torch.arange(length)
    seen = row[None, :] <= row[:, None]
    if window is not None:
        seen &= row[:, None] - row[None, :] < window
    if wiring.attention_softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
    scores = softcap(torch.matmul(q, k.mT) * scale, wiring.attention_softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1), v)


def _walk_feed_forward(weights: Weights, wiring: Wiring, x: Tensor, see: See | None) -> Walk:
    f = normalize(weights, wiring, "ffn_norm", x) if "ffn_norm.weight" in weights else x
    after = "post_ffw_norm.weight" in weights
    stream = None if after else x
    if "ffn_gate_inp.weight" in weights:
        outputs = yield from _walk_experts(weights, wiring, f, see)
    else:
        h = yield from _walk_hidden(weights, wiring, f, see, "")
        yield Site(("ffn_down.weight",), h, stream=stream)
        outputs = linear(weights, "ffn_down.weight", h, see)
    if after:
        outputs = normalize(weights, wiring, "post_ffw_norm", outputs)
    return x + outputs


def _walk_hidden(weights: Weights, wiring: Wiring, f: Tensor, see: See | None, suffix: str) -> Walk:
    gate, up = f"ffn_gate{suffix}.weight", f"ffn_up{suffix}.weight"
    if gate in weights:
        yield Site((gate, up), f)
        return activate(linear(weights, gate, f, see), wiring) * linear(weights, up, f, see)
    yield Site((up,), f)
    h = linear(weights, up, f, see)
    down = weights[f"ffn_down{suffix}.weight"]
    if h.shape[-1] == 2 * down.shape[-1]:  # gate and up in one
        first, second = h.chunk(2, dim=-1)
        return activate(first, wiring) * second
    return activate(h, wiring)


def _walk_experts(weights: Weights, wiring: Wiring, f: Tensor, see: See | None) -> Walk:
    """Each token goes to the experts of largest weight (Shazeer et al. 2017)."""
    rows = f.flatten(0, -2)
    scores = F.linear(rows, weights["ffn_gate_inp.weight"])
    shares = torch.softmax(scores, dim=-1)
    shares, chosen = torch.topk(shares, wiring.experts_used, dim=-1)
    if wiring.normalized_experts:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    gate, up, down = (f"ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
    places = [torch.nonzero(chosen == e) for e in range(weights[up].shape[0])]
    for e, place in enumerate(places):
        yield Site((gate, up), rows[place[:, 0]], expert=e)
    hidden = []
    for e, place in enumerate(places):
        own = rows[place[:, 0]]
        gates = _expert(weights, gate, e, own, see)
        hidden.append(activate(gates, wiring) * _expert(weights, up, e, own, see))
    for e, h in enumerate(hidden):
        yield Site((down,), h, expert=e)
    outputs = torch.zeros_like(rows)
    for e, (h, place) in enumerate(zip(hidden, places, strict=True)):
        part = _expert(weights, down, e, h, see) * shares[place[:, 0], place[:, 1], None]
        outputs = outputs.index_add(0, place[:, 0], part)
    if "ffn_up_shexp.weight" in weights:  # an expert that every token goes to
        h = yield from _walk_hidden(weights, wiring, rows, see, "_shexp")
        yield Site(("ffn_down_shexp.weight",), h)
        part = linear(weights, "ffn_down_shexp.weight", h, see)
        if "ffn_gate_inp_shexp.weight" in weights:
            gate = weights["ffn_gate_inp_shexp.weight"].view(1, -1)
            part = part * torch.sigmoid(F.linear(rows, gate))
        outputs = outputs + part
    return outputs.view_as(f)


def _expert(weights: Weights, name: str, expert: int, x: Tensor, see: See | None) -> Tensor:
    outputs = F.linear(x, weights[name][expert])
    if see is not None:
        see(name, outputs)
    return outputs


def activate(x: Tensor, wiring: Wiring) -> Tensor:
    """The nonlinearity of the feed-forward part."""
    if wiring.activation == "silu":
        return F.silu(x)
    if wiring.activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if wiring.activation == "gelu_tanh" else "none")
