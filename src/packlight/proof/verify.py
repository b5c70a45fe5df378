"""Checks an output folder on this machine: seal, files, answers, original, latency, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from packlight.errors import PacklightError, UnusableModel, UnusableProof
from packlight.graph.model import load_model
from packlight.plan.judge import environment
from packlight.progress import SILENT, Progress
from packlight.proof.golden import GoldenSample, read_golden
from packlight.proof.intact import find_damage, find_original, read_manifest_bytes
from packlight.proof.manifest import (
    GOLDEN,
    MANIFEST,
    Manifest,
    describe_file,
    read_manifest,
    read_seal,
)
from packlight.proof.rerun import check_answers, check_latency, check_memory, feeds_for
from packlight.proof.verification import Check, Verification
from packlight.report.units import format_bytes
from packlight.report.visible import visible
from packlight.runtime import runtime_name

_NAMED = 5
_NOT_SEALED = "Not looked at, since the manifest cannot be trusted."
_NOT_WHOLE = "Not looked at, since the files are not those that were written."


def verify(
    folder: str | Path,
    *,
    original: str | Path | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Hold a folder that `compress` wrote against its own promises, on this machine.

    original: the model that was compressed, to compare with; it may also lie in the folder.
    Raises UnusableProof for a folder without a manifest, or with one that makes no sense, and
    UnusableModel where the original cannot be read.
    """
    folder = Path(folder)
    content = read_manifest_bytes(folder)
    machine = environment(runtime_name("onnxruntime"))
    seal = read_seal(content)
    if seal is None:
        said = f"{MANIFEST} was changed or cut short: its seal is broken."
        rest = [Check(name, "not-checked", _NOT_SEALED) for name in ("files", "answers")]
        return Verification(folder, (Check("manifest", "failed", said), *rest), "", machine)
    manifest = read_manifest(content, folder / MANIFEST)
    sealed = Check("manifest", "passed", f"It lists {_count(len(manifest.files))}; its seal holds.")
    progress.stage("hashing the files")
    files = _check_files(folder, manifest)
    found = Verification(folder, (sealed, files), seal, machine)
    if files.status == "failed":
        rest = [Check(name, "not-checked", _NOT_WHOLE) for name in ("answers", "latency")]
        return replace(found, checks=(*found.checks, *rest))
    if manifest.kind == "language-model":
        said = "Answers of language models are not run again: compare the seal, or try it yourself."
        return replace(found, checks=(*found.checks, Check("answers", "not-checked", said)))
    checks = _run_again(folder, manifest, original, machine["processor"], progress)
    return replace(found, checks=(*found.checks, *checks))


def _check_files(folder: Path, manifest: Manifest) -> Check:
    damage = list(find_damage(folder, manifest))
    if damage:
        named = "; ".join(f"{visible(name)} {said}" for name, said in damage[:_NAMED])
        more = f"; and {len(damage) - _NAMED} more" if len(damage) > _NAMED else ""
        return Check("files", "failed", f"{named}{more}.", {"complaints": len(damage)})
    size = sum(entry.size_bytes for entry in manifest.files)
    said = f"All {_count(len(manifest.files))} ({format_bytes(size)}) are as they were written."
    return Check("files", "passed", said, {"files": len(manifest.files), "bytes": size})


def _run_again(
    folder: Path,
    manifest: Manifest,
    given: str | Path | None,
    processor: str,
    progress: Progress,
) -> Sequence[Check]:
    """All checks that run something. The files are those of the manifest by now."""
    path = folder / manifest.model
    samples: tuple[GoldenSample, ...] = ()
    try:
        # Before a runtime sees it: no data from outside the folder.
        load_model(path)
        if manifest.golden is not None:
            samples = read_golden(folder / GOLDEN, manifest.golden)
    except (UnusableModel, UnusableProof) as error:
        return [Check("answers", "failed", str(error))]
    progress.stage("running golden samples")
    checks = [_check_answers(path, manifest, samples, processor)]
    if checks[0].status == "failed":
        return checks
    original = find_original(folder, manifest) if given is None else Path(given)
    if original is not None:
        checks.append(_check_original(original, manifest, samples))
        if checks[-1].status == "failed":
            original = None
    progress.stage("measuring latency and memory")
    try:
        feeds = feeds_for(manifest, path, samples)
    except PacklightError as error:
        return [*checks, Check("latency", "not-checked", f"There is nothing to run: {error}")]
    checks.append(check_latency(path, original, feeds, manifest))
    checks.append(check_memory(path, original, feeds, manifest))
    return checks


def _check_answers(
    path: Path, manifest: Manifest, samples: Sequence[GoldenSample], processor: str
) -> Check:
    if manifest.golden is None:
        why = visible(manifest.note) or "nobody says why"
        return Check("answers", "not-checked", f"The folder holds no golden samples: {why}.")
    there = manifest.made_on.get("processor", "unknown")
    elsewhere = ""
    if there != processor:
        elsewhere = f" It was made on another processor ({visible(there)}), this is {processor}."
    return check_answers(path, samples, manifest.golden.outputs, elsewhere=elsewhere)


def _check_original(path: Path, manifest: Manifest, samples: Sequence[GoldenSample]) -> Check:
    """Whether a file is the one that was compressed, and gives what it gave."""
    load_model(path)
    entry = manifest.original
    if entry is None or describe_file(path).sha256 != entry.sha256:
        said = f"{path} is not the file that was compressed: its SHA-256 is another."
        return Check("original", "failed", said)
    if manifest.golden is None:
        return Check("original", "passed", f"{path} is the file that was compressed.")
    found = check_answers(path, samples, manifest.golden.outputs, name="original", of_original=True)
    return replace(found, said=f"{path} is the file that was compressed. {found.said}")


def _count(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"
