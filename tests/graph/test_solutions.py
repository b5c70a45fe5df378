"""What a choice costs a layer: the error that the written file shows, and the bits of its codes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from graph_bench import Bench
from numpy.typing import NDArray

from packlight.graph.apply import Weights, apply_recipe, why_not
from packlight.graph.layers import find_layers, weight_matrix
from packlight.graph.model import Model
from packlight.graph.observe import Observations
from packlight.graph.solutions import Solution, find_solutions
from packlight.recipe import Recipe

Array = NDArray[Any]
WORDS = (
    "float16",
    "weights-int8",
    "weights-int4",
    "weights-int2",
    "weights-nf4",
    "weights-shared3",
    "weights-coded2",
    "weights-int4-blocks",
)


def product(bench: Bench, *, alpha: float = 1.0) -> tuple[Model, NDArray[np.float32]]:
    """One Gemm [40 -> 6] and rows with much in common that reach it."""
    random = np.random.default_rng(2)
    w = random.standard_normal((40, 6)).astype(np.float32)
    text = f"g (float[n, 40] x) => (float[n, 6] y) {{ [g] y = Gemm <alpha = {alpha}> (x, w) }}"
    x = random.standard_normal((80, 4)) @ random.standard_normal((4, 40))
    x += 0.2 * random.standard_normal(x.shape)
    return bench.model(text, w=w), x.astype(np.float32)


def solve(
    bench: Bench, model: Model, x: Array | None, words: tuple[str, ...], weights: Weights
) -> tuple[dict[tuple[str, str], Solution], Observations]:
    seen = Observations() if x is None else bench.observe(model, {"x": x})
    names = [layer.name for layer in find_layers(model.ir)]
    wanted = dict.fromkeys(names, words)
    return find_solutions(model.ir, wanted, Recipe(), seen, weights), seen


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("word", WORDS)
def test_the_error_is_that_of_the_written_file(bench: Bench, word: str, alpha: float) -> None:
    """tr((W - V) H (W - V)^T) is the mean square of what the runtime gives otherwise."""
    model, x = product(bench, alpha=alpha)
    if why_not(find_layers(model.ir)[0], word):
        pytest.skip("a product in blocks has no alpha")
    weights = Weights()
    found, seen = solve(bench, model, x, (word,), weights)
    recipe = Recipe(layers=(("g", word),))
    # In blocks, without rounding the activations as well.
    graph, _ = apply_recipe(model.ir, recipe, seen, accuracy_level=0, weights=weights)
    made = bench.run(bench.save(graph), {"x": x})[0].astype(np.float64)
    wanted = bench.run(model, {"x": x})[0]
    error = float(np.square(made - wanted).sum() / len(x))
    assert found["g", word].error == pytest.approx(error, rel=0.02, abs=1e-9)


def test_codes_in_integers_have_the_error_of_their_weights(bench: Bench) -> None:
    """Of the weights alone, whatever rounding activations adds."""
    model, x = product(bench)
    weights = Weights()
    found, _ = solve(bench, model, x, ("int8", "int4", "int2"), weights)
    layer = find_layers(model.ir)[0]
    rows = x.astype(np.float64)
    for bits in (8, 4, 2):
        one = weights.rounded_for(Recipe(), bits)["g"]
        apart = weight_matrix(layer) - one.codes * one.scale[:, None].astype(np.float64)
        error = np.square(rows @ apart.T).sum() / len(rows)
        assert found["g", f"int{bits}"].error == pytest.approx(error, rel=1e-3)


def test_bits_are_the_entropy_of_the_codes_and_the_scales(bench: Bench) -> None:
    model, x = product(bench)
    weights = Weights()
    found, _ = solve(bench, model, x, ("float32", "float16", "int8", "int3"), weights)
    assert found["g", "float32"] == Solution(0.0, 32.0 * 240)
    assert found["g", "float16"].bits == 16 * 240
    for bits in (8, 3):
        codes = weights.rounded_for(Recipe(), bits)["g"].codes.ravel()
        shares = np.array(list(Counter(codes.tolist()).values())) / codes.size
        ideal = -codes.size * float(np.sum(shares * np.log2(shares)))
        assert found["g", f"int{bits}"].bits == pytest.approx(ideal + 32 * 6, rel=1e-6)


def test_fewer_bits_cost_more_error_and_less_room(bench: Bench) -> None:
    model, x = product(bench)
    words = tuple(f"weights-int{bits}" for bits in (8, 6, 4, 3, 2))
    found, _ = solve(bench, model, x, words, Weights())
    errors = [found["g", word].error for word in words]
    bits = [found["g", word].bits for word in words]
    assert errors == sorted(errors) and bits == sorted(bits, reverse=True)


def test_without_samples_the_error_is_that_of_the_weights(bench: Bench) -> None:
    model, _ = product(bench)
    weights = Weights()
    found, _ = solve(bench, model, None, ("int4",), weights)
    one = weights.rounded_for(Recipe(), 4)["g"]
    apart = weight_matrix(find_layers(model.ir)[0]) - one.codes * one.scale[:, None]
    assert found["g", "int4"].error == pytest.approx(float(np.square(apart).sum()), rel=1e-5)


def test_what_is_rounded_is_not_rounded_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packlight.graph.rewrite import weights as room

    model, x = product(bench)
    weights = Weights()
    words = ("int4", "int8", "weights-int3")
    _, seen = solve(bench, model, x, words, weights)

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("it was rounded before")

    monkeypatch.setattr(room, "round_matrix", fail)
    for word in words:
        apply_recipe(model.ir, Recipe(layers=(("g", word),)), seen, weights=weights)


@pytest.mark.parametrize("word", ["float16", "weights-int4", "weights-nf4", "weights-coded2"])
def test_the_error_of_a_layer_with_groups_is_what_the_runtime_gives(
    bench: Bench, word: str
) -> None:
    random = np.random.default_rng(0)
    model = bench.model(
        """g (float[n,12,9,9] x) => (float[n,12,7,7] y) {
            [grouped] y = Conv <group = 4> (x, w) }""",
        w=random.standard_normal((12, 3, 3, 3)).astype(np.float32),
    )
    x = random.standard_normal((64, 12, 9, 9)).cumsum(axis=2).cumsum(axis=3).astype(np.float32)
    seen = bench.observe(model, {"x": x})
    recipe = Recipe(layers=(("grouped", word),))
    found = find_solutions(model.ir, {"grouped": [word]}, recipe, seen, Weights())
    whole = bench.run(model, {"x": x})[0]
    got = bench.run(bench.apply(model, word, observations=seen), {"x": x})[0]
    error = np.square(got - whole).mean(axis=(0, 2, 3)).sum()
    assert found["grouped", word].error == pytest.approx(error, rel=1e-3)
