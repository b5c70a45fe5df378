from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packlight.errors import UnusableModel, UnusableSamples, WrongUsage
from packlight.maths.divergence import explained_variance, signal_to_noise_db
from packlight.maths.intervals import paired_difference_interval, wilson_interval
from packlight.measure.evidence import MetricEvidence
from packlight.measure.quality import METRICS, find_metric, load_metric, measure_quality

Batches = list[dict[str, np.ndarray]]


def batches(size: int = 7, **outputs: np.ndarray) -> Batches:
    n = len(next(iter(outputs.values())))
    return [
        {name: array[start : start + size] for name, array in outputs.items()}
        for start in range(0, n, size)
    ]


def classifier(n: int = 200, wrong: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 5] and labels; the first `wrong` are wrong."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=n)
    logits = rng.random((n, 5)).astype(np.float32)
    logits[np.arange(n), labels] += 3
    logits[:wrong] = np.roll(logits[:wrong], 1, axis=1)
    return logits, labels


def flipped(logits: np.ndarray, which: slice) -> np.ndarray:
    other = logits.copy()
    other[which] = np.roll(other[which], 1, axis=1)
    return other


def measure(original: Batches, compressed: Batches, **options: Any) -> MetricEvidence:
    return measure_quality(iter(original), iter(compressed), **options)


def test_accuracy_is_paired_by_sample() -> None:
    logits, labels = classifier()
    other = flipped(logits, slice(190, 200))  # ten that were right are lost
    other[0] = np.roll(other[0], -1)  # one that was wrong is won
    found = measure(batches(logits=logits), batches(logits=other), labels=labels, max_drop=0.05)
    assert (found.name, found.samples) == ("top-1 accuracy", 200)
    assert found.original == pytest.approx(0.9)
    assert found.compressed == pytest.approx(0.855)
    assert found.drop == pytest.approx(0.045)
    assert found.drop_interval_95 == paired_difference_interval(10, 1, 200)
    assert found.agreement == pytest.approx(189 / 200)
    assert not found.proven
    assert found.samples_needed is not None and found.samples_needed > 200
    assert found.noise_db == pytest.approx(signal_to_noise_db(logits, other))


def test_enough_samples_prove_and_too_large_a_drop_never_does() -> None:
    logits, labels = classifier(2000, 100)
    other = flipped(logits, slice(1995, 2000))
    pair = batches(y=logits, size=300), batches(y=other, size=300)
    assert measure(*pair, labels=labels, max_drop=0.01).proven
    few = measure(*pair, labels=labels, max_drop=0.001)
    assert not few.proven
    assert few.samples_needed is None
    unasked = measure(*pair, labels=labels)
    assert not unasked.proven
    assert unasked.samples_needed is None


def test_ten_samples_that_agree_are_no_proof_of_one_percent() -> None:
    logits, labels = classifier(10, 0)
    pair = batches(y=logits), batches(y=logits)
    for options in ({"labels": labels}, {}):
        found = measure(*pair, max_drop=0.01, **options)
        assert found.drop == 0
        assert not found.proven
        assert found.samples_needed == pytest.approx(381, abs=2)


def test_fidelity_of_a_classifier_is_agreement() -> None:
    logits, _ = classifier()
    other = flipped(logits, slice(0, 8))
    found = measure(batches(logits=logits), batches(logits=other), max_drop=0.1)
    assert found.name == "top-1 agreement"
    assert (found.original, found.compressed) == (1, pytest.approx(0.96))
    assert found.drop_interval_95 == wilson_interval(8, 200)
    assert found.proven


