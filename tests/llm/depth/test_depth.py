"""Blocks that go: which, how many, what makes up for them, and done again to the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")

from packlight.errors import UnusableOutput, WrongUsage  # noqa: E402
from packlight.llm import blocks_depth, depth, depth_plan  # noqa: E402
from packlight.llm.blocks import embed_tokens, head_inputs, head_logits, run_block  # noqa: E402
from packlight.llm.blocks_states import States  # noqa: E402
from packlight.llm.checkpoint import Checkpoint, ModelConfig, TensorInfo  # noqa: E402
from packlight.llm.checkpoint.parts import Part  # noqa: E402
from packlight.llm.checkpoint.shorten import drop_blocks  # noqa: E402
from packlight.llm.compress_blocks import load_weights, read_wiring  # noqa: E402
from packlight.llm.rounding import Settings  # noqa: E402
from packlight.llm.storage import Stored  # noqa: E402
from packlight.llm.text import Windows  # noqa: E402
from packlight.progress import SILENT  # noqa: E402

WIDTH, HIDDEN, VOCABULARY, LAYERS = 16, 24, 40, 4
DOWN = "ffn_down.weight"
SETTINGS = Settings()
SHAPES = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (WIDTH, WIDTH),
    "attn_k.weight": (8, WIDTH),
    "attn_v.weight": (8, WIDTH),
    "attn_output.weight": (WIDTH, WIDTH),
    "ffn_norm.weight": (WIDTH,),
    "ffn_gate.weight": (HIDDEN, WIDTH),
    "ffn_up.weight": (HIDDEN, WIDTH),
    "ffn_down.weight": (WIDTH, HIDDEN),
}


def make_checkpoint(folder: Path, quiet: tuple[int, ...] = (), seed: int = 0) -> Checkpoint:
    """A Llama of random weights in one file. quiet: blocks that add nothing."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in SHAPES.items()}
    path, infos, parts = folder / "weights.bin", {}, {}
    with path.open("wb") as file:
        for name, shape in shapes.items():
            values = random.standard_normal(shape) * 0.4 + (len(shape) == 1)
            output = name.endswith(("attn_output.weight", DOWN))
            if output and any(name.startswith(f"blk.{layer}.") for layer in quiet):
                values[:] = 0
            place = Stored(name, path, "F32", shape, file.tell())
            infos[name] = TensorInfo(name, shape, "F32", name, "linear")
            parts[name] = Part(shape, (place,))
            file.write(values.astype(np.float32).tobytes())
    sizes = (LAYERS, WIDTH, VOCABULARY, 64, 2, 1, 8, 8, HIDDEN)
    config = ModelConfig("llama", "llama", True, *sizes, 1e-5, True, rope_theta=1e4)
    return Checkpoint(folder, config, infos, parts, (path,), path.stat().st_size, f"f{seed}")


def make_windows(count: int = 12, length: int = 16) -> Windows:
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (count, length)).astype(np.int32)
    return Windows("text", tokens, tokens[:1], tokens[:3], tokens.size)


def predict(checkpoint: Checkpoint, tokens: Any, kept: Any, changed: Any = None) -> Any:
    """Log probabilities, block after block with nothing streamed."""
    wiring, outer = read_wiring(checkpoint), load_weights(checkpoint, None)
    with torch.no_grad():
        x = embed_tokens(outer, wiring, torch.from_numpy(tokens.astype(np.int64)))
        for layer in kept:
            weights = load_weights(checkpoint, layer)
            name = f"blk.{layer}.{DOWN}"
            if changed and name in changed:
                weights[DOWN] = torch.from_numpy(changed[name])
            x = run_block(weights, wiring, layer, x)
        return torch.log_softmax(head_logits(outer, wiring, head_inputs(outer, wiring, x)), -1), x


def divergence(checkpoint: Checkpoint, tokens: Any, kept: Any) -> float:
    p, _ = predict(checkpoint, tokens, range(LAYERS))
    q, _ = predict(checkpoint, tokens, kept)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_blocks_that_are_missed_least_go_one_after_another(tmp_path: Path) -> None:
    """Held against every choice written out."""
    checkpoint, tokens = make_checkpoint(tmp_path), make_windows().calibration
    found = list(
        blocks_depth.choose_by_divergence(checkpoint, tokens, 2, SETTINGS, tmp_path, SILENT)
    )
    kept = list(range(LAYERS))
    for number, kl in found:
        each = {one: divergence(checkpoint, tokens, [k for k in kept if k != one]) for one in kept}
        assert number == min(each, key=lambda one: each[one])
        assert kl == pytest.approx(each[number], rel=1e-4)
        kept.remove(number)


