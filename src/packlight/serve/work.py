"""What is done in the child process: each request is one call of the public functions."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from packlight import api
from packlight.durable import is_full
from packlight.errors import (
    PacklightError,
    RuntimeFailure,
    UnusableModel,
    UnusableSamples,
    WrongUsage,
)
from packlight.graph.anatomy import Anatomy
from packlight.graph.contents import external_locations
from packlight.graph.files import read_proto, resolve_external
from packlight.plan.prepare import prepare_samples
from packlight.report import state_verdict, to_plain
from packlight.report.visible import visible
from packlight.report.wording import list_figures
from packlight.tensors import TensorSpec
from packlight.transport.folder import check_names

Message = dict[str, Any]
Tell = Callable[[Message], None]
Rename = Callable[[str], str]

MODEL = "model.onnx"
_TELL_SECONDS = 0.1
_MOST_NOTES = 100
_FIELDS = (
    *("max-drop", "max-size", "max-latency", "max-download"),
    *("preprocess", "prune", "heal-minutes", "target", "preset"),
)


def work(request: Message, tell: Tell) -> Message:
    """Answer a request: {"answer": ...}, or {"error": sentence, "field": what it is about}.

    names: {path: what people know the file by}, for all that is said.
    """

    def rename(text: str) -> str:
        for path, name in request.get("names", {}).items():
            text = text.replace(path, name)
        return visible(" ".join(text.split()), limit=2000)

    try:
        return {"answer": _REQUESTS[request["do"]](request, tell, rename)}
    except PacklightError as error:
        return {"error": rename(str(error)), "field": _field_of(error)}
    except MemoryError:
        sentence = "This machine's memory is used up: close other programs, or give fewer samples."
        return {"error": sentence, "field": None}
    except OSError as error:
        if not is_full(error):
            raise
        return {"error": "The disk is full: free some space.", "field": None}


def _inspect(request: Message, tell: Tell, rename: Rename) -> Message:
    """Describe the model; where external data is missing, only say what."""
    path = Path(request["model"])
    missing = [name for name in _locations(path) if not (path.parent / name).exists()]
    if missing:
        return {"missing": missing}
    return _describe(api.inspect(path), rename)


def _adopt(request: Message, tell: Tell, rename: Rename) -> Message:
    """Copy a model with its external data into `folder`, then describe it."""
    path, folder = Path(request["path"]), Path(request["folder"])
    if path.suffix.lower() != ".onnx":
        raise UnusableModel(
            f"{path} is no .onnx file, which is what this page takes: `packlight compress {path}` "
            "takes others."
        )
    parts = {name: resolve_external(name, path) for name in _locations(path)}
    size = sum(part.stat().st_size for part in (path, *parts.values()))
    if size > request["limit"]:
        raise UnusableModel(
            f"{path} has {size} bytes with its data, more than the {request['limit']} that this "
            "server takes: start it with a larger --max-upload."
        )
    shutil.copyfile(path, folder / MODEL)
    for name, part in parts.items():
        shutil.copyfile(part, folder / name)
    return _describe(api.inspect(folder / MODEL), rename)


def _check(request: Message, tell: Tell, rename: Rename) -> Message:
    """Open the samples and run one."""
    model, preprocess = api.load(request["model"]), request["preprocess"]
    prepared = prepare_samples(model, request["data"], preprocess=preprocess)
    samples = prepared.samples
    return {
        "samples": len(samples),
        "labelled": samples.labels is not None,
        "described": rename(samples.source),
        "notes": [rename(note) for note in prepared.notes],
    }


def _forecast(request: Message, tell: Tell, rename: Rename) -> Message:
    found = api.compress(
        request["model"], data=request["data"], dry_run=True, **request["settings"]
    )
    assert isinstance(found, api.Forecast)
    sizes = found.size_bytes.values()
    return {
        "original_bytes": found.original_bytes,
        "size_bytes": {"low": min(sizes), "high": max(sizes)},
        "guessed_bytes": found.guessed_bytes,
        "packed": found.packed,
        "candidates": dict(found.size_bytes),
        "memory_bytes": found.memory_bytes,
        # Nothing was run, and so nothing is known of time.
        "seconds": None,
        "speed": None,
        "text": [rename(line) for line in found.lines[:-1]],
    }


def _compress(request: Message, tell: Tell, rename: Rename) -> Message:
    work, out = Path(request["work"]), Path(request["out"])
    progress = Telling(tell)
    result = api.compress(
        request["model"],
        data=request["data"],
        checkpoints=work / "healing",
        progress=progress,
        **request["settings"],
    )
    progress.flush()
    assert isinstance(result, api.Result)
    evidence = result.evidence
    evidence = replace(
        evidence,
        model=request["name"],
        samples=rename(evidence.samples),
        notes=tuple(rename(note) for note in evidence.notes),
    )
    result = replace(result, evidence=evidence)
    result.save(out)
    report = result.to_json()
    figures = {
        key: report[key]
        for key in ("size_bytes", "packed_bytes", "latency_ms", "peak_memory_bytes", "metric")
    }
    rows = [to_plain(row) for row in list_figures(evidence)]
    return {
        "verdict": evidence.verdict,
        "sentence": state_verdict(evidence),
        "reason": evidence.reason,
        "samples": evidence.samples,
        "figures": {**figures, "rows": rows, "seconds": report["seconds"]},
    }


_REQUESTS: Mapping[str, Callable[[Message, Tell, Rename], Message]] = {
    "inspect": _inspect,
    "adopt": _adopt,
    "check": _check,
    "forecast": _forecast,
    "compress": _compress,
}


class Telling:
    """Progress as messages, at most ten a second of steps."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._steps, self._detail, self._told = 0, "", 0.0

    def stage(self, name: str, total: int | None = None) -> None:
        """Tells of a new stage."""
        self.flush()
        self._tell({"stage": visible(name), "total": total})

    def step(self, detail: str = "", advance: int = 1) -> None:
        """Tells of steps, those of a tenth of a second together."""
        self._steps += advance
        self._detail = detail
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.flush()

    def tried(self, choice: str, *, size_bytes: int, quality: float | None, kept: bool) -> None:
        """Tells of a candidate that was measured."""
        point = {"choice": visible(choice), "size_bytes": size_bytes, "quality": quality}
        self._tell({"tried": to_plain({**point, "kept": kept})})

    def flush(self) -> None:
        """Tells of the steps that were not told yet."""
        if self._steps or self._detail:
            self._tell({"step": self._steps, "detail": visible(self._detail, limit=120)})
        self._steps, self._detail, self._told = 0, "", time.monotonic()


