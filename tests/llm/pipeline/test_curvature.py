from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")

from packlight.llm import calibrate_head  # noqa: E402
from packlight.llm.blocks import (  # noqa: E402
    Tensor,
    embed_tokens,
    head_inputs,
    head_logits,
    run_block,
)
from packlight.llm.blocks_wiring import Rotary, Wiring, plain_frequencies  # noqa: E402
from packlight.llm.calibrate_curvature import (  # noqa: E402
    _agreed,
    choose_windows,
    estimate_losses,
)

WIDTH, HIDDEN, VOCABULARY, LAYERS = 16, 24, 20, 2
ROTARY = Rotary("halves", 8, plain_frequencies(1e4, 8))
WIRING = Wiring(
    width=WIDTH,
    heads=2,
    key_heads=2,
    head_size=8,
    rotary=(ROTARY,) * LAYERS,
    window=(None,) * LAYERS,
    attention_scale=8**-0.5,
)
SHAPES = {
    **{f"attn_{one}.weight": (WIDTH, WIDTH) for one in ("q", "k", "v", "output")},
    "ffn_gate.weight": (HIDDEN, WIDTH),
    "ffn_up.weight": (HIDDEN, WIDTH),
    "ffn_down.weight": (WIDTH, HIDDEN),
}


def random_model(tied: bool) -> dict[int | None, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.4

    model: dict[int | None, dict[str, Tensor]] = {}
    for layer in range(LAYERS):
        model[layer] = {name: draw(*shape) for name, shape in SHAPES.items()}
        model[layer] |= {f"{n}_norm.weight": torch.ones(WIDTH) for n in ("attn", "ffn")}
    model[None] = {
        "token_embd.weight": draw(VOCABULARY, WIDTH),
        "output_norm.weight": torch.ones(WIDTH),
    }
    if not tied:
        model[None]["output.weight"] = draw(VOCABULARY, WIDTH)
    return model


def log_shares(model: Mapping[int | None, Mapping[str, Tensor]], tokens: Tensor) -> Tensor:
    x = embed_tokens(model[None], WIRING, tokens)
    for layer in range(LAYERS):
        x = run_block(model[layer], WIRING, layer, x)
    logits = head_logits(model[None], WIRING, head_inputs(model[None], WIRING, x))
    return torch.log_softmax(logits.double(), -1)


def short(name: str) -> tuple[int | None, str]:
    if not name.startswith("blk."):
        return None, name
    _, layer, own = name.split(".", 2)
    return int(layer), own


@pytest.mark.parametrize(("tied", "logits"), [(False, 1 << 23), (True, 1 << 23), (True, 50)])
def test_estimates_are_near_the_divergence_of_small_changes(
    monkeypatch: pytest.MonkeyPatch, tied: bool, logits: int
):
    monkeypatch.setattr(calibrate_head, "HEAD_LOGITS", logits)
    model = random_model(tied)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (256, 16)).astype(np.int32)
    names = [f"blk.{layer}.{one}" for layer in range(LAYERS) for one in SHAPES]
    names += list(model[None])[:1] + ([] if tied else ["output.weight"])
    noise = {}
    for number, name in enumerate(names):
        layer, own = short(name)
        generator = torch.Generator().manual_seed(100 + number)
        noise[name] = torch.randn(model[layer][own].shape, generator=generator) * 0.02

    def change(name: str, weight: Tensor, moments: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        # Of the head and the embedding some rows are asked for, in the order that they have there.
        whole = model[short(name)[0]][short(name)[1]]
        at = (weight[:, None, 0] == whole[None, :, 0]).nonzero()[:, 1]
        yield "small", weight + noise[name][at]
        yield "large", weight + 2 * noise[name][at]

    losses = estimate_losses(
        lambda layer: model[layer], WIRING, tokens, change, wanted=lambda name: name in names
    )
    assert set(losses) == set(names)
    ids = torch.from_numpy(tokens.astype(np.int64))
    ratios = {}
    with torch.no_grad():
        original = log_shares(model, ids)
        for name in names:
            layer, own = short(name)
            changed = {**model, layer: {**model[layer], own: model[layer][own] + noise[name]}}
            gap = original.exp() * (original - log_shares(changed, ids))
            ratios[name] = losses[name]["small"] / float(gap.sum(-1).mean())
            assert losses[name]["large"] == pytest.approx(4 * losses[name]["small"], rel=1e-3)
    found = np.array(list(ratios.values()))
    assert 0.8 < np.exp(np.log(found).mean()) < 1.25, ratios
    assert found.min() > 0.4, ratios
    assert found.max() < 2.5, ratios
    if not tied:  # there nothing is drawn and nothing factored
        assert ratios["output.weight"] == pytest.approx(1, rel=0.02)


def test_windows_are_spread_and_few():
    tokens = np.arange(40, dtype=np.int32).reshape(10, 4)
    few = choose_windows(tokens, 12)
    assert few.shape == (3, 4)
    assert few[0, 0] == 0
    assert choose_windows(tokens, 1).shape == (1, 4)
    assert choose_windows(tokens, 10_000).shape == (10, 4)


def test_slopes_are_shrunk_to_what_halves_of_the_tokens_agree_on():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn((4000, 12), generator=generator).double()
    mixing = torch.randn((12, 12), generator=generator).double()
    for rows, least, most in ((draw @ mixing, 0.95, 1.0), (draw[:60], 0.0, 0.5)):
        halves = [half.T @ half for half in rows.chunk(2)]
        plain = (halves[0] + halves[1]) / len(rows)
        found = torch.from_numpy(_agreed(halves, len(rows))).double()
        torch.testing.assert_close(found.diagonal(), plain.diagonal(), rtol=1e-5, atol=1e-6)
        apart = ~torch.eye(12, dtype=torch.bool)
        share = found[apart] / plain[apart]
        assert float(share.max() - share.min()) < 1e-4
        assert least <= float(share.mean()) <= most
