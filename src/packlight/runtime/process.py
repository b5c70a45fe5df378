"""A child process that runs models, so that a crash or a leak of the runtime stays there."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra, RuntimeCrashed, RuntimeRefused, WrongUsage
from packlight.runtime import wire
from packlight.runtime.channel import Channel, Owner
from packlight.runtime.limits import Limits
from packlight.tensors import TensorSpec

Feeds = Mapping[str, NDArray[Any]]
Engine = Literal["onnxruntime", "openvino", "litert", "executorch"]
"""What a child can run a model in; all but onnxruntime are extras."""

_PACKAGES = {"litert": "ai_edge_litert"}  # where they differ from the engine's name

_DEFAULT = Limits()
_ROUNDS_LIMIT = 1_000_000
# onnxruntime's names of element types, where they differ from NumPy's.
_NUMPY_NAMES = {"float": "float32", "double": "float64"}
# Types that NumPy lacks: their arrays hold the bits in the unsigned integer of that width.
_CARRIERS = {
    "bfloat16": "uint16",
    "float8e4m3fn": "uint8",
    "float8e4m3fnuz": "uint8",
    "float8e5m2": "uint8",
    "float8e5m2fnuz": "uint8",
}


class Process(Owner):
    """One child process that holds any number of sessions; use it in a `with` statement.

    limits: memory of the child, and time of a single request.
    A refusal (RuntimeRefused, RuntimeOutOfMemory said by the runtime) leaves it usable;
    after a crash, a timeout or an interruption it is gone and every call says so.
    """

    def __init__(self, *, limits: Limits = _DEFAULT) -> None:
        self._channel = Channel(limits)
        self._loaded = 0

    def load(
        self,
        path: Path,
        *,
        threads: int = 1,
        optimize: bool = True,
        spinning: bool = True,
        engine: Engine = "onnxruntime",
    ) -> Session:
        """A session on the model at `path`; external data is found next to it.

        optimize: False turns graph optimizations off: quantized parts between QuantizeLinear
        and DequantizeLinear are then computed in float, as the file says.
        spinning: threads wait busily for their next work, as is the runtime's default and
            latency needs; False leaves the cores to others, such as this process (openvino
            never spins).
        engine: sessions of both engines may live side by side; times are to be compared within
            one engine, since what the other leaves in the caches slows whoever comes next.
        Raises RuntimeRefused if the file cannot be read or holds what the runtime lacks, and
        MissingExtra if the engine is not installed.
        """
        _check_threads(threads)
        check_engine(engine)
        if engine != "onnxruntime" and not optimize:
            raise WrongUsage(f"Only onnxruntime runs a graph as it stands, not {engine}.")
        if not path.is_file():
            raise RuntimeRefused(f"There is no file {path} to load.")
        self._loaded += 1
        header = {
            "session": self._loaded,
            "path": str(path.absolute()),
            "threads": threads,
            "optimize": optimize,
            "spinning": spinning,
            "engine": engine,
        }
        where = "" if engine == "onnxruntime" else f" in {engine}"
        answer, _ = self._channel.request("load", header, doing=f"loading {path.name}{where}")
        try:
            inputs = tuple(_spec_of(entry) for entry in answer["inputs"])
            outputs = tuple(_spec_of(entry) for entry in answer["outputs"])
        except (KeyError, TypeError, ValueError):
            raise RuntimeCrashed(
                f"The runtime's process described the inputs of {path.name} in a way that makes "
                "no sense; do not trust this file."
            ) from None
        return Session(self._channel, self._loaded, path.name, inputs, outputs)

    def time(
        self,
        sessions: Sequence[Session],
        feeds: Feeds | Sequence[Feeds],
        *,
        rounds: int,
        seconds: float | None = None,
    ) -> NDArray[np.float64]:
        """Milliseconds of each session's runs, [len(sessions), rounds], interleaved.

        In every round each session runs once, beginning with another one each time; only
        the run itself is timed, inside the child. Up to five rounds of warm-up are not
        counted. Column r of all rows belongs to one round, so rows may be compared pairwise.
        feeds: one mapping for all sessions, or one for each.
        seconds: after that long no further round begins, though six are always done.
        """
        if not sessions or not 1 <= rounds <= _ROUNDS_LIMIT:
            raise WrongUsage(
                f"Timing needs at least one session and 1 to {_ROUNDS_LIMIT} rounds, "
                f"not {len(sessions)} and {rounds}."
            )
        groups = [feeds] if isinstance(feeds, Mapping) else list(feeds)
        if len(groups) not in (1, len(sessions)):
            raise WrongUsage(f"{len(groups)} sets of feeds do not fit {len(sessions)} sessions.")
        arrays: dict[str, NDArray[Any]] = {}
        members = []
        for position, session in enumerate(sessions):
            group = min(position, len(groups) - 1)
            if session._channel is not self._channel:
                raise WrongUsage(f"{session.name} was loaded in another process.")
            checked = session._checked(groups[group])
            arrays.update({f"{group}:{name}": array for name, array in checked.items()})
            members.append([session._number, group])
        names = ", ".join(dict.fromkeys(session.name for session in sessions))
        _, results = self._channel.request(
            "time",
            {"sessions": members, "rounds": rounds, "seconds": seconds},
            arrays,
            doing=f"timing {names}",
        )
        table = results.get("milliseconds")
        if (
            table is None
            or table.dtype != np.float64
            or table.ndim != 2
            or table.shape[0] != len(sessions)
            or not 1 <= table.shape[1] <= rounds
            or not np.isfinite(table).all()
        ):
            raise RuntimeCrashed(
                f"The runtime's process sent timings of {names} that make no sense; do not trust "
                "these files."
            )
        return table

    def peak_memory_bytes(self) -> int:
        """The largest resident set of the child so far, the runtime itself included."""
        answer, _ = self._channel.request("peak_memory", {}, doing="asking for its peak memory")
        size = answer.get("bytes")
        if type(size) is not int or size <= 0:
            raise RuntimeCrashed("The runtime's process sent a peak memory that makes no sense.")
        return size


class Session:
    """A model loaded in a Process.

    inputs, outputs: what the model takes and gives, in its order. A dtype that NumPy lacks
    (bfloat16, float8...) is named as in ONNX, and its arrays are unsigned integers
    of that width holding the bits.
    """

    def __init__(
        self,
        channel: Channel,
        number: int,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self._channel = channel
        self._number = number
        self._closed = False

    def run(self, feeds: Feeds, fetches: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the model once: {output: array}.

        feeds: an array for every input, of its dtype and of a shape that fits.
        fetches: outputs to compute and return; None: all that are numeric tensors.
        Raises RuntimeRefused for feeds or fetches that do not fit the model.
        """
        checked = self._checked(feeds)
        wanted = self._wanted(fetches)
        _, results = self._channel.request(
            "run",
            {"session": self._number, "fetches": wanted},
            checked,
            doing=f"running {self.name}",
        )
        if list(results) != wanted:
            raise RuntimeCrashed(
                f"The runtime's process sent other outputs of {self.name} than were asked for; do "
                "not trust this file."
            )
        return results

    def close(self) -> None:
        """Free the model in the child. Closing twice, or after the child's end, does nothing."""
        if self._closed:
            return
        self._closed = True
        # With the child the model went too: what ended it (Ctrl-C, a crash) is what is to be told.
        if not self._channel.ended:
            self._channel.request(
                "close", {"session": self._number}, doing=f"unloading {self.name}"
            )

    def _wanted(self, fetches: Sequence[str] | None) -> list[str]:
        specs = {spec.name: spec for spec in self.outputs}
        if fetches is None:
            fetches = [name for name in specs if _carrier(specs[name].dtype) in wire.DTYPES]
        if not fetches:
            held = "; ".join(str(spec) for spec in self.outputs) or "none"
            raise RuntimeRefused(f"No output of {self.name} is to be fetched; it has {held}.")
        for name in fetches:
            if name not in specs:
                raise RuntimeRefused(
                    f"{self.name} has no output {name!r}; it has {', '.join(specs)}."
                )
            if _carrier(specs[name].dtype) not in wire.DTYPES:
                raise RuntimeRefused(
                    f"Output {name!r} of {self.name} is of type {specs[name].dtype}; only numeric "
                    "tensors can be fetched."
                )
        return list(dict.fromkeys(fetches))

    def _checked(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The feeds in native byte order, once they fit the model's inputs."""
        if self._closed:
            raise WrongUsage(f"The session of {self.name} was closed.")
        specs = {spec.name: spec for spec in self.inputs}
        unknown = [name for name in feeds if name not in specs]
        missing = [name for name in specs if name not in feeds]
        if unknown or missing:
            found = ", ".join(feeds) or "nothing"
            expected = "; ".join(str(spec) for spec in self.inputs) or "nothing"
            raise RuntimeRefused(f"{self.name} takes {expected}, but was given {found}.")
        return {name: _fit(feeds[name], spec, self.name) for name, spec in specs.items()}


def _fit(array: NDArray[Any], spec: TensorSpec, model: str) -> NDArray[Any]:
    """The array as it is sent, if its dtype and shape fit `spec`."""
    carrier = _carrier(spec.dtype)
    if carrier not in wire.DTYPES:
        raise RuntimeRefused(
            f"Input {spec.name!r} of {model} is of type {spec.dtype}; only numeric tensors can be "
            "fed."
        )
    array = np.asarray(array)
    if array.dtype.name != carrier:
        held = "" if carrier == spec.dtype else f" (its bits as {carrier})"
        raise RuntimeRefused(
            f"Input {spec.name!r} of {model} is {spec.dtype}{held}, but was given {array.dtype}; "
            "convert it first."
        )
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(axis, int) or axis == extent
        for axis, extent in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise RuntimeRefused(
            f"{model} takes {spec}, but {spec.name!r} was given the shape {list(array.shape)}."
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _carrier(dtype: str) -> str:
    return _CARRIERS.get(dtype, dtype)


def package_of(engine: Engine) -> str:
    """The Python package of an engine."""
    return _PACKAGES.get(engine, engine)


def has_engine(engine: Engine) -> bool:
    """Whether an engine is installed here; nothing of it is imported."""
    return engine == "onnxruntime" or importlib.util.find_spec(package_of(engine)) is not None


def check_engine(engine: Engine) -> None:
    """Raises WrongUsage for an unknown engine, and MissingExtra for one that is not installed."""
    if engine not in get_args(Engine):
        raise WrongUsage(
            f"There is no engine {engine!r}: choose one of {', '.join(get_args(Engine))}."
        )
    if not has_engine(engine):
        raise MissingExtra(
            f"{engine} is not installed here: run `pip install packlight[{engine}]` to use it."
        )


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise WrongUsage(f"A session needs at least one thread, not {threads}.")


def _spec_of(entry: Any) -> TensorSpec:
    """The checked spec of [name, onnxruntime's type, shape]; ValueError if it is none."""
    name, kind, shape = entry
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(shape, list):
        raise ValueError(entry)
    axes: list[int | str | None] = []
    for axis in shape:
        if not (axis is None or isinstance(axis, str) or type(axis) is int):
            raise ValueError(entry)
        # Negative and empty axes are how old files say that they don't know.
        known = axis not in ("", None) and not (isinstance(axis, int) and axis < 0)
        axes.append(axis if known else None)
    tensor = re.fullmatch(r"tensor\((\w+)\)", kind)
    dtype = _NUMPY_NAMES.get(tensor[1], tensor[1]) if tensor else kind
    return TensorSpec(name, dtype, tuple(axes))
