"""The decoder as an ONNX graph of onnxruntime's operators, weights in a file beside it.

    x = embedding[input_ids]
    a = norm(x);  c = GroupQueryAttention(q a, k a, v a, past);  x += o c
    f = norm(x);  x += down(silu(gate f) * (up f))
    logits = head(norm(x))

Inputs: input_ids [batch, sequence] and attention_mask [batch, past + sequence], int64;
past_key_values.N.key and .value [batch, key heads, past, head size], float32. Outputs: logits
[batch, sequence, vocabulary], and present.N.key and .value, which the next call gets as its past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from packlight.llm.blocks_wiring import Rotary, Wiring
from packlight.llm.onnx.formats import FORMATS, pieces_of
from packlight.llm.onnx.writing import Stored

OPSET = 21
IR_VERSION = 10
"""Of onnxruntime 1.19, the first with all of these operators."""

CONTRIB = "com.microsoft"
_CONTRIBUTED = (
    "GatherBlockQuantized",
    "GroupQueryAttention",
    "MatMulNBits",
    "SkipSimplifiedLayerNormalization",
)

_TYPES = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}


def build_decoder(
    wiring: Wiring,
    context: int,
    stored: Mapping[str, Stored],
    data: str,
    *,
    accuracy_level: int = 4,
) -> onnx.ModelProto:
    """Give the graph of a decoder.

    context: positions that there are rotations for. stored: tensors by their GGUF names, as they
    lie in the file `data` beside the graph. accuracy_level: of MatMulNBits, 4 has activations
    rounded to int8, 1 leaves them in float32.
    """
    return _Decoder(wiring, stored, data, accuracy_level).build(context)


class _Decoder:
    """Nodes and initializers as they come; each method gives the name of its result."""

    def __init__(
        self, wiring: Wiring, stored: Mapping[str, Stored], data: str, accuracy_level: int
    ) -> None:
        self.wiring, self.stored, self.data = wiring, stored, data
        self.accuracy_level = accuracy_level
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.scales: set[str] = set()

    def build(self, context: int) -> onnx.ModelProto:
        wiring = self.wiring
        lengths = self._lengths()
        rotary = wiring.rotary[0]
        assert rotary is not None
        caches = self._rotations(rotary, context)
        x = self._embed("input_ids")
        normed = self._norm("blk.0.attn_norm.weight", x)
        for layer in range(wiring.layers):
            prefix = f"blk.{layer}"
            mixed = self._attention(prefix, normed, layer, lengths, caches)
            normed, x = self._add_and_norm(f"{prefix}.ffn_norm.weight", x, mixed)
            fed = self._feed_forward(prefix, normed)
            last = layer + 1 == wiring.layers
            after = "output_norm.weight" if last else f"blk.{layer + 1}.attn_norm.weight"
            normed, x = self._add_and_norm(after, x, fed)
        head = "output" if "output.weight" in self.stored else "token_embd"
        self._linear(head, normed, output="logits")
        return self._model()

    def _model(self) -> onnx.ModelProto:
        wiring = self.wiring
        vocabulary = self.stored["token_embd.weight"].shape[0]

        def cache(word: str, length: str) -> list[onnx.ValueInfoProto]:
            shape: list[str | int | None] = ["batch", wiring.key_heads, length, wiring.head_size]
            return [
                helper.make_tensor_value_info(f"{word}.{i}.{part}", TensorProto.FLOAT, shape)
                for i in range(wiring.layers)
                for part in ("key", "value")
            ]

        def ids(name: str, length: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])

        logits = helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["batch", "sequence", vocabulary]
        )
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [
                ids("input_ids", "sequence"),
                ids("attention_mask", "total"),
                *cache("past_key_values", "past"),
            ],
            [logits, *cache("present", "total")],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="packlight"
        )

    def _embed(self, ids: str) -> str:
        one = self.stored["token_embd.weight"]
        if not FORMATS[one.format].coded:
            return self._node("Gather", [self._piece(one, "values", one.shape), ids], "embedding")
        codes, scale, zero = self._coded(one, flat=True)
        return self._node(
            "GatherBlockQuantized",
            [codes, ids, scale, zero],
            "embedding",
            gather_axis=0,
            quantize_axis=1,
            block_size=FORMATS[one.format].block,
            bits=FORMATS[one.format].bits,
        )

    def _attention(
        self, prefix: str, x: str, layer: int, lengths: Sequence[str], caches: Sequence[str]
    ) -> str:
        wiring = self.wiring
        heads, keys, size = wiring.heads, wiring.key_heads, wiring.head_size
        if f"{prefix}.attn_qkv.weight" in self.stored:
            qkv = [self._linear(f"{prefix}.attn_qkv", x), "", ""]
        else:
            qkv = [self._linear(f"{prefix}.attn_{part}", x) for part in "qkv"]
            qkv[0] = self._norm_heads(f"{prefix}.attn_q_norm.weight", qkv[0], heads * size)
            qkv[1] = self._norm_heads(f"{prefix}.attn_k_norm.weight", qkv[1], keys * size)
        rotary = wiring.rotary[layer]
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        mixed = self._node(
            "GroupQueryAttention",
            [*qkv, *past, *lengths, *caches],
            f"{prefix}.attention",
            [f"present.{layer}.{part}" for part in ("key", "value")],
            num_heads=heads,
            kv_num_heads=keys,
            scale=wiring.attention_scale,
            do_rotary=1,
            rotary_interleaved=int(rotary is not None and rotary.pairs == "neighbours"),
            local_window_size=wiring.window[layer] or -1,
        )
        return self._linear(f"{prefix}.attn_output", mixed)

    def _feed_forward(self, prefix: str, x: str) -> str:
        up = self._linear(f"{prefix}.ffn_up", x)
        if f"{prefix}.ffn_gate.weight" in self.stored:
            gate = self._linear(f"{prefix}.ffn_gate", x)
        else:
            fused, gate, up = up, f"{prefix}.gate", f"{prefix}.up"
            self._node("Split", [fused], gate, [up], axis=-1, num_outputs=2)
        opened = self._node("Sigmoid", [gate], f"{prefix}.sigmoid")
        opened = self._node("Mul", [gate, opened], f"{prefix}.silu")
        return self._linear(
            f"{prefix}.ffn_down", self._node("Mul", [opened, up], f"{prefix}.hidden")
        )

    def _linear(self, name: str, x: str, output: str = "") -> str:
        """The weight of that name on x, and its bias where it has one."""
        one = self.stored[f"{name}.weight"]
        chosen = FORMATS[one.format]
        biased = f"{name}.bias" in self.stored
        result = output if output and not biased else f"{name}.product"
        if chosen.coded:
            self._node(
                "MatMulNBits",
                [x, *self._coded(one, flat=False)],
                result,
                K=one.shape[1],
                N=one.shape[0],
                bits=chosen.bits,
                block_size=chosen.block,
                accuracy_level=self.accuracy_level,
            )
        else:
            turned = self._node(
                "Transpose", [self._piece(one, "values", one.shape)], f"{name}.turned", perm=[1, 0]
            )
            self._node("MatMul", [x, turned], result)
        if not biased:
            return result
        return self._node("Add", [result, self._vector(f"{name}.bias")], output or f"{name}.biased")

    def _norm(self, name: str, x: str, output: str = "") -> str:
        return self._node(
            "SimplifiedLayerNormalization",
            [x, self._vector(name)],
            output or f"{name}.normed",
            axis=-1,
            epsilon=self.wiring.norm_epsilon,
            stash_type=1,
        )

    def _add_and_norm(self, name: str, x: str, more: str) -> tuple[str, str]:
        """norm(x + more), and x + more."""
        stream = f"{name}.stream"
        normed = self._node(
            "SkipSimplifiedLayerNormalization",
            [x, more, self._vector(name)],
            f"{name}.normed",
            ["", "", stream],
            epsilon=self.wiring.norm_epsilon,
        )
        return normed, stream

    def _norm_heads(self, name: str, x: str, width: int) -> str:
        """Queries or keys normalized by head, where the model does so."""
        if name not in self.stored:
            return x
        cut = self._constant(f"{name}.heads", [0, 0, -1, self.wiring.head_size])
        whole = self._constant(f"{name}.whole", [0, 0, width])
        heads = self._node("Reshape", [x, cut], f"{name}.cut")
        return self._node("Reshape", [self._norm(name, heads), whole], f"{name}.joined")

    def _lengths(self) -> tuple[str, str]:
        """What GroupQueryAttention wants to know: the last position of each, and the longest."""
        axis, one = self._constant("axis", [1]), self._constant("one", [1])
        counted = self._node("ReduceSum", ["attention_mask", axis], "counted", keepdims=0)
        last = self._node("Sub", [counted, one], "last")
        shape = self._node("Shape", ["attention_mask"], "mask_shape")
        longest = self._node("Gather", [shape, self._constant("second", 1)], "longest")
        return (
            self._node("Cast", [last], "last_positions", to=TensorProto.INT32),
            self._node("Cast", [longest], "total_length", to=TensorProto.INT32),
        )

    def _rotations(self, rotary: Rotary, context: int) -> tuple[str, str]:
        """Cosines and sines [context, size / 2]; onnxruntime computes them as it loads."""
        ends = (self._constant(f"range.{one}", np.float32(one)) for one in (0, context, 1))
        positions = self._node("Range", list(ends), "positions")
        shape = self._constant("column", [-1, 1])
        positions = self._node("Reshape", [positions, shape], "positions_column")
        frequencies = np.asarray(rotary.frequencies, np.float32)[None, :]
        steps = self._constant("frequencies", frequencies)
        angles = self._node("Mul", [positions, steps], "angles")
        found = [self._node(kind, [angles], kind.lower()) for kind in ("Cos", "Sin")]
        if rotary.magnitude != 1.0:
            by = self._constant("magnitude", np.float32(rotary.magnitude))
            found = [self._node("Mul", [one, by], f"{one}_scaled") for one in found]
        return found[0], found[1]

    def _coded(self, one: Stored, *, flat: bool) -> list[str]:
        """Codes, scales and zero points. flat: codes [out, bytes], else [out, blocks, bytes]."""
        chosen = FORMATS[one.format]
        rows, blocks = one.shape[0], one.shape[1] // chosen.block
        shape = [rows, blocks, chosen.block * chosen.bits // 8]
        codes = self._piece(one, "codes", [rows, prod(shape[1:])] if flat else shape, flat=flat)
        half = self._piece(one, "scale", [rows, blocks])
        scale = f"{one.name}.scale_float"
        if scale not in self.scales:
            self.scales.add(self._node("Cast", [half], scale, to=TensorProto.FLOAT))
        zero = self._piece(one, "zero_point", [rows, -(-blocks * chosen.bits // 8)])
        return [codes, scale, zero]

    def _vector(self, name: str) -> str:
        return self._piece(self.stored[name], "values", self.stored[name].shape)

    def _piece(self, one: Stored, word: str, shape: Sequence[int], *, flat: bool = False) -> str:
        """An initializer over a stretch of the file; two of them may lie over the same one."""
        name = f"{one.name}.{word}{'_flat' if flat else ''}"
        piece = next(part for part in pieces_of(one.format, one.shape) if part.word == word)
        tensor = onnx.TensorProto(
            name=name,
            data_type=_TYPES[piece.dtype],
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        length = prod(one.shape[:-1]) * piece.width
        for key, value in (
            ("location", self.data),
            ("offset", str(one.offset + piece.offset)),
            ("length", str(length)),
        ):
            tensor.external_data.add(key=key, value=value)
        self.initializers[name] = tensor
        return name

    def _constant(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.int64) if array.dtype.kind == "i" else array
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str,
        others: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node and give the name of its first output, which names it too."""
        domain = CONTRIB if kind in _CONTRIBUTED else ""
        self.nodes.append(
            helper.make_node(
                kind, inputs, [output, *others], name=output, domain=domain, **attributes
            )
        )
        return output
