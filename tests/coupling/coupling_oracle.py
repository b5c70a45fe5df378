"""What a pruned model must compute: the original with zeros where the channels were read."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from packlight.graph.coupling.groups import CoupledGroup, find_groups
from packlight.graph.coupling.shapes import infer_shapes
from packlight.graph.rewrite.prune import remove_channels
from packlight.graph.save import copy_model
from packlight.graph.walk import ensure_names

Feeds = dict[str, NDArray[Any]]


def build(text: str, *, opset: int = 17, contrib: bool = False, **weights: Any) -> ir.Model:
    """A model from ONNX text; weights are arrays, or shapes that are filled with noise."""
    extra = ', "com.microsoft" : 1' if contrib else ""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}{extra}]>\n' + text
    )
    for name, given in weights.items():
        if isinstance(given, tuple):
            draw = np.random.default_rng(zlib.crc32(name.encode()))
            fan = np.prod(given[1:]) if len(given) > 1 else 4
            given = (draw.standard_normal(given) / np.sqrt(max(fan, 1))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(given), name))
    model = ir.from_proto(proto)
    ensure_names(model)
    return model


def session_of(model: ir.Model) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, as it would be saved."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    stream = io.BytesIO(ir.to_proto(model).SerializeToString())
    return onnxruntime.InferenceSession(stream.getvalue(), options)


def feeds_of(model: ir.Model, seed: int = 0, *, size: int = 3) -> Feeds:
    """Noise for every input; open axes get `size` entries, integers are 0 or 1."""
    draw = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.name is not None and value.dtype is not None
        shape = [axis if isinstance(axis, int) else size for axis in value.shape]
        kind = value.dtype.numpy()
        if np.issubdtype(kind, np.floating):
            feeds[value.name] = draw.standard_normal(shape).astype(kind)
        else:
            feeds[value.name] = draw.integers(0, 2, shape).astype(kind)
    return feeds


def masked(
    model: ir.Model, groups: Sequence[CoupledGroup], removed: Mapping[str, Sequence[int]]
) -> ir.Model:
    """The model with zeros in every weight that reads a removed channel.

    Where no weight reads them (keys and queries meet in a product), in what makes them.
    """
    copy = copy_model(model)
    nodes = {node.name: node for node in copy.graph}
    for group in groups:
        chosen = np.asarray(removed.get(group.name, ()), dtype=np.intp)
        roles = ("reads",) if group.readers else ("makes", "follows")
        for member in group.members if len(chosen) else ():
            if member.role not in roles:
                continue
            value = nodes[member.node].inputs[member.number]
            assert value is not None and value.const_value is not None
            array = value.const_value.numpy().copy()
            at: list[Any] = [slice(None)] * array.ndim
            at[member.axis] = member.positions[chosen].ravel()
            array[tuple(at)] = 0
            value.const_value = ir.Tensor(array, name=value.name)
    return copy


def free(groups: Sequence[CoupledGroup]) -> list[CoupledGroup]:
    """The groups of which something can be removed."""
    return [group for group in groups if not group.pinned and group.size > 1]


def draw_channels(
    groups: Sequence[CoupledGroup], share: float = 0.25, seed: int = 0
) -> dict[str, list[int]]:
    """A share of the channels of every group that can lose some, one at least."""
    draw = np.random.default_rng(seed)
    return {
        group.name: sorted(draw.permutation(group.size)[: max(1, int(share * group.size))].tolist())
        for group in free(groups)
    }


def check_exact(
    model: ir.Model, *, heads: Any = "whole", share: float = 0.25, seed: int = 0, **feeds: Any
) -> tuple[CoupledGroup, ...]:
    """Prune some channels of all groups at once; the result must be the masked model's."""
    groups = find_groups(model, heads=heads)
    check_partition(groups)
    removed = draw_channels(groups, share, seed)
    assert removed, [group.pinned for group in groups]
    pruned = remove_channels(model, removed, heads=heads)
    given = feeds_of(model, seed) | feeds
    original = session_of(model).run(None, given)
    expected = session_of(masked(model, groups, removed)).run(None, given)
    found = session_of(pruned).run(None, given)
    for before, wanted, got in zip(original, expected, found, strict=True):
        assert got.shape == wanted.shape
        scale = float(np.abs(before).max()) or 1.0
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5 * scale)
    check_lanes(masked(model, groups, removed), pruned, groups, removed, given)
    # Otherwise zeros in the wrong places would not be noticed.
    assert any(not np.allclose(a, b, atol=1e-4) for a, b in zip(original, expected, strict=True))
    assert weigh(pruned) < weigh(model)
    return groups


def check_lanes(
    whole: ir.Model,
    pruned: ir.Model,
    groups: Sequence[CoupledGroup],
    removed: Mapping[str, Sequence[int]],
    feeds: Feeds,
) -> None:
    """Every tensor of the pruned model is the masked one's without the removed lanes."""
    gone: dict[str, dict[int, list[int]]] = {}
    for group in groups:
        chosen = list(removed.get(group.name, ()))
        for lane in group.lanes:
            taken = gone.setdefault(lane.value, {}).setdefault(lane.axis, [])
            taken += lane.positions[chosen].ravel().tolist()
    names, arrays = zip(*_everything(whole, feeds), strict=True)
    after = dict(_everything(pruned, feeds))
    common = [name for name in names if name in after]
    assert len(common) > len(names) // 2
    for name, array in zip(names, arrays, strict=True):
        if name not in after or not np.issubdtype(array.dtype, np.floating):
            continue
        for axis, positions in gone.get(name, {}).items():
            array = np.delete(array, positions, axis=axis)
        assert array.shape == after[name].shape, name
        scale = float(np.abs(array).max(initial=0)) or 1.0
        np.testing.assert_allclose(after[name], array, rtol=1e-3, atol=2e-5 * scale)


def _everything(model: ir.Model, feeds: Feeds) -> list[tuple[str, NDArray[Any]]]:
    """All tensors that a model computes on its way, by name."""
    copy = copy_model(model)
    infer_shapes(copy)
    inner = [value for node in copy.graph for value in node.outputs]
    copy.graph.outputs.extend(
        value
        for value in inner
        if value.type is not None and value.uses() and not value.is_graph_output()
    )
    names = [value.name or "" for value in copy.graph.outputs]
    return list(zip(names, session_of(copy).run(None, feeds), strict=True))


def check_partition(groups: Sequence[CoupledGroup]) -> None:
    """No position of a weight belongs to two channels."""
    taken: set[tuple[str, int, int, int]] = set()
    for group in groups:
        for member in group.members:
            assert member.positions.shape[0] == group.size
            for position in member.positions.ravel().tolist():
                place = (member.node, member.number, member.axis, position)
                assert place not in taken
                taken.add(place)


def weigh(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(tensor.nbytes for tensor in _tensors(model))


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
