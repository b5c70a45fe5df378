"""Trains the network of translate.py: English sentences into German ones.

    pip install torch==2.13.0 onnx tokenizers
    python examples/train_translation.py multi30k/ --out translation/

multi30k/ holds train.en.gz, train.de.gz, val.en.gz and val.de.gz, a sentence a line (Multi30k,
github.com/multi30k/dataset: what pictures show). A small Transformer learns them: pieces of words
(byte pair encoding) common to both languages, one table of them for both ends and the output.
Written are words.json (the pieces), encoder.onnx, decoder.onnx (one step, with what it computed
before as `past`), and samples of both to compress them with. Every epoch leaves a checkpoint, from
which the same command goes on; with fewer --epochs than are done it only writes. Nothing is
chosen by looking at test sentences: the mean of the last weights is taken. Seeded.
"""

from __future__ import annotations

import argparse
import gzip
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch  # noqa: TID251  (training is not part of the package)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn  # noqa: TID251
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: TID251
from translate import BEGIN, END, PAD
from translation_network import Decoder, Encoder, Translation

PIECES = 4000
BATCH = 3072
"""Pieces in a batch, both languages together."""

Pair = tuple[list[int], list[int]]


def read_lines(folder: Path, name: str) -> list[str]:
    """The sentences of a packed text file."""
    with gzip.open(folder / f"{name}.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


def learn_pieces(sentences: Sequence[str], count: int) -> Tokenizer:
    """Byte pair encoding (Sennrich et al. 2016) of words and marks, with a sign for the space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "<begin>", "<end>", "<unknown>"]
    trainer = trainers.BpeTrainer(vocab_size=count, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def read_pairs(folder: Path, name: str, tokenizer: Tokenizer) -> list[Pair]:
    """Sentences as numbers of pieces: the English ends with END, the German begins and ends."""
    english, german = (
        [coded.ids for coded in tokenizer.encode_batch(read_lines(folder, f"{name}.{language}"))]
        for language in ("en", "de")
    )
    pairs = zip(english, german, strict=True)
    return [([*source, END], [BEGIN, *target, END]) for source, target in pairs]


def make_batches(
    pairs: Sequence[Pair], random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of about the same length together, in random order, filled up with PAD."""
    order = random.permutation(len(pairs))
    order = order[np.argsort([len(pairs[i][0]) + len(pairs[i][1]) for i in order], kind="stable")]
    sizes = np.cumsum([len(pairs[i][0]) + len(pairs[i][1]) for i in order])
    batches = np.split(order, np.flatnonzero(np.diff(sizes // BATCH)) + 1)
    for number in random.permutation(len(batches)):
        chosen = [pairs[i] for i in batches[number]]
        yield pad([source for source, _ in chosen]), pad([target for _, target in chosen])


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of different length as one array, filled up with PAD."""
    filled = torch.full((len(rows), max(map(len, rows))), PAD)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = torch.tensor(row)
    return filled


def loss_of(model: nn.Module, source: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross entropy of each piece after those before it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(source, target[:, :-1])
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        target[:, 1:].flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
    )


def train(
    pairs: Sequence[Pair],
    held: Sequence[Pair],
    model: Translation,
    checkpoint: Path,
    *,
    epochs: int,
    seed: int,
) -> Translation:
    """Trains with Adam, warm-up and inverse square root; returns the running mean of weights."""
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98), eps=1e-9)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 400, math.sqrt(400 / (step + 1)))
    )
    parts = {"model": model, "mean": mean, "optimizer": optimizer, "rate": rate}
    done = 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved.pop("epochs")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for epoch in range(done, epochs):
        torch.manual_seed(seed + epoch)
        total, count = 0.0, 0
        for source, target in make_batches(pairs, np.random.default_rng(seed + epoch)):
            model.train()
            loss = loss_of(model, source, target, 0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            mean.update_parameters(model)
            total, count = total + loss.item(), count + 1
            if count % 50 == 0:
                print(f"  {count}: {total / count:.3f}", flush=True)
        mean.eval()
        with torch.inference_mode():
            batches = make_batches(held, np.random.default_rng(0))
            losses = [loss_of(mean, *batch, 0.0).item() for batch in batches]
        print(
            f"epoch {epoch + 1}: loss {total / count:.3f}, held out {np.mean(losses):.3f}",
            flush=True,
        )
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"epochs": epoch + 1}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
    return mean.module.eval()


def export(model: Translation, out: Path) -> None:
    """Writes encoder.onnx and decoder.onnx, opset 17, with open lengths.

    Constants are not folded, so that the table of pieces is in the decoder once and not also
    transposed.
    """
    source, pieces = torch.ones(1, 7, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)
    sides, heads, width = model.cache_shape
    memory = torch.zeros(1, sides, heads, 7, width)
    past = torch.zeros(1, sides, heads, 2, width)
    axes = {
        "source": {0: "batch", 1: "source"},
        "memory": {0: "batch", 3: "source"},
        "pieces": {0: "batch", 1: "new"},
        "past": {0: "batch", 3: "past"},
        "logits": {0: "batch", 1: "new"},
        "present": {0: "batch", 3: "past + new"},
    }
    for part, inputs, names, name in (
        (Encoder(model), (source,), ("source", "memory"), "encoder"),
        (Decoder(model), (source, memory, pieces, past), tuple(axes), "decoder"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter without onnxscript is marked as legacy
            torch.onnx.export(
                part.eval(),
                inputs,
                str(out / f"{name}.onnx"),
                input_names=names[: len(inputs)],
                output_names=names[len(inputs) :],
                dynamic_axes={one: axes[one] for one in names},
                opset_version=17,
                do_constant_folding=False,
                dynamo=False,
            )


def write_samples(model: Translation, pairs: Sequence[Pair], out: Path, *, count: int) -> None:
    """Sentences for the encoder, filled up to 20 pieces; pieces 5 to 12 after the first 4 for
    the decoder, of sentences that are long enough.
    """
    chosen = [pair for pair in pairs if len(pair[0]) <= 20 and len(pair[1]) >= 12][:count]
    source = pad([first + [PAD] * (20 - len(first)) for first, _ in chosen])
    target = pad([second[:12] for _, second in chosen])
    with torch.inference_mode():
        memory = model.encode(source)
        _, past = model.decode(source, memory, target[:, :4], model.empty_past(len(source)))
    np.savez(out / "encoder.samples.npz", source=source)
    np.savez(
        out / "decoder.samples.npz",
        source=source,
        memory=memory,
        pieces=target[:, 4:],
        past=past,
    )


def main() -> None:
    """Learns the pieces, trains, writes."""
    parser = argparse.ArgumentParser(description="Trains the network of translate.py.")
    parser.add_argument("data", type=Path, help="the folder with train.en.gz and so on")
    parser.add_argument("--out", type=Path, default=Path("translation"))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    sentences = [line for end in ("en", "de") for line in read_lines(options.data, f"train.{end}")]
    tokenizer = learn_pieces(sentences, PIECES)
    tokenizer.save(str(options.out / "words.json"))
    pairs, held = (read_pairs(options.data, name, tokenizer) for name in ("train", "val"))
    torch.manual_seed(options.seed)
    model = train(
        pairs,
        held,
        Translation(tokenizer.get_vocab_size()),
        options.out / "checkpoint.pt",
        epochs=options.epochs,
        seed=options.seed,
    )
    export(model, options.out)
    write_samples(model, pairs, options.out, count=600)


if __name__ == "__main__":
    main()
