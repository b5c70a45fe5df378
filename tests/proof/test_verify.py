"""Folders that are whole, changed, hostile: each is told apart by a sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import packlight
from packlight.errors import UnusableModel, UnusableProof
from packlight.measure.evidence import LatencyEvidence, Pair
from packlight.proof import Check, Verification, rerun

Reseal = Callable[..., None]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and memory as the claims have them: what is measured is tested elsewhere."""
    latency = LatencyEvidence("steady", 1, 0.4, 0.2, 0.5, (0.4, 0.6))
    ranked = [rerun.rank_latencies.__globals__["RankedLatency"](Path(), 0.2, 1.0, (1.0, 1.0))]
    monkeypatch.setattr(rerun, "measure_latency", lambda *a, **k: latency)
    monkeypatch.setattr(rerun, "rank_latencies", lambda *a, **k: ranked)
    monkeypatch.setattr(rerun, "measure_memory", lambda *a, **k: Pair(5000, 4000))
    monkeypatch.setattr(rerun, "measure_peak_memory", lambda *a, **k: 4000)


def check_of(found: Verification, name: str) -> Check:
    return next(check for check in found.checks if check.name == name)


def test_a_whole_folder_is_proven(whole: Path, original: Path) -> None:
    found = packlight.verify(whole)
    assert (found.verdict, found.exit_status) == ("proven", 0)
    assert {check.name: check.status for check in found.checks} == {
        "manifest": "passed", "files": "passed", "answers": "passed",
        "latency": "not-checked", "memory": "not-checked",
    }  # fmt: skip
    answers = check_of(found, "answers")
    assert "8 golden samples: the outputs are bit for bit" in answers.said
    assert "same class on 8 of 8" in answers.said
    assert "another processor (a processor from elsewhere)" in answers.said
    assert "0.200 ms where it was made" in check_of(found, "latency").said
    found = packlight.verify(whole, original=original)
    assert {check.status for check in found.checks} == {"passed"}
    assert "is the file that was compressed" in check_of(found, "original").said
    assert found.seal == json.loads((whole / "manifest.json").read_text())["sha256"]
    assert "Proven" in str(found) and found.seal in str(found)


def test_the_json_keeps_its_contract(whole: Path) -> None:
    value = json.loads(json.dumps(packlight.verify(whole).to_json(), allow_nan=False))
    assert list(value) == [
        "schema", "verdict", "folder", "seal", "packlight", "machine", "checks",
    ]  # fmt: skip
    assert value["schema"] == 1 and "processor" in value["machine"]
    for check in value["checks"]:
        assert set(check) == {"name", "status", "said", "figures"}
    (answers,) = [check for check in value["checks"] if check["name"] == "answers"]
    assert set(answers["figures"]) == {
        "samples", "output", "largest_difference", "tolerance", "share_of_range", "same_class",
        "classes",
    }  # fmt: skip


def test_one_flipped_byte_in_any_file_is_found(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "golden.npz", "manifest.json", "model.onnx", "recipe.yaml", "report.json", "verify.html",
    ]  # fmt: skip
    for name in names:
        path = folder / name
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 0x20
            path.write_bytes(changed)
            found = packlight.verify(folder)
            assert (found.verdict, found.exit_status) == ("failed", 4)
            (failed,) = [check for check in found.checks if check.status == "failed"]
            assert name in failed.said, failed
        path.write_bytes(content)


def test_missing_extra_and_other_than_plain_files_are_named(folder: Path, tmp_path: Path) -> None:
    def complaint() -> str:
        check = check_of(packlight.verify(folder), "files")
        assert check.status == "failed"
        return check.said

    (folder / "extra\x1b.bin").write_bytes(b"1")
    assert complaint() == "extra\\x1b.bin is not in the manifest."
    (folder / "extra\x1b.bin").unlink()
    (folder / "report.json").rename(tmp_path / "report.json")
    assert complaint() == "report.json is missing."
    (folder / "report.json").symlink_to(tmp_path / "report.json")
    assert complaint() == "report.json is a link."
    (folder / "report.json").unlink()
    os.mkfifo(folder / "report.json")
    assert complaint() == "report.json is no plain file."
    (folder / "report.json").unlink()
    (folder / "report.json").mkdir()
    assert complaint() == "report.json is a folder."
    (folder / "report.json").rmdir()
    (folder / "report.json").write_text("{}\n\n")
    assert complaint() == "report.json has 4 bytes instead of 3."
    for number in range(7):
        (folder / f"more{number}").touch()
    assert complaint().endswith("; and 3 more.")


def test_what_file_managers_leave_behind_is_no_harm(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"1")
    assert packlight.verify(folder).verdict == "proven"


def test_a_changed_model_with_changed_hashes_is_found_by_its_answers(
    folder: Path, reseal: Reseal
) -> None:
    model = onnx.load(folder / "model.onnx")
    weight = next(one for one in model.graph.initializer if one.name == "w3")
    changed = numpy_helper.to_array(weight).copy()
    changed[:, 2] *= 1.1
    weight.CopyFrom(numpy_helper.from_array(changed, "w3"))
    onnx.save(model, folder / "model.onnx")
    reseal(folder)
    found = packlight.verify(folder)
    assert check_of(found, "files").status == "passed"
    answers = check_of(found, "answers")
    assert (answers.status, found.exit_status) == ("failed", 4)
    assert "outputs differ by at most" in answers.said and "allowed" in answers.said
    assert answers.figures["largest_difference"] > answers.figures["tolerance"]