def test_blocks_that_add_nothing_go_first_and_nothing_changes(tmp_path: Path) -> None:
    checkpoint, windows = make_checkpoint(tmp_path, quiet=(1, 2)), make_windows()
    short = depth.shorten_checkpoint(checkpoint, windows, tmp_path / "kept", count=2)
    assert {one.number for one in short.removed} == {1, 2}
    assert all(one.kl == pytest.approx(0, abs=1e-6) for one in short.removed)
    assert all(one.influence == pytest.approx(0, abs=1e-6) for one in short.removed)
    before, _ = predict(checkpoint, windows.calibration, range(LAYERS))
    after, _ = predict(short.checkpoint, windows.calibration, range(LAYERS - 2))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_influence_is_what_the_stream_turns_by(tmp_path: Path) -> None:
    checkpoint, tokens = make_checkpoint(tmp_path), make_windows().calibration
    found = blocks_depth.measure_influences(checkpoint, tokens, SETTINGS, tmp_path)
    for layer in range(LAYERS):
        x = predict(checkpoint, tokens, range(layer))[1].double().numpy()
        y = predict(checkpoint, tokens, range(layer + 1))[1].double().numpy()
        lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        assert found[layer] == pytest.approx(1 - np.mean((x * y).sum(-1) / lengths), rel=1e-4)


def test_a_large_model_is_judged_by_influence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, windows = make_checkpoint(tmp_path), make_windows()
    assert depth.forecast_depth(checkpoint, 2).passes == 10 + 6
    monkeypatch.setattr(depth, "MOST_WORK", 1.0)
    assert not depth.forecast_depth(checkpoint, 2).measured
    short = depth.shorten_checkpoint(checkpoint, windows, tmp_path / "kept", count=2)
    influences = blocks_depth.measure_influences(
        checkpoint, windows.calibration, SETTINGS, tmp_path
    )
    order = sorted(range(LAYERS), key=lambda one: influences[one])
    assert [one.number for one in short.removed] == order[:2]
    assert all(one.kl is None for one in short.removed)


@pytest.mark.parametrize(("share", "count"), [(0.25, 1), (0.3, 1), (0.4, 2), (0.5, 2), (0.99, 3)])
def test_a_share_becomes_the_nearest_number_of_blocks(
    tmp_path: Path, share: float, count: int
) -> None:
    assert depth.count_removed(make_checkpoint(tmp_path), share) == count


def test_what_cannot_be_asked_for_is_said(tmp_path: Path) -> None:
    checkpoint, windows = make_checkpoint(tmp_path), make_windows()
    with pytest.raises(WrongUsage, match=r"has 4 blocks, of which .* give at least 12%"):
        depth.count_removed(checkpoint, 0.05)
    for removed in ([4], [0, 1, 2, 3]):
        with pytest.raises(WrongUsage, match="has 0 to 3, of which one must stay"):
            depth.shorten_checkpoint(checkpoint, windows, tmp_path, removed=removed)


# Making up for what went ------------------------------------------------------------------------


def refit(checkpoint: Checkpoint, tokens: Any, removed: set[int], folder: Path) -> dict[str, Any]:
    return dict(blocks_depth.refit_outputs(checkpoint, tokens, removed, SETTINGS, folder, SILENT))


def test_the_refit_is_the_damped_least_squares_solution(tmp_path: Path) -> None:
    """Solved again with all rows at once, the damping as rows of their own."""
    checkpoint, tokens = make_checkpoint(tmp_path), make_windows().calibration
    name = f"blk.0.{DOWN}"
    found = refit(checkpoint, tokens, {1}, tmp_path)[name]
    weights, wiring = load_weights(checkpoint, 0), read_wiring(checkpoint)
    _, entering = predict(checkpoint, tokens, [])
    _, target = predict(checkpoint, tokens, [0, 1])
    seen = {}
    with torch.no_grad():
        for site in blocks_depth.walk_block(weights, wiring, 0, entering):
            seen[site.names[0]] = site
    h = seen[DOWN].inputs.double().numpy().reshape(-1, HIDDEN)
    gap = (target - seen[DOWN].stream).double().numpy().reshape(-1, WIDTH)
    given = weights[DOWN].double().numpy()
    pull = np.sqrt(blocks_depth.DAMPING * np.mean((h**2).sum(0)))
    rows = np.concatenate([h, pull * np.eye(HIDDEN)])
    aims = np.concatenate([gap, pull * given.T])
    expected = np.linalg.lstsq(rows, aims, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_refit_never_raises_the_error_that_it_lowers(tmp_path: Path, seed: int) -> None:
    checkpoint, tokens = make_checkpoint(tmp_path, seed=seed), make_windows().calibration
    removed = {2} if seed % 2 else {1, 2}
    before_gap = min(removed) - 1
    kept = range(before_gap + 1)
    changed = refit(checkpoint, tokens, removed, tmp_path)
    _, target = predict(checkpoint, tokens, range(max(removed) + 1))
    plain, fitted = (predict(checkpoint, tokens, kept, one)[1] for one in (None, changed))
    assert ((fitted - target) ** 2).sum() <= ((plain - target) ** 2).sum()


def test_a_refit_that_does_worse_on_other_text_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, windows = make_checkpoint(tmp_path), make_windows()
    name = f"blk.1.{DOWN}"
    for worse in (False, True):

        def fit(*_: Any, worse: bool = worse) -> Any:
            yield name, checkpoint.read(name) * (50 if worse else 1)

        monkeypatch.setattr(blocks_depth, "refit_outputs", fit)
        # As good as none is not better either.
        short = depth.shorten_checkpoint(checkpoint, windows, tmp_path / f"{worse}", removed=[2])
        assert short.refitted == ()
        np.testing.assert_array_equal(short.checkpoint.read(name), checkpoint.read(name))


def test_streams_are_compared_with_the_original(tmp_path: Path) -> None:
    checkpoint, tokens = make_checkpoint(tmp_path), make_windows().calibration
    others = [drop_blocks(checkpoint, gone) for gone in ((), (0, 2), (3,))]
    found = blocks_depth.compare_streams(checkpoint, others, tokens, SETTINGS, tmp_path)
    kept = ([0, 1, 2, 3], [1, 3], [0, 1, 2])
    expected = [divergence(checkpoint, tokens, one) for one in kept]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


# Done again -------------------------------------------------------------------------------------


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.tensors}