def regression(n: int = 300, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    y = rng.standard_normal((n, 3, 4)).astype(np.float32) + 5
    return y, y + noise * rng.standard_normal(y.shape).astype(np.float32)


def test_fidelity_of_other_outputs_is_explained_variance() -> None:
    y, other = regression()
    found = measure(batches(y=y), batches(y=other), max_drop=0.01)
    assert found.name == "explained variance"
    assert found.compressed == pytest.approx(explained_variance(y, other))
    low, high = found.drop_interval_95
    assert 0 < low < 0.0025 < high < 0.004
    assert found.proven
    assert found.agreement is None
    assert found.noise_db == pytest.approx(signal_to_noise_db(y, other))
    assert not measure(batches(y=y), batches(y=other), max_drop=0.0026).proven
    assert measure(batches(y=y), batches(y=other), seed=1) == measure(
        batches(size=64, y=y), batches(size=64, y=other), seed=1
    )


def test_the_worst_output_counts_and_is_named() -> None:
    y, other = regression()
    logits, _ = classifier(300)
    notes: list[str] = []
    found = measure(
        batches(logits=logits, good=y, bad=y),
        batches(logits=logits, good=other, bad=y + 10 * (other - y)),
        max_drop=0.9,
        output_is_classifier={"logits": True},
        on_note=notes.append,
    )
    assert found.name == "explained variance"
    assert found.drop == pytest.approx(0.25, abs=0.03)
    assert "worst of 3 outputs counts: bad" in notes[0]
    assert found.agreement == 1
    # One output that is not proven is enough to leave the whole unproven.
    few = measure(
        batches(logits=logits, y=y),
        batches(logits=logits, y=other),
        max_drop=0.005,
        output_is_classifier={"logits": True},
    )
    assert not few.proven
    assert few.name == "top-1 agreement"


def test_beside_other_outputs_only_probabilities_are_a_classifiers() -> None:
    y, other = regression()
    logits, _ = classifier(300)
    boxes = batches(logits=logits, y=y), batches(logits=logits, y=other)
    assert measure(*boxes).agreement is None
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    both = measure(batches(odds=odds, y=y), batches(odds=odds, y=other))
    assert both.agreement == 1


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("logits", "random", "top-1 agreement"),
        ("sentence_embedding", "random", "explained variance"),
        ("output", "unit", "explained variance"),
        ("output", "probabilities", "top-1 agreement"),
        ("output", "one place", "explained variance"),
    ],
)
def test_what_looks_like_scores(name: str, rows: str, expected: str) -> None:
    y = np.abs(np.random.default_rng(0).standard_normal((30, 6))).astype(np.float32)
    if rows == "unit":
        y /= np.linalg.norm(y, axis=1, keepdims=True)
    elif rows == "probabilities":
        y /= y.sum(axis=1, keepdims=True)
    elif rows == "one place":
        y[:, 2] += 10
    pair = batches(**{name: y}), batches(**{name: y})
    assert measure(*pair).name == expected
    for said, other in ((True, "top-1 agreement"), (False, "explained variance")):
        assert measure(*pair, output_is_classifier={name: said}).name == other


def test_integer_outputs_are_compared_element_by_element() -> None:
    y = np.arange(400).reshape(100, 4)
    other = y.copy()
    other[:10, :2] = -1
    found = measure(batches(ids=y), batches(ids=other))
    assert found.name == "equal elements"
    assert found.compressed == pytest.approx(0.95)
    assert found.noise_db is None


def test_class_labels_as_an_integer_output() -> None:
    labels = np.arange(60) % 3
    other = labels.copy()
    other[:6] = 9
    found = measure(batches(label=labels), batches(label=other), labels=labels)
    assert (found.name, found.original) == ("top-1 accuracy", 1)
    assert found.compressed == pytest.approx(0.9)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_lost(broken: float) -> None:
    logits, labels = classifier(100, 0)
    other = logits.copy()
    other[:25, 1] = broken
    notes: list[str] = []
    pair = batches(logits=logits), batches(logits=other)
    assert measure(*pair, labels=labels).compressed == pytest.approx(0.75)
    assert measure(*pair).compressed == pytest.approx(0.75)
    variance = measure(*pair, metric="explained-variance", on_note=notes.append)
    assert variance.compressed == pytest.approx(0.75, abs=0.02)
    assert "25 of 100 samples, counted as lost" in notes[0]
    seen = []

    def metric(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> float:
        seen.append(np.isfinite(outputs["logits"]).all())
        return 0.5

    found = measure(*pair, metric=metric)
    assert (found.original, found.compressed) == (0.5, 0.375)
    assert all(seen)
    everything = batches(logits=logits), batches(logits=np.full_like(logits, broken))
    assert measure(*everything).compressed == 0
    assert measure(*everything, metric="explained-variance").compressed == 0


def test_masks_of_infinity_in_the_original_are_no_error() -> None:
    y, other = regression()
    y[:, 0], other[:, 0] = -np.inf, -1e9
    found = measure(batches(y=y), batches(y=other))
    assert found.compressed == pytest.approx(1 - 0.0025, abs=5e-4)


def test_an_output_of_another_shape_is_lost() -> None:
    y, _ = regression(20)
    found = measure([{"y": y}], [{"y": y[:, :2]}], rows=[20], max_drop=0.1)
    assert found.compressed == 0
    assert not found.proven


def test_the_rows_said_make_the_samples() -> None:
    boxes = np.random.default_rng(0).random((12, 50, 4)).astype(np.float32)
    pair = [{"y": box} for box in boxes], [{"y": box + 0.01} for box in boxes]
    assert measure(*pair, rows=[1] * 12).samples == 12
    assert measure(*pair).samples == 600


def test_one_sample_measures_and_proves_nothing() -> None:
    y, other = regression(1)
    found = measure([{"y": y}], [{"y": other}], max_drop=0.5)
    assert found.drop == pytest.approx(0.0025, abs=2e-3)
    assert not found.proven


def test_an_identical_file_is_proven_by_its_numbers() -> None:
    y, _ = regression(50)
    found = measure(batches(y=y), batches(y=y), max_drop=0.001)
    assert (found.drop, found.drop_interval_95, found.proven) == (0, (0, 0), True)
    assert found.noise_db == 200
    constant = np.full((50, 2, 2), 0.1, np.float32)
    assert measure(batches(y=constant), batches(y=constant)).compressed == 1
    assert measure(batches(y=constant), batches(y=constant + 1)).compressed == 0


def test_top5_and_names_that_are_none() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.random((80, 20)), rng.integers(20, size=80)
    order = np.argsort(-logits, axis=1)
    expected = np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)])
    found = measure(batches(y=logits), batches(y=logits), labels=labels, metric="top5")
    assert found.name == "top-5 accuracy"
    assert found.original == pytest.approx(expected)
    with pytest.raises(WrongUsage, match="explained-variance"):
        measure(batches(y=logits), batches(y=logits), metric="f1")
    with pytest.raises(WrongUsage, match="needs labels"):
        measure(batches(y=logits), batches(y=logits), metric="top1")
    with pytest.raises(WrongUsage, match="fits none of the outputs y"):
        measure(batches(y=labels), batches(y=labels), metric="agreement")
    assert set(METRICS) == {"top1", "top5", "agreement", "explained-variance", "fidelity"}


