from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from packlight.runtime import wire

LIMIT = 1 << 30


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def _through(
    pipe: tuple[int, int], header: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    sender = threading.Thread(target=wire.send, args=(pipe[1], header, arrays))
    sender.start()
    received = wire.receive(pipe[0], limit_bytes=LIMIT)
    sender.join()
    return received


def test_arrays_of_every_type_and_shape_come_back(pipe: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        dtype: generator.integers(0, 2, (2, 3)).astype(dtype) for dtype in sorted(wire.DTYPES)
    }
    arrays["scalar"] = np.array(2.5, np.float32)
    arrays["empty"] = np.zeros((0, 4), np.int64)
    arrays["transposed"] = generator.normal(size=(5, 7)).T
    arrays["every other"] = np.arange(10)[::2]
    arrays["more than a pipe holds"] = generator.normal(size=400_000)
    header, received = _through(pipe, {"text": "naïve \udc80", "number": 1}, arrays)
    assert header == {"text": "naïve \udc80", "number": 1}
    assert list(received) == list(arrays)
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        np.testing.assert_array_equal(received[name], array)


def test_more_arrays_than_one_call_writes(pipe: tuple[int, int]) -> None:
    arrays = {f"a{k}": np.full(3, k) for k in range(2500)}
    _, received = _through(pipe, {}, arrays)
    assert [int(array[2]) for array in received.values()] == list(range(2500))


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        "{}",
        '{"arrays": 1}',
        '{"arrays": [["a", "float32"]]}',
        '{"arrays": [["a", "object", [1]]]}',
        '{"arrays": [["a", "float128", [1]]]}',
        '{"arrays": [[1, "float32", [1]]]}',
        '{"arrays": [["a", ["float32"], [1]]]}',
        '{"arrays": [["a", "float32", 3]]}',
        '{"arrays": [["a", "float32", [-1]]]}',
        '{"arrays": [["a", "float32", [true]]]}',
        '{"arrays": [["a", "float32", [1.0]]]}',
        '{"arrays": [["a", "float32", [1152921504606846976]]]}',
        json.dumps({"arrays": [["a", "float32", [1] * 65]]}),
        '{"arrays": [["a", "float32", [1]], ["a", "float32", [1]]]}',
        '{"arrays": [["a", "int8", [1000000]], ["b", "int8", [1000000]]]}',
        "[" * 100_000,
    ],
)
def test_a_header_that_breaks_the_rules_is_refused(header: str) -> None:
    with pytest.raises(wire.Malformed):
        wire.parse_header(header.encode(), limit_bytes=1_500_000)


def test_an_oversized_header_is_refused_before_it_is_read(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], (1 << 60).to_bytes(8, "little"))
    with pytest.raises(wire.Malformed, match="header"):
        wire.receive(pipe[0], limit_bytes=LIMIT)


def test_an_empty_array_with_absurd_axes_is_refused(pipe: tuple[int, int]) -> None:
    text = json.dumps({"arrays": [["a", "int8", [0, *[1 << 40] * 5]]]}).encode()
    os.write(pipe[1], len(text).to_bytes(8, "little") + text)
    with pytest.raises(wire.Malformed):
        wire.receive(pipe[0], limit_bytes=LIMIT)


def test_the_end_of_the_pipe_in_mid_message(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], (100).to_bytes(8, "little") + b"{")
    os.close(pipe[1])
    with pytest.raises(EOFError):
        wire.receive(pipe[0], limit_bytes=LIMIT)


def test_without_memory_the_next_message_is_still_in_step(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    wire.send(pipe[1], {"first": 1}, {"x": np.ones(1000)})
    wire.send(pipe[1], {"second": 2}, {"y": np.arange(3)})
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", no_memory)
        with pytest.raises(MemoryError, match="8000 bytes"):
            wire.receive(pipe[0], limit_bytes=LIMIT)
    header, arrays = wire.receive(pipe[0], limit_bytes=LIMIT)
    assert header == {"second": 2}
    assert arrays["y"].tolist() == [0, 1, 2]


def test_values_json_does_not_have_are_not_sent(pipe: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        wire.send(pipe[1], {"x": float("nan")}, {})