def test_a_killed_run_and_a_recipe_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, windows = make_checkpoint(tmp_path), make_windows()
    first = depth.shorten_checkpoint(checkpoint, windows, tmp_path / "one", count=2)
    numbers = [one.number for one in first.removed]
    by_recipe = depth.shorten_checkpoint(checkpoint, windows, tmp_path / "two", removed=numbers)
    assert contents(by_recipe.checkpoint) == contents(first.checkpoint)
    assert by_recipe.checkpoint.fingerprint == first.checkpoint.fingerprint
    assert [one.kl for one in by_recipe.removed] == [None, None]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this was found out before")

    with monkeypatch.context() as patched:
        patched.setattr(blocks_depth, "choose", never)
        patched.setattr(blocks_depth, "refit_outputs", never)
        again = depth.shorten_checkpoint(checkpoint, windows, tmp_path / "one", count=2)
        assert again.removed == first.removed
        assert contents(again.checkpoint) == contents(first.checkpoint)
        other = replace(windows, calibration=windows.calibration[:-1])
        with pytest.raises(AssertionError, match="found out before"):
            depth.shorten_checkpoint(checkpoint, other, tmp_path / "one", count=2)
    path = tmp_path / "one" / depth_plan.TENSORS
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    mended = depth.shorten_checkpoint(checkpoint, windows, tmp_path / "one", count=2)
    assert contents(mended.checkpoint) == contents(first.checkpoint)


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"key": "k"}', '{"key": "k", "digest": 3}', "[" * 100_000]
)
def test_a_damaged_plan_counts_for_nothing(tmp_path: Path, said: str) -> None:
    (tmp_path / depth_plan.SAID).write_text(said)
    (tmp_path / depth_plan.TENSORS).touch()
    assert depth_plan.read_plan(tmp_path, "k") is None


def test_a_plan_is_read_as_it_was_kept(tmp_path: Path) -> None:
    removed = (depth_plan.RemovedBlock(3, 0.1, 0.2), depth_plan.RemovedBlock(1))
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((1, 2), "f4")}
    kept = depth_plan.write_tensors(tmp_path, removed, iter(tensors.items()))
    depth_plan.keep_plan(tmp_path, "k", kept)
    assert depth_plan.read_plan(tmp_path, "k") == kept and kept.tensors["b"].offset == 24
    said = json.loads((tmp_path / depth_plan.SAID).read_text())
    assert said["removed"][1] == {"number": 1, "influence": None, "kl": None}
    assert depth_plan.read_plan(tmp_path, "other") is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnusableOutput, match="file/in cannot be written"):
        depth_plan.write_tensors(tmp_path / "file" / "in", (), ())


def test_the_states_fit_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in files gives the same, and is gone at the end."""
    checkpoint, tokens = make_checkpoint(tmp_path), make_windows().calibration
    spilled = []
    begin = States.__init__

    def watched(self: States, *size: Any, **options: Any) -> None:
        begin(self, *size, **options)
        spilled.append(self.spilled)

    monkeypatch.setattr(States, "__init__", watched)
    found = [
        list(blocks_depth.choose_by_divergence(checkpoint, tokens, 1, one, tmp_path, SILENT))
        for one in (SETTINGS, Settings(states_bytes=1))
    ]
    assert found[0] == found[1] and any(spilled) and not all(spilled)
    assert not list(tmp_path.glob("*.tmp"))
