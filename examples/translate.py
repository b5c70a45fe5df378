"""Translates English into German: a Transformer and what packlight makes of it, side by side.

    pip install packlight tokenizers sacrebleu
    python examples/train_translation.py multi30k/ --out translation/
    python examples/translate.py --model translation/ --out translated/
    python examples/translate.py --model translation/ --out translated/ --test test.en.gz test.de.gz

The network reads a sentence once (encoder.onnx) and writes one piece of a word at a time
(decoder.onnx), the most probable one, with what it computed for those before as `past`. Both are
compressed once, with the samples that the training script left beside them: translated/encoder and
translated/decoder hold the smaller models and their reports. Without --test a prompt asks for
sentences (what pictures show is all that it learned) and translates them with both. With --test
it translates the sentences of the first file, a line each, and prints a table: BLEU against the
second file (sacrebleu), and how many words a second are written, one sentence at a time.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import packlight

PAD, BEGIN, END = 0, 1, 2
"""Numbers of pieces that mean something else than letters."""

PARTS = ("encoder", "decoder")

LONGEST = 80
"""Pieces after which a translation ends at the latest."""


@dataclass(frozen=True)
class Translator:
    """The two halves of a network, and the pieces of words that it reads and writes."""

    encoder: onnxruntime.InferenceSession
    decoder: onnxruntime.InferenceSession
    words: Tokenizer

    def translate(self, sentence: str) -> str:
        """The most probable next piece, and again, until the end (greedy)."""
        source = np.array([[*self.words.encode(sentence).ids, END]])
        return self.words.decode(write_pieces(self.encoder, self.decoder, source))


def main() -> int:
    """Compresses, then asks or tests."""
    options = _options()
    for part in PARTS:
        if not (options.out / part / "model.onnx").is_file():
            samples = options.model / f"{part}.samples.npz"
            result = packlight.compress(
                options.model / f"{part}.onnx", data=samples, seed=options.seed
            )
            assert isinstance(result, packlight.Result)
            result.save(options.out / part)
            print(result)
    files = {
        "original": [options.model / f"{part}.onnx" for part in PARTS],
        "compressed": [options.out / part / "model.onnx" for part in PARTS],
    }
    words = Tokenizer.from_file(str(options.model / "words.json"))
    translators = {
        name: Translator(*(open_network(path) for path in paths), words)
        for name, paths in files.items()
    }
    if not options.test:
        return ask(translators)
    sentences, references = (read_lines(path)[: options.most] for path in options.test)
    found, seconds = translate_in_turns(translators, sentences)
    downloads = [packlight.pack(options.out / part, force=True).packed_bytes for part in PARTS]
    print_table(found, seconds, references, files, download=sum(downloads))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="what the training wrote")
    parser.add_argument("--out", type=Path, default=Path("translated"))
    parser.add_argument("--test", type=Path, nargs=2, metavar=("ENGLISH", "GERMAN"))
    parser.add_argument("--most", type=int, default=None, help="only so many sentences")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def open_network(path: Path) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, on one thread."""
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads, how.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), how, providers=["CPUExecutionProvider"])


def write_pieces(
    encoder: onnxruntime.InferenceSession,
    decoder: onnxruntime.InferenceSession,
    source: np.ndarray,
    *,
    longest: int = LONGEST,
) -> list[int]:
    """The pieces of the translation of source [1, pieces], without BEGIN and END."""
    (memory,) = encoder.run(["memory"], {"source": source})
    _, sides, heads, _, width = memory.shape
    past = np.zeros((1, sides, heads, 0, width), np.float32)
    written, piece = [], BEGIN
    while len(written) < longest:
        feeds = {"source": source, "memory": memory, "pieces": np.array([[piece]]), "past": past}
        logits, past = decoder.run(["logits", "present"], feeds)
        piece = int(logits[0, -1].argmax())
        if piece == END:
            break
        written.append(piece)
    return written


def ask(translators: dict[str, Translator]) -> int:
    """Asks for sentences until there is none, and shows both translations."""
    while True:
        try:
            sentence = input("English: ").strip()
        except EOFError:
            print()
            return 0
        if not sentence:
            return 0
        for name, translator in translators.items():
            begun = time.perf_counter()
            german = translator.translate(sentence)
            print(f"{name:>10}: {german}  ({1000 * (time.perf_counter() - begun):.0f} ms)")


def translate_in_turns(
    translators: dict[str, Translator], sentences: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """All translations, and the seconds that each took for them. They take turns, so that
    whatever else the machine does slows both.
    """
    found: dict[str, list[str]] = {name: [] for name in translators}
    seconds = dict.fromkeys(translators, 0.0)
    for sentence in sentences:
        for name, translator in translators.items():
            begun = time.perf_counter()
            found[name].append(translator.translate(sentence))
            seconds[name] += time.perf_counter() - begun
    return found, seconds


def print_table(
    found: dict[str, list[str]],
    seconds: dict[str, float],
    references: Sequence[str],
    files: dict[str, list[Path]],
    *,
    download: int,
) -> None:
    """BLEU, words a second and bytes of both, and how large the smaller one is as a download."""
    from sacrebleu.metrics import BLEU  # the prompt does without

    bleu = BLEU()
    scores = {name: bleu.corpus_score(texts, [references]).score for name, texts in found.items()}
    speeds = {
        name: sum(len(text.split()) for text in texts) / seconds[name]
        for name, texts in found.items()
    }
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}
    print(f"\n{len(references)} sentences; {bleu.get_signature()}\n")
    print("| | BLEU | words a second | bytes |\n" + "|---" * 4 + "|")
    for name in found:
        print(f"| {name} | {scores[name]:.2f} | {speeds[name]:.0f} | {sizes[name]:,} |")
    first, second = found.values()
    same = sum(one == other for one, other in zip(first, second, strict=True))
    print(
        f"\n{sizes['original'] / sizes['compressed']:.2f}x smaller (packed for the download "
        f"{download:,} bytes, {sizes['original'] / download:.2f}x), "
        f"{divide(speeds['compressed'], speeds['original']):.2f}x faster, "
        f"{divide(scores['compressed'], scores['original']) - 1:+.2%} BLEU; "
        f"{same} of {len(references)} translations are the same"
    )


def divide(one: float, other: float) -> float:
    """One part by another; not a number where the other is 0: nothing was written, or nothing
    right.
    """
    return one / other if other else float("nan")


def read_lines(path: Path) -> list[str]:
    """The sentences of a text file, packed or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    return [line.strip() for line in text.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
