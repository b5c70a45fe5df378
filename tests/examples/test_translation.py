"""Translation: pieces of words, batches, and the cache of the decoder."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network is trained with PyTorch")
pytest.importorskip("tokenizers", reason="it learns the pieces of words")

import train_translation as training  # noqa: E402
import translate  # noqa: E402

SENTENCES = [
    f"{who} {does} {what}."
    for who, does, what in zip(
        ["A man", "Two women", "The dog", "A child"] * 10,
        ["sees", "holds", "eats", "throws"] * 10,
        ["a red ball", "the house", "an old hat", "his bread", "water"] * 8,
        strict=True,
    )
]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return training.Translation(50, width=64, layers=2).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up pairs as the files of the data set are: German is English in capitals."""
    path = tmp_path_factory.mktemp("pairs")
    for name in ("train", "val"):
        for end, lines in (("en", SENTENCES), ("de", [line.upper() for line in SENTENCES])):
            with gzip.open(path / f"{name}.{end}.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    return path


def test_pieces_come_back_as_the_sentence():
    words = training.learn_pieces(SENTENCES, 80)
    assert [words.token_to_id(name) for name in ("<pad>", "<begin>", "<end>")] == [
        translate.PAD,
        translate.BEGIN,
        translate.END,
    ]
    for sentence in SENTENCES:
        assert words.decode(words.encode(sentence).ids) == sentence
    assert len(words.encode("A man").ids) < len("A man")


def test_batches_hold_every_pair_once_and_are_not_too_large():
    random = np.random.default_rng(0)
    pairs = [
        ([number + 10] * random.integers(1, 40), [number + 10] * random.integers(2, 40))
        for number in range(400)
    ]
    seen = []
    for source, target in training.make_batches(pairs, random):
        assert (source != 0).sum() + (target != 0).sum() <= training.BATCH + 80
        assert torch.equal(source[:, 0], target[:, 0])
        seen += source[:, 0].tolist()
    assert sorted(seen) == [number + 10 for number in range(400)]


def test_step_by_step_with_past_is_the_whole_at_once(model: Any):
    source = torch.randint(4, 50, (2, 7))
    pieces = torch.randint(4, 50, (2, 9))
    with torch.inference_mode():
        whole = model(source, pieces)
        memory, past = model.encode(source), model.empty_past(2)
        for place in range(9):
            step, past = model.decode(source, memory, pieces[:, place : place + 1], past)
            assert torch.allclose(step[:, 0], whole[:, place], atol=1e-4)


def test_what_a_sentence_is_filled_up_with_changes_nothing(model: Any):
    source = torch.randint(4, 50, (1, 5))
    filled = torch.cat([source, torch.full((1, 6), translate.PAD)], dim=1)
    pieces = torch.randint(4, 50, (1, 4))
    with torch.inference_mode():
        assert torch.allclose(model(source, pieces), model(filled, pieces), atol=1e-4)


def write_without_cache(model: Any, source: Any, longest: int) -> list[int]:
    written: list[int] = []
    while len(written) < longest:
        pieces = torch.tensor([[translate.BEGIN, *written]])
        piece = int(model(source, pieces)[0, -1].argmax())
        if piece == translate.END:
            break
        written.append(piece)
    return written


def test_the_exported_halves_write_what_the_network_writes_without_cache(
    model: Any, tmp_path: Path
):
    training.export(model, tmp_path)
    halves = [translate.open_network(tmp_path / f"{part}.onnx") for part in translate.PARTS]
    for seed in range(4):
        torch.manual_seed(seed)
        source = torch.randint(4, 50, (1, 3 + 2 * seed))
        written = translate.write_pieces(*halves, source.numpy(), longest=12)
        with torch.inference_mode():
            assert written == write_without_cache(model, source, 12)


def test_training_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path):
    words = training.learn_pieces(SENTENCES, 80)
    pairs = training.read_pairs(folder, "train", words)

    def run(name: str, *stops: int) -> Any:
        for stop in stops:
            torch.manual_seed(0)
            fresh = training.Translation(80, width=64, layers=1)
            done = training.train(pairs, pairs, fresh, tmp_path / name, epochs=stop, seed=0)
        return done.table.weight

    assert torch.equal(run("whole.pt", 2), run("parts.pt", 1, 2))


def test_a_network_that_writes_nothing_gets_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("sacrebleu", reason="it computes BLEU")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"12")
    names = ("original", "compressed")
    found, files = (dict.fromkeys(names, value) for value in (["", ""], [path]))
    translate.print_table(found, dict.fromkeys(names, 1.0), ["Ja.", "So."], files, download=1)
    table = capsys.readouterr().out
    assert "2 of 2 translations are the same" in table
    assert "nanx faster" in table


def test_the_whole_program_on_made_up_pairs(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("sacrebleu", reason="it computes BLEU")
    trained, packed = tmp_path / "trained", tmp_path / "packed"
    small = functools.partial(training.Translation, width=64, layers=1)
    monkeypatch.setattr(training, "Translation", small)
    monkeypatch.setattr(training, "PIECES", 80)
    options = ["--out", str(trained), "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["train_translation.py", str(folder), *options])
    training.main()
    options = ["--model", str(trained), "--out", str(packed), "--most", "3"]
    test = ["--test", str(folder / "val.en.gz"), str(folder / "val.de.gz")]
    monkeypatch.setattr("sys.argv", ["translate.py", *options, *test])
    assert translate.main() == 0
    table = capsys.readouterr().out
    assert "| original |" in table
    assert "| compressed |" in table
    monkeypatch.setattr("sys.argv", ["translate.py", *options])
    answers = iter(["A man sees a red ball.", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert translate.main() == 0
    assert "original: " in capsys.readouterr().out
