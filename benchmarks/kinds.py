"""One network of each kind, with real samples of its kind and the figure its users look at.

The samples to prune with and those to test with come from different photos, from different
parts of the recording and from different books. The original is the reference: its boxes, masks
and decisions. The language model has labels besides, the words that come next.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import Arrays, Data
from feeding import feeds, read_ranks
from measuring import open_session
from numpy.typing import NDArray
from pools import crops, face

CONFIDENT = 0.7
"""Score of a face that counts; boxes of the same face overlap by more than OVERLAP."""
OVERLAP = 0.5

WINDOW, CONTEXT = 512, 64
TOKENS = 128

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """A network and what is asked of it.

    find: (real folder, work folder) to its file. read: (real folder, file, samples to prune
    with, to test with) to both. answers: (file, test samples) to its outputs.
    judge: (the original's outputs, another's, test samples) to figures by name.
    convolutional: torch-pruning can take it, as `peers/torch_pruning_peer.py` makes it.
    """

    name: str
    what: str
    source: str
    counts: tuple[int, int]
    find: Callable[[Path, Path], Path]
    read: Callable[[Path, Path, int, int], Data]
    answers: Callable[[Path, Arrays], Outputs]
    judge: Callable[[Outputs, Outputs, Arrays], dict[str, str]]
    convolutional: bool = False


def stored(name: str) -> Callable[[Path, Path], Path]:
    """A file of the folder of real models."""
    return lambda real, work: real / "onnx" / f"{name}.onnx"


def photos(
    real: Path,
    model: Path,
    first: int,
    second: int,
    *,
    name: str,
    size: tuple[int, int],
    prepare: Callable[[NDArray], NDArray],
) -> Data:
    """Crops of every other photo to prune with, of the others to test with."""
    parts = [
        crops(real, model, name=name, size=size, count=count, prepare=prepare, which=which)[0]
        for count, which in ((first, slice(0, None, 2)), (second, slice(1, None, 2)))
    ]
    return Data(*parts)


def pixels(picture: NDArray) -> NDArray:
    """As the segmenter takes it: [1, height, width, 3] in -1..1."""
    return (picture.transpose(1, 2, 0) / 127.5 - 1)[None]


def speech(real: Path, model: Path, first: int, second: int) -> Data:
    """Windows of the recording in order, with the original's states; the last are to test."""
    with wave.open(str(real / "audio" / "test.wav")) as recording:
        pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    sound = np.concatenate([np.zeros(CONTEXT, np.float32), pcm.astype(np.float32) / 32768])
    starts = range(0, len(sound) - WINDOW - CONTEXT + 1, WINDOW)
    windows = np.stack([sound[start : start + WINDOW + CONTEXT] for start in starts])[:, None]
    session = open_session(model, threads=1)
    state, states = np.zeros((2, 1, 128), np.float32), []
    for window in windows:
        states.append(state)
        state = np.asarray(session.run(["stateN"], {"input": window, "state": state})[0])
    both = {"input": windows, "state": np.stack(states)}
    cut = max(len(windows) - second, 0)
    chosen = np.sort(np.random.default_rng(0).permutation(cut)[:first])
    return Data(
        {key: array[chosen] for key, array in both.items()},
        {key: array[cut:] for key, array in both.items()},
    )


def find_llama(real: Path, work: Path) -> Path:
    """The small Llama, exported to ONNX by torch.export."""
    path = work / "novels-llama.onnx"
    if not path.exists():
        import torch  # noqa: TID251
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            real / "novels-llama" / "hf", attn_implementation="eager"
        ).eval()

        class Language(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: Any) -> Any:
                return self.model(input_ids=input_ids, use_cache=False, return_dict=False)[0]

        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Language(),
                kwargs={"input_ids": torch.randint(3, 4000, (2, 9))},
                f=str(path),
                input_names=["input_ids"],
                output_names=["logits"],
                dynamo=True,
                opset_version=18,
                external_data=False,
                dynamic_shapes={"input_ids": sizes},
                verbose=False,
            )
        logging.disable(logging.NOTSET)
    return path