def _locations(path: Path) -> list[str]:
    """The external data that a model names: plain names beside it, or UnusableModel."""
    names = external_locations(read_proto(path))
    try:
        check_names([*names, MODEL])
    except PacklightError as error:
        raise UnusableModel(f"{path} names external data that cannot be taken: {error}") from None
    return names


def _describe(anatomy: object, rename: Rename) -> Message:
    assert isinstance(anatomy, Anatomy)
    times = [operator.ms for operator in anatomy.operators if operator.ms is not None]
    total = sum(times)
    operators = [
        {
            "operator": visible(one.op),
            "count": one.count,
            "ms": one.ms,
            "share": one.ms / total if one.ms is not None and total > 0 else None,
        }
        for one in anatomy.operators
    ]
    layers = [
        {
            "name": visible("/".join((*one.graph_path, one.name))),
            "operator": visible(one.op),
            "weights_bytes": one.bytes,
            "macs": one.macs,
            "ms": one.ms,
        }
        for one in anatomy.layers
    ]
    notes = [f"{one.op} {one.name} is not compressed: {one.reason}" for one in anatomy.not_layers]
    notes += [f"{one.kind}: {one.detail}" for one in anatomy.redundancies]
    described = {
        "size_bytes": anatomy.size_bytes,
        "inputs": _specs(anatomy.inputs),
        "outputs": _specs(anatomy.outputs),
        "parameters": anatomy.parameters,
        "macs": anatomy.macs,
        "layers": layers,
        "operators": operators,
        "milliseconds": total if times else None,
        "targets": {name: rename(said) for name, said in anatomy.targets},
        "notes": [rename(note) for note in notes[:_MOST_NOTES]],
    }
    plain = to_plain(described)
    assert isinstance(plain, dict)
    return plain


def _specs(specs: Iterable[TensorSpec]) -> list[Message]:
    # Names as they are: a browser feeds by them.
    return [{"name": one.name, "shape": list(one.shape), "dtype": one.dtype} for one in specs]


def _field_of(error: PacklightError) -> str | None:
    """Which field of the page an error is about."""
    if isinstance(error, UnusableModel | RuntimeFailure):
        return "model"
    if isinstance(error, UnusableSamples):
        return "samples"
    named = re.search(r"--([a-z-]+)", str(error))
    if named and named[1] in _FIELDS:
        return named[1].replace("-", "_")
    if isinstance(error, WrongUsage):
        for word in ("target", "preset"):
            if str(error).startswith(f"There is no {word} "):
                return word
    return None