def test_a_model_that_does_not_run_here_fails_with_a_sentence(folder: Path, reseal: Reseal) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.node[0].domain = "somewhere"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    onnx.save(model, folder / "model.onnx")
    reseal(folder)
    answers = check_of(packlight.verify(folder), "answers")
    assert answers.status == "failed" and "does not run here" in answers.said


def test_weights_from_outside_the_folder_are_never_read(folder: Path, reseal: Reseal) -> None:
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w"
    (folder / "w").rename(folder.parent / "w")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    answers = check_of(packlight.verify(folder), "answers")
    assert answers.status == "failed" and "../w" in answers.said


def test_golden_samples_that_hold_objects_fail(folder: Path, reseal: Reseal) -> None:
    np.savez(folder / "golden.npz", s0_input0=np.array([{}], object))
    reseal(folder)
    answers = check_of(packlight.verify(folder), "answers")
    assert answers.status == "failed" and "pickled Python objects" in answers.said


def test_the_original_may_lie_in_the_folder_and_no_other(folder: Path, original: Path) -> None:
    shutil.copy(original, folder / "net.onnx")
    found = packlight.verify(folder)
    assert check_of(found, "original").status == "passed"
    assert check_of(found, "latency").status == "passed"
    (folder / "net.onnx").write_bytes(original.read_bytes()[:-1] + b"\0")
    assert "net.onnx is not in the manifest" in check_of(packlight.verify(folder), "files").said


def test_another_original_is_told_and_not_compared_with(whole: Path) -> None:
    found = packlight.verify(whole, original=whole / "model.onnx")
    assert check_of(found, "original").status == "failed"
    assert "not the file that was compressed" in check_of(found, "original").said
    assert check_of(found, "latency").status == "not-checked"
    with pytest.raises(UnusableModel):
        packlight.verify(whole, original=whole / "report.json")


def test_without_golden_samples_a_folder_is_intact(
    make_folder: Callable[..., Path], original: Path
) -> None:
    folder = make_folder(golden=False)
    assert not (folder / "golden.npz").exists()
    found = packlight.verify(folder, original=original)
    assert (found.verdict, found.exit_status) == ("intact", 3)
    assert "they were to be left out" in check_of(found, "answers").said
    assert check_of(found, "latency").status == "passed", "a made-up sample will do"


def test_a_language_model_is_held_by_its_hashes(folder: Path, reseal: Reseal) -> None:
    reseal(folder, kind="language-model")
    found = packlight.verify(folder)
    assert (found.verdict, found.exit_status) == ("intact", 3)


def test_slower_or_larger_than_the_original_here_fails(
    whole: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = LatencyEvidence("steady", 1, 0.2, 0.4, 2.0, (1.9, 2.1))
    monkeypatch.setattr(rerun, "measure_latency", lambda *a, **k: slow)
    found = packlight.verify(whole, original=original)
    assert (check_of(found, "latency").status, found.exit_status) == ("failed", 4)
    assert "0.50 times as fast, 2.00 where it was made" in check_of(found, "latency").said
    monkeypatch.setattr(rerun, "measure_memory", lambda *a, **k: Pair(4000, 5000))
    assert check_of(packlight.verify(whole, original=original), "memory").status == "failed"


def test_what_is_no_proof_is_one_sentence(folder: Path, tmp_path: Path, reseal: Reseal) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UnusableProof) as caught:
            packlight.verify(path)
        return str(caught.value)

    (tmp_path / "net.plz").touch()
    assert "packlight unpack" in refused(tmp_path / "net.plz")
    assert "does not exist" in refused(tmp_path / "none")
    value = json.loads((folder / "manifest.json").read_text())
    reseal(folder, files=[*value["files"], {**value["files"][0], "name": "../secret"}])
    assert "'../secret' is not a plain name" in refused(folder)
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(5 << 20)
    assert "more than 4194304 bytes" in refused(folder)
    (folder / "manifest.json").unlink()
    assert "holds no manifest.json" in refused(folder) and "--with-report" in refused(folder)
    (folder / "manifest.json").symlink_to(folder / "recipe.yaml")
    assert "is a link" in refused(folder)


def test_packing_with_the_report_keeps_the_proof(
    folder: Path, tmp_path: Path, reseal: Reseal
) -> None:
    (folder / "verify.html").write_text("<p>")  # packing the whole page takes seconds
    reseal(folder)

    def there(*, with_report: bool) -> Path:
        file = tmp_path / f"{with_report}.plz"
        packlight.pack(folder, file, with_report=with_report)
        return packlight.unpack(file).path

    assert packlight.verify(there(with_report=True)).verdict == "proven"
    assert {path.name for path in there(with_report=False).iterdir()} == {
        "model.onnx", "recipe.yaml",
    }  # fmt: skip


def test_the_same_run_gives_the_same_proof(make_folder: Any, whole: Path) -> None:
    again = make_folder()
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