def novels(real: Path, model: Path, first: int, second: int) -> Data:
    """Passages of 128 tokens: of the training text to prune with, of another book to test."""
    from tokenizers import Tokenizer

    folder = real / "novels-llama"
    tokenizer = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    parts = []
    for name, count in (("train_sample", first), ("test", second)):
        text = (folder / "text" / f"{name}.txt").read_text()
        ids = np.array(tokenizer.encode(text).ids, np.int64)
        passages = ids[: len(ids) // TOKENS * TOKENS].reshape(-1, TOKENS)
        every = len(passages) // count
        parts.append({"input_ids": passages[: every * count : every]})
    return Data(*parts)


def answer_each(model: Path, samples: Arrays, *, batch: int = 16) -> Outputs:
    """Every output of all samples, stacked along axis 0."""
    session = open_session(model, threads=1)
    names = [value.name for value in session.get_outputs()]
    runs = [session.run(names, chosen) for chosen in feeds(read_ranks(model), samples, batch=batch)]
    return {
        name: np.concatenate([np.asarray(run[place]) for run in runs])
        for place, name in enumerate(names)
    }


def answer_listening(model: Path, samples: Arrays) -> Outputs:
    """Chances of speech, each window heard with the states that this file itself made."""
    session = open_session(model, threads=1)
    state, chances = samples["state"][0], []
    for window in samples["input"]:
        chance, state = session.run(["output", "stateN"], {"input": window, "state": state})
        chances.append(np.asarray(chance))
    return {"output": np.concatenate(chances)}


def judge_boxes(wanted: Outputs, found: Outputs, samples: Arrays) -> dict[str, str]:
    """Faces of the original that are found again, and of those found that it found too."""
    hits = originals = ours = 0
    for picture in range(len(wanted["scores"])):
        here, there = (
            _faces(each["scores"][picture], each["boxes"][picture]) for each in (wanted, found)
        )
        originals, ours = originals + len(here), ours + len(there)
        left = list(range(len(there)))
        for box in here:
            overlaps = [_overlap(box, there[k : k + 1])[0] for k in left]
            if overlaps and max(overlaps) > OVERLAP:
                left.pop(int(np.argmax(overlaps)))
                hits += 1
    share = 2 * hits / max(originals + ours, 1)
    return {
        "F1 of the original's faces": f"{share:.1%}",
        "faces found, of the original's": f"{ours} ({hits} of {originals})",
    }


def _faces(scores: NDArray, boxes: NDArray) -> NDArray:
    """Boxes [n, 4] whose score counts, the surest first, without those that overlap a surer."""
    sure = np.flatnonzero(scores[:, 1] > CONFIDENT)
    left = list(sure[np.argsort(-scores[sure, 1], kind="stable")])
    kept = []
    while left:
        first = left.pop(0)
        kept.append(first)
        if left:
            overlaps = _overlap(boxes[first], boxes[left])
            left = [k for k, size in zip(left, overlaps, strict=True) if size <= OVERLAP]
    return boxes[kept]


def _overlap(box: NDArray, others: NDArray) -> NDArray:
    """Intersection over union of a box (left, top, right, bottom) with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-12)


def judge_masks(wanted: Outputs, found: Outputs, samples: Arrays) -> dict[str, str]:
    """Pixels with the original's class, and intersection over union of its people."""
    ((first, second),) = ((wanted[name].argmax(-1), found[name].argmax(-1)) for name in wanted)
    person = 15
    shared = ((first == person) & (second == person)).sum()
    either = ((first == person) | (second == person)).sum()
    return {
        "pixels as the original's": f"{(first == second).mean():.2%}",
        "IoU of its people": f"{shared / max(either, 1):.1%}",
    }


def judge_speech(wanted: Outputs, found: Outputs, samples: Arrays) -> dict[str, str]:
    """Windows with the original's decision."""
    first, second = wanted["output"] > 0.5, found["output"] > 0.5
    return {
        "decisions as the original's": f"{(first == second).mean():.2%}",
        "speech": f"{second.mean():.1%} (original {first.mean():.1%})",
    }


def judge_words(wanted: Outputs, found: Outputs, samples: Arrays) -> dict[str, str]:
    """The same likeliest next token, and perplexity on the true one."""
    (name,) = wanted
    same = (wanted[name].argmax(-1) == found[name].argmax(-1)).mean()
    perplexities = []
    for each in (wanted, found):
        scores = each[name][:, :-1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        chances = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        ids = samples["input_ids"][:, 1:, None]
        perplexities.append(float(np.exp(-np.take_along_axis(chances, ids, -1).mean())))
    return {
        "next token as the original's": f"{same:.1%}",
        "perplexity": f"{perplexities[1]:.1f} (original {perplexities[0]:.1f})",
    }


KINDS: tuple[Kind, ...] = (
    Kind(
        "ultraface",
        "detector of faces",
        "random crops of photos with faces: of nine photos to prune with, of eight to test",
        (300, 200),
        stored("ultraface_version-RFB-320"),
        partial(photos, name="input", size=(320, 240), prepare=face),
        answer_each,
        judge_boxes,
        convolutional=True,
    ),
    Kind(
        "deeplab",
        "segmenter (MobileNetV2 with DeepLab v3)",
        "random crops of photos of people: of nine photos to prune with, of eight to test",
        (160, 100),
        stored("deeplab_v3_1_default_1"),
        partial(photos, name="sub_7", size=(257, 257), prepare=pixels),
        answer_each,
        judge_masks,
        convolutional=True,
    ),
    Kind(
        "silero_vad_half",
        "audio, detector of speech with states",
        "audio/test.wav: windows of the first 41 s to prune with, the last 19 s to test, heard "
        "in order with the file's own states",
        (1200, 600),
        stored("silero_vad_half"),
        speech,
        answer_listening,
        judge_speech,
    ),
    Kind(
        "novels-llama",
        "Transformer (Llama, 5.8 million parameters)",
        "passages of 128 tokens: of the training text to prune with, of another book to test",
        (600, 100),
        find_llama,
        novels,
        answer_each,
        judge_words,
    ),
)