def test_labels_that_fit_no_output_fall_back_with_a_note() -> None:
    logits, labels = classifier()
    notes: list[str] = []
    found = measure(batches(y=logits), batches(y=logits), labels=labels + 1, on_note=notes.append)
    assert found.name == "top-1 agreement"
    assert "classes from 0" in notes[0]


def own_accuracy(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> np.ndarray:
    return outputs["logits"].argmax(axis=1) == labels


def own_mean_accuracy(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> float:
    return float(np.mean(own_accuracy(outputs, labels)))


def test_a_metric_of_ones_own_is_streamed_and_paired() -> None:
    logits, labels = classifier()
    other = flipped(logits, slice(195, 200))
    pair = batches(logits=logits), batches(logits=other)
    expected = measure(*pair, labels=labels, metric="top1", max_drop=0.1)
    for metric in (own_accuracy, own_mean_accuracy):
        found = measure(*pair, labels=labels, metric=metric, metric_name="mine", max_drop=0.1)
        assert found.name == "mine"
        assert found.drop_interval_95 == expected.drop_interval_95
        assert (found.original, found.drop) == (expected.original, expected.drop)

    def closeness(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> np.ndarray:
        return outputs["logits"].max(axis=1)

    found = measure(batches(logits=logits), batches(logits=logits * 0.9), metric=closeness)
    assert found.name == "closeness"
    assert found.drop == pytest.approx(0.1 * logits.max(axis=1).mean(), rel=1e-5)
    assert found.drop_interval_95[0] < found.drop < found.drop_interval_95[1]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (np.ones(3), "scores for 7 samples"),
        (np.nan, "not finite"),
        ("good", "failed on a batch"),
        (ZeroDivisionError("oh"), "ZeroDivisionError: oh"),
    ],
)
def test_a_metric_that_fails_is_named(result: object, sentence: str) -> None:
    def mine(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    logits, _ = classifier(7)
    with pytest.raises(WrongUsage, match=f"mine.*{sentence}"):
        measure(batches(y=logits), batches(y=logits), metric=mine)


def test_a_metric_is_loaded_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("limit = 3\ndef score(outputs, labels):\n    return 0.25\n")
    assert load_metric(f"{file}:score")({}, None) == 0.25
    assert find_metric("top5") == "top5"
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    for text, sentence in [
        (f"{file}:other", "has no function other"),
        (f"{file}:limit", "has no function limit"),
        (f"{tmp_path}/none.py:score", "does not exist"),
        (f"{broken}:score", "importing .*broken.py failed: ModuleNotFoundError"),
        (f"{tmp_path}/mine.txt:score", "file.py:function"),
        ("accuracy", "top1, top5"),
    ]:
        with pytest.raises(WrongUsage, match=sentence):
            find_metric(text)


def test_what_does_not_fit_is_refused() -> None:
    logits, labels = classifier(20)
    pair = batches(y=logits), batches(y=logits)
    for wrong in (labels[:13], np.append(labels, 0)):
        with pytest.raises(UnusableSamples, match="labels for"):
            measure(*pair, labels=wrong)
    with pytest.raises(UnusableSamples, match="no samples"):
        measure([], [])
    with pytest.raises(UnusableModel, match="no output 'y'"):
        measure(pair[0], batches(z=logits))
    with pytest.raises(WrongUsage, match="no output 'z'"):
        measure(*pair, output_is_classifier={"z": True})


def test_batches_are_taken_one_by_one() -> None:
    held: list[int] = []

    def stream(scale: float) -> Iterator[dict[str, np.ndarray]]:
        for number in range(50):
            held.append(number)
            yield {"y": np.random.default_rng(number).standard_normal((4, 3, 3)) * scale}

    found = measure_quality(stream(1.0), stream(0.99))
    assert found.samples == 200
    assert held == [number for number in range(50) for _ in range(2)]
