from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")

from packlight.llm import calibrate_head  # noqa: E402
from packlight.llm.blocks import Tensor, head_inputs  # noqa: E402
from packlight.llm.blocks_states import States  # noqa: E402
from packlight.llm.blocks_wiring import Rotary, Wiring, plain_frequencies  # noqa: E402
from packlight.llm.calibrate_head import (  # noqa: E402
    embedding_losses,
    head_losses,
    head_slopes,
)

WIDTH, VOCABULARY, WINDOWS, LENGTH = 8, 50, 6, 10
WIRING = Wiring(
    width=WIDTH,
    heads=1,
    key_heads=1,
    head_size=8,
    rotary=(Rotary("halves", 8, plain_frequencies(1e4, 8)),),
    window=(None,),
    attention_scale=8**-0.5,
    final_softcap=3.0,
    embedding_scale=2.0,
)


@pytest.fixture
def outer() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "token_embd.weight": torch.randn((VOCABULARY, WIDTH), generator=draw),
        "output.weight": torch.randn((VOCABULARY, WIDTH), generator=draw),
        "output.bias": torch.randn(VOCABULARY, generator=draw),
        "output_norm.weight": 1 + 0.2 * torch.randn(WIDTH, generator=draw),
    }


@pytest.fixture
def states() -> Iterator[States]:
    with States(WINDOWS, LENGTH, WIDTH) as found:
        draw = torch.Generator().manual_seed(1)
        found.write(slice(None), torch.randn((WINDOWS, LENGTH, WIDTH), generator=draw))
        yield found


def round_rows(name: str, weight: Tensor, moments: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Row by row, as GGUF's types do."""
    yield "halves", (2 * weight).round() / 2
    yield "tenths", (10 * weight).round() / 10


def logits_of(outer: dict[str, Tensor], states: Tensor) -> Tensor:
    """Written down once more, in double precision, of all words and tokens."""
    x = states.double()
    x = x * torch.rsqrt((x**2).mean(-1, keepdim=True) + WIRING.norm_epsilon)
    x = x * outer["output_norm.weight"].double()
    plain = x @ outer["output.weight"].double().T + outer["output.bias"].double()
    return 3.0 * torch.tanh(plain / 3.0)


@pytest.mark.parametrize(("logits", "words"), [(1 << 23, 1024), (64, 7), (1, 1)])
def test_the_heads_losses_are_the_variance_of_changed_logits(
    monkeypatch: pytest.MonkeyPatch,
    outer: dict[str, Tensor],
    states: States,
    logits: int,
    words: int,
) -> None:
    monkeypatch.setattr(calibrate_head, "HEAD_LOGITS", logits)
    monkeypatch.setattr(calibrate_head, "HEAD_WORDS", words)
    monkeypatch.setattr(calibrate_head, "GRADIENT_TOKENS", 2 * LENGTH)
    with torch.no_grad(), States(WINDOWS, LENGTH, WIDTH) as slopes:
        log_sums = head_slopes(outer, WIRING, states, slopes, seed=0)
        found = head_losses(outer, WIRING, states, log_sums, round_rows)
        z = logits_of(outer, states.read(slice(None))).flatten(0, -2)
        torch.testing.assert_close(log_sums.double(), z.logsumexp(-1), rtol=1e-5, atol=1e-5)
        x = head_inputs(outer, WIRING, states.read(slice(None))).flatten(0, -2).double()
        share = z.softmax(-1)
        for kind, near in round_rows("", outer["output.weight"], None):
            moved = (x @ (outer["output.weight"] - near).double().T) * (1 - (z / 3) ** 2)
            mean = (share * moved).sum(-1)
            variance = (share * moved**2).sum(-1) - mean**2
            assert found[kind] == pytest.approx(0.5 * float(variance.mean()), rel=1e-4)


def test_slopes_are_those_of_words_drawn_from_the_predictions(
    monkeypatch: pytest.MonkeyPatch, outer: dict[str, Tensor], states: States
) -> None:
    monkeypatch.setattr(calibrate_head, "HEAD_LOGITS", 3 * VOCABULARY)
    x = states.read(slice(None)).flatten(0, -2).double().requires_grad_()
    z = logits_of(outer, x)
    own = torch.stack(
        [torch.autograd.grad(z[:, word].sum(), x, retain_graph=True)[0] for word in range(50)]
    )
    share = z.detach().softmax(-1)
    expected = own - torch.einsum("tv,vtw->tw", share, own)  # of each word, [words, tokens, width]
    counts = torch.zeros(len(x), VOCABULARY, dtype=torch.float64)
    with torch.no_grad(), States(WINDOWS, LENGTH, WIDTH) as slopes:
        for seed in range(200):
            head_slopes(outer, WIRING, states, slopes, seed=seed)
            found = slopes.read(slice(None)).flatten(0, -2).double()
            far = (expected - found).norm(dim=-1)
            assert float(far.min(0).values.max()) < 1e-4
            counts[torch.arange(len(x)), far.argmin(0)] += 1
    # A binomial count is within five of its standard deviations, and one, of what is expected.
    spread = 5 * (200 * share * (1 - share)).sqrt() + 1
    assert bool(((counts - 200 * share).abs() <= spread).all())


@pytest.mark.parametrize("words", [1024, 3])
def test_the_embeddings_losses_are_those_of_the_rows_that_the_text_reads(
    monkeypatch: pytest.MonkeyPatch, outer: dict[str, Tensor], states: States, words: int
) -> None:
    monkeypatch.setattr(calibrate_head, "HEAD_WORDS", words)
    monkeypatch.setattr(calibrate_head, "GRADIENT_TOKENS", 2 * LENGTH)
    tokens = np.random.default_rng(0).integers(3, 30, (WINDOWS, LENGTH)).astype(np.int32)
    slopes = states  # any numbers
    found = embedding_losses(outer, WIRING, tokens, slopes, round_rows)
    table = outer["token_embd.weight"]
    for kind, near in round_rows("", table, None):
        moved = 2.0 * (table - near).double()[torch.from_numpy(tokens).long()]
        by_hand = 0.5 * ((moved * slopes.read(slice(None))).sum(-1) ** 2).mean()
        assert found[kind] == pytest.approx(float(by_hand), rel=1e-5)


def test_rows_that_no_text_reads_are_not_rounded(outer: dict[str, Tensor], states: States) -> None:
    seen = []

    def count(name: str, weight: Tensor, moments: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        seen.append(len(weight))
        yield "same", weight

    tokens = np.full((WINDOWS, LENGTH), 7, np.int32)
    assert embedding_losses(outer, WIRING, tokens, states, count) == {"same": 0.0}
    assert seen == [1]
