"""Evidence as `report.json`, schema 1, and back.

The keys and their nesting are a contract that others read. Keys may be added
(`model`, `trials`, ...), never changed. What is not finite becomes null, since
JSON has no NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from packlight.errors import WrongUsage
from packlight.measure.evidence import (
    Budget,
    ChannelEvidence,
    DeviceFile,
    Evidence,
    LatencyEvidence,
    LayerEvidence,
    MetricEvidence,
    Pair,
    RankEvidence,
    Skipped,
    Thinning,
    Trial,
    Tuning,
)

SCHEMA = 1


def evidence_to_json(evidence: Evidence) -> dict[str, Any]:
    """The value of `report.json`: plain dictionaries, lists, strings, numbers and null."""
    found = dataclasses.asdict(evidence)
    latencies = [found["latency_ms"], found["latency_all_threads_ms"]]
    if found["device_file"] is not None:
        latencies.append(found["device_file"]["latency_ms"])
    for latency in latencies:
        if latency is not None:
            latency["runtime"] = _with_threads(latency["runtime"], latency["threads"])
    order = (
        *("verdict", "reason", "model", "target", "preset", "budget", "metric", "size_bytes"),
        *("packed_bytes", "latency_ms", "latency_all_threads_ms", "peak_memory_bytes"),
        "device_file",
        *("thinning", "tuning", "layers", "not_compressed", "trials", "notes", "inputs", "samples"),
        *("environment", "seed", "seconds"),
    )
    plain = to_plain({key: found[key] for key in order})
    assert isinstance(plain, dict)
    return {"schema": SCHEMA, **plain}


def write_json(evidence: Evidence) -> str:
    """The text of `report.json`: ASCII, indented, the same bytes for the same evidence."""
    return json.dumps(evidence_to_json(evidence), indent=2, allow_nan=False) + "\n"


def json_to_evidence(value: Mapping[str, Any]) -> Evidence:
    """The evidence that `evidence_to_json` wrote.

    Raises WrongUsage where `value` is of another schema or lacks what evidence holds.
    """
    if value.get("schema") != SCHEMA:
        raise WrongUsage(
            f"This report has the schema {value.get('schema')!r}, but this version of packlight "
            f"reads schema {SCHEMA}: read it with the version that wrote it."
        )
    try:
        return Evidence(
            verdict=value["verdict"],
            reason=value["reason"],
            model=value["model"],
            target=value["target"],
            budget=Budget(**value["budget"]),
            size_bytes=Pair(**value["size_bytes"]),
            metric=_metric(value["metric"]),
            latency_ms=_latency(value["latency_ms"]),
            latency_all_threads_ms=_latency(value["latency_all_threads_ms"]),
            peak_memory_bytes=_pair(value["peak_memory_bytes"]),
            layers=tuple(LayerEvidence(**layer) for layer in value["layers"]),
            not_compressed=tuple(Skipped(**skipped) for skipped in value["not_compressed"]),
            trials=tuple(Trial(**trial) for trial in value["trials"]),
            notes=tuple(value["notes"]),
            inputs=tuple(value["inputs"]),
            samples=value["samples"],
            environment=dict(value["environment"]),
            seed=value["seed"],
            seconds=value["seconds"],
            # Reports of version 0.1 lack these.
            packed_bytes=value.get("packed_bytes"),
            preset=value.get("preset", "balanced"),
            thinning=_thinning(value.get("thinning")),
            tuning=_tuning(value.get("tuning")),
            device_file=_device_file(value.get("device_file")),
        )
    except (KeyError, TypeError) as error:
        raise WrongUsage(
            f"This is not a whole packlight report ({error}): run packlight compress again."
        ) from error


def to_plain(value: object) -> object:
    """`value` as JSON knows it: tuples as lists, NaN and infinities as None, scalars unwrapped."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return to_plain(value.tolist())
    return str(value)


def _with_threads(runtime: str, threads: int) -> str:
    return f"{runtime}, {threads} thread{'' if threads == 1 else 's'}"


def _thinning(value: Mapping[str, Any] | None) -> Thinning | None:
    if value is None:
        return None
    channels = tuple(ChannelEvidence(**one) for one in value["channels"])
    ranks = tuple(RankEvidence(**one) for one in value.get("ranks", ()))
    lists = {key: tuple(value.get(key, ())) for key in ("notes", "removed")}
    return Thinning(**{**value, **lists, "channels": channels, "ranks": ranks})


def _tuning(value: Mapping[str, Any] | None) -> Tuning | None:
    return None if value is None else Tuning(**{**value, "notes": tuple(value["notes"])})


def _device_file(value: Mapping[str, Any] | None) -> DeviceFile | None:
    if value is None:
        return None
    measured = {"metric": _metric(value["metric"]), "latency_ms": _latency(value["latency_ms"])}
    return DeviceFile(**{**value, **measured, "files": tuple(value["files"])})


def _metric(value: Mapping[str, Any] | None) -> MetricEvidence | None:
    if value is None:
        return None
    fields = {**value}
    for key in ("original", "compressed", "drop"):
        fields[key] = _number(fields[key])
    low, high = fields["drop_interval_95"]
    fields["drop_interval_95"] = (_number(low), _number(high))
    return MetricEvidence(**fields)


def _latency(value: Mapping[str, Any] | None) -> LatencyEvidence | None:
    if value is None:
        return None
    fields = {**value}
    fields["runtime"] = value["runtime"].removesuffix(_with_threads("", value["threads"]))
    for key in ("original", "compressed", "ratio"):
        fields[key] = _number(fields[key])
    low, high = value["ratio_interval_95"]
    fields["ratio_interval_95"] = (_number(low), _number(high))
    return LatencyEvidence(**fields)


def _pair(value: Mapping[str, int] | None) -> Pair | None:
    return None if value is None else Pair(**value)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
