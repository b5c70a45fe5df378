from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st

from packlight.transport.wire import find_tensors


def raw_of(model: onnx.ModelProto) -> list[bytes]:
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        for attribute in node.attribute:
            tensors += [n.attribute[0].t for n in attribute.g.node]
    return sorted(tensor.raw_data for tensor in tensors)


def test_all_tensors_are_found_in_constants_and_branches_too(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    found = find_tensors(content)
    assert len(found) == 9
    own = sorted(content[one.offset : one.offset + one.length] for one in found)
    assert own == raw_of(model)
    assert {one.dims for one in found} >= {(24, 60), (24,), (8, 8, 3, 3), (5, 11)}
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(found))


def test_what_is_cut_short_or_no_model_holds_none(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    assert find_tensors(content[:-1]) == () or len(find_tensors(content[:-1])) <= 9
    assert find_tensors(content[: len(content) // 2]) == ()
    for other in (b"", b"\xff" * 50, b"PK\x03\x04", b"\x3a\xff\xff\xff\xff\x0f"):
        assert find_tensors(other) == ()


def test_graphs_in_graphs_end(model: onnx.ModelProto) -> None:
    inner = b""
    for _ in range(2000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            length, size = len(inner), b""
            while length > 127:
                size += bytes([length & 127 | 128])
                length >>= 7
            inner = tag + size + bytes([length]) + inner
    assert find_tensors(b"\x3a\x00" + inner) == ()


@given(st.binary(max_size=80))
def test_noise_is_no_harm(noise: bytes) -> None:
    for content in (noise, b"\x08\x08\x3a" + bytes([len(noise)]) + noise):
        for one in find_tensors(content):
            assert 0 < one.length <= len(content) - one.offset


def test_a_shape_that_does_not_fit_its_bytes_is_left_alone() -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    tensor.dims[0] = 1 << 62
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    assert find_tensors(onnx.helper.make_model(graph).SerializeToString()) == ()
