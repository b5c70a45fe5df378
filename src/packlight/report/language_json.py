"""Evidence of a language model as `report.json`, schema 1, and back.

The keys that all reports share keep their meaning, so that who reads one reads the other:
`metric` is the agreement of most probable tokens, `latency_ms` the milliseconds of one
generated token, `layers` the tensors. What only language models have is under `language`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from packlight.errors import WrongUsage
from packlight.measure.evidence import Pair, Skipped
from packlight.measure.language import Divergence
from packlight.measure.language_evidence import (
    BlockEvidence,
    Continuation,
    LanguageBudget,
    LanguageEvidence,
    LanguageTrial,
    Speed,
    SpeedEvidence,
    TensorEvidence,
)
from packlight.report.report_json import SCHEMA, to_plain


def language_evidence_to_json(evidence: LanguageEvidence) -> dict[str, Any]:
    """The value of `report.json`: plain dictionaries, lists, strings, numbers and null."""
    found = dataclasses.asdict(evidence)
    own = (
        *("architecture", "parameters", "bits_per_weight", "scheme", "text", "divergence"),
        *("speed", "continuations", "blocks", "removed"),
    )
    value = {
        "schema": SCHEMA,
        "kind": "language-model",
        "verdict": evidence.verdict,
        "reason": evidence.reason,
        "model": evidence.model,
        "target": evidence.target,
        "budget": {**found["budget"], "max_latency_ms": None},
        "metric": _metric(evidence),
        "size_bytes": found["size_bytes"],
        "latency_ms": _latency(evidence.speed),
        "peak_memory_bytes": found["peak_memory_bytes"],
        "language": {key: found[key] for key in own},
        "layers": [_layer(tensor) for tensor in evidence.tensors],
        "not_compressed": found["not_compressed"],
        "trials": found["trials"],
        "notes": found["notes"],
        "environment": found["environment"],
        "seed": evidence.seed,
        "seconds": evidence.seconds,
    }
    plain = to_plain(value)
    assert isinstance(plain, dict)
    return plain


def write_language_json(evidence: LanguageEvidence) -> str:
    """The text of `report.json`: ASCII, indented, the same bytes for the same evidence."""
    return json.dumps(language_evidence_to_json(evidence), indent=2, allow_nan=False) + "\n"


def is_language_report(value: Mapping[str, Any]) -> bool:
    """Whether a `report.json` is of a language model."""
    return value.get("kind") == "language-model"


def json_to_language_evidence(value: Mapping[str, Any]) -> LanguageEvidence:
    """The evidence that `language_evidence_to_json` wrote.

    Raises WrongUsage where `value` is of another schema or lacks what evidence holds.
    """
    if value.get("schema") != SCHEMA or not is_language_report(value):
        raise WrongUsage(
            f"This is not a language model's report of schema {SCHEMA} (schema "
            f"{value.get('schema')!r}, kind {value.get('kind')!r}): read it with the version of "
            "packlight that wrote it."
        )
    try:
        own = value["language"]
        budget = {key: value["budget"][key] for key in ("bits", "max_size_bytes", "max_drop")}
        memory = value["peak_memory_bytes"]
        return LanguageEvidence(
            verdict=value["verdict"],
            reason=value["reason"],
            model=value["model"],
            architecture=own["architecture"],
            parameters=own["parameters"],
            target=value["target"],
            budget=LanguageBudget(**budget),
            size_bytes=Pair(**value["size_bytes"]),
            bits_per_weight=own["bits_per_weight"],
            divergence=_divergence(own["divergence"]),
            speed=_speeds(own["speed"]),
            peak_memory_bytes=None if memory is None else Pair(**memory),
            tensors=tuple(_tensor(layer) for layer in value["layers"]),
            not_compressed=tuple(Skipped(**one) for one in value["not_compressed"]),
            continuations=tuple(Continuation(**one) for one in own["continuations"]),
            trials=tuple(LanguageTrial(**one) for one in value["trials"]),
            removed=tuple(BlockEvidence(**one) for one in own.get("removed", ())),
            blocks=own.get("blocks", 0),
            notes=tuple(value["notes"]),
            text=own["text"],
            scheme=own["scheme"],
            environment=dict(value["environment"]),
            seed=value["seed"],
            seconds=value["seconds"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WrongUsage(
            f"This is not a whole packlight report ({error}): run packlight compress again."
        ) from error


def _metric(evidence: LanguageEvidence) -> dict[str, Any] | None:
    far = evidence.divergence
    if far is None:
        return None
    low, high = far.top_agreement_interval_95
    limit = evidence.budget.max_drop
    return {
        "name": "top-token agreement",
        "samples": far.tokens,
        "original": 1.0,
        "compressed": far.top_agreement,
        "drop": 1 - far.top_agreement,
        "drop_interval_95": [1 - high, 1 - low],
        "proven": limit is not None and 1 - low <= limit,
    }


def _latency(speed: SpeedEvidence | None) -> dict[str, Any] | None:
    """Milliseconds of one generated token; ratio: compressed / original, below 1 where faster."""
    if speed is None:
        return None
    writing = speed.generation
    low, high = writing.ratio_interval_95
    threads = f"{speed.threads} thread{'' if speed.threads == 1 else 's'}"
    return {
        "runtime": f"{speed.runtime}, {threads}, one generated token",
        "threads": speed.threads,
        "original": 1000 / writing.original,
        "compressed": 1000 / writing.compressed,
        "ratio": 1 / writing.ratio,
        "ratio_interval_95": [1 / high if high else math.inf, 1 / low if low else math.inf],
    }


def _layer(tensor: TensorEvidence) -> dict[str, Any]:
    error = tensor.error
    return {
        "name": tensor.name,
        "op": "tensor",
        "choice": tensor.type,
        "error_db": None if error is None or error <= 0 else -10 * math.log10(error),
        "reason": tensor.reason,
        "bits": tensor.bits,
        "weights": tensor.weights,
        "error": error,
    }


def _tensor(layer: Mapping[str, Any]) -> TensorEvidence:
    return TensorEvidence(
        name=layer["name"],
        type=layer["choice"],
        bits=layer["bits"],
        weights=layer["weights"],
        error=layer["error"],
        reason=layer["reason"],
    )


def _divergence(value: Mapping[str, Any] | None) -> Divergence | None:
    if value is None:
        return None
    fields = dict(value)
    for key in fields:
        if key.endswith("_95"):
            low, high = fields[key]
            fields[key] = (_finite(low), _finite(high))
        else:
            fields[key] = _finite(fields[key])
    return Divergence(**fields)


def _speeds(value: Mapping[str, Any] | None) -> SpeedEvidence | None:
    if value is None:
        return None
    return SpeedEvidence(
        **{**value, "prompt": _speed(value["prompt"]), "generation": _speed(value["generation"])}
    )


def _speed(value: Mapping[str, Any]) -> Speed:
    low, high = value["ratio_interval_95"]
    return Speed(**{**value, "ratio_interval_95": (_finite(low), _finite(high))})


def _finite(value: Any) -> Any:
    """What is not finite was written as null: only upper ends and perplexities can be."""
    return math.inf if value is None else value
