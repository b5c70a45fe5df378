from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks are computed with PyTorch")

from packlight.errors import UnusableModel  # noqa: E402
from packlight.llm.blocks import Tensor, run_block  # noqa: E402
from packlight.llm.blocks_states import States  # noqa: E402
from packlight.llm.blocks_wiring import Rotary, Wiring, plain_frequencies  # noqa: E402
from packlight.llm.calibrate import calibrate_block  # noqa: E402

WIDTH, HIDDEN, LENGTH, WINDOWS = 16, 24, 12, 6
WIRING = Wiring(
    width=WIDTH,
    heads=2,
    key_heads=1,
    head_size=8,
    rotary=(Rotary("neighbours", 8, plain_frequencies(1e4, 8)),),
    window=(None,),
    attention_scale=8**-0.5,
    experts_used=2,
)
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
LINEAR = [name for name, shape in SHAPES.items() if len(shape) == 2]


def random_block(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.4
        if len(shape) > 1
        else 1 + 0.1 * torch.randn(shape, generator=generator)
        for name, shape in SHAPES.items()
    }


def random_states(seed: int = 1) -> States:
    states = States(WINDOWS, LENGTH, WIDTH)
    generator = torch.Generator().manual_seed(seed)
    states.write(slice(0, WINDOWS), torch.randn((WINDOWS, LENGTH, WIDTH), generator=generator))
    return states


def each(solve: Callable[[str, Any, Any], Any]) -> Any:
    """Weights that read the same, each rounded by itself."""
    return lambda weights, moments: {
        name: solve(name, weight, moments) for name, weight in weights.items()
    }


def coarse(name: str, weight: Any, moments: Any) -> Any:
    return (np.round(weight * 4) / 4).astype(np.float32)


def by_hand(block: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """What reaches each group, written out another way: no rotation, no heads in groups."""
    eps = WIRING.norm_epsilon

    def norm(v: Tensor, scale: Tensor) -> Tensor:
        return v / torch.sqrt((v**2).mean(-1, keepdim=True) + eps) * scale

    def turn(v: Tensor) -> Tensor:
        out = torch.empty_like(v)
        for t in range(LENGTH):
            for i in range(4):
                angle = torch.tensor(t * 1e4 ** (-2 * i / 8))
                a, b = v[:, t, 2 * i], v[:, t, 2 * i + 1]
                out[:, t, 2 * i] = a * angle.cos() - b * angle.sin()
                out[:, t, 2 * i + 1] = a * angle.sin() + b * angle.cos()
        return out

    a = norm(x, block["attn_norm.weight"])
    q, k, v = (a @ block[f"attn_{one}.weight"].T for one in "qkv")
    k = turn(k)
    mask = torch.tril(torch.ones(LENGTH, LENGTH)) == 0
    heads = []
    for head in range(2):
        scores = turn(q[..., head * 8 : head * 8 + 8]) @ k.mT / 8**0.5
        heads.append(torch.softmax(scores.masked_fill(mask, -1e30), -1) @ v)
    c = torch.cat(heads, -1)
    r = x + c @ block["attn_output.weight"].T
    f = norm(r, block["ffn_norm.weight"])
    h = torch.nn.functional.silu(f @ block["ffn_gate.weight"].T) * (f @ block["ffn_up.weight"].T)
    out = r + h @ block["ffn_down.weight"].T
    return {"qkv": a, "output": c, "gate": f, "down": h, "out": out}


def second(x: Tensor) -> Any:
    rows = x.reshape(-1, x.shape[-1]).double().numpy()
    return rows.T @ rows / len(rows)


def test_each_group_sees_what_the_compressed_ones_before_it_give():
    block = random_block()
    seen: dict[str, Any] = {}

    def solve(name: str, weight: Any, moments: Any) -> Any:
        seen[name] = moments
        return coarse(name, weight, moments)

    with random_states() as states:
        x = states.read(slice(0, WINDOWS))
        current = calibrate_block(
            block, WIRING, 0, states, None, each(solve), wanted=LINEAR, batch_tokens=24
        )
        after = states.read(slice(0, WINDOWS))
    stage = dict(block)
    groups = {
        "qkv": ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        "output": ("attn_output.weight",),
        "gate": ("ffn_gate.weight", "ffn_up.weight"),
        "down": ("ffn_down.weight",),
    }
    for group, names in groups.items():
        expected = second(by_hand(stage, x)[group])
        for name in names:
            np.testing.assert_allclose(seen[name], expected, rtol=1e-4, atol=1e-5)
            stage[name] = torch.from_numpy(coarse(name, block[name].numpy(), None))
    for name in LINEAR:
        assert torch.equal(current[name], stage[name])
    torch.testing.assert_close(after, by_hand(stage, x)["out"], rtol=1e-4, atol=1e-4)


def drift(aim: str, pull: float = 1e-6) -> float:
    """How far a block's outputs end from the original's, whose inputs were others already."""
    block = random_block()
    states, original = random_states(), random_states()
    every = slice(0, WINDOWS)
    disturbed = states.read(every)
    generator = torch.Generator().manual_seed(7)
    states.write(every, disturbed + 0.2 * torch.randn(disturbed.shape, generator=generator))

    def exact(weights: Any, moments: Any) -> Any:
        return weights

    calibrate_block(
        block,
        WIRING,
        0,
        states,
        original,
        exact,
        wanted=LINEAR,
        aim=aim,
        pull=pull,  # type: ignore[arg-type]
    )
    gap = states.read(every) - original.read(every)
    return float((gap**2).mean())


def test_aims_make_up_for_what_was_wrong_before():
    own, outputs, stream = (drift(aim) for aim in ("own", "outputs", "stream"))
    assert outputs < own
    assert stream < outputs


def test_what_is_finished_is_not_rounded_again_and_counts():
    block, called = random_block(), []

    def solve(name: str, weight: Any, moments: Any) -> Any:
        called.append(name)
        return coarse(name, weight, moments)

    with random_states() as states:
        whole = calibrate_block(block, WIRING, 0, states, None, each(solve), wanted=LINEAR)
        outputs = states.read(slice(0, WINDOWS))
    some = ["attn_q.weight", "attn_k.weight", "ffn_gate.weight"]
    finished = {name: whole[name].numpy() for name in some}
    called.clear()
    with random_states() as states:
        again = calibrate_block(
            block, WIRING, 0, states, None, each(solve), wanted=LINEAR, finished=finished
        )
        assert torch.equal(states.read(slice(0, WINDOWS)), outputs)
    assert called == [name for name in LINEAR if name not in some]
    assert all(torch.equal(again[name], whole[name]) for name in LINEAR)


def test_experts_see_their_own_tokens():
    generator = torch.Generator().manual_seed(3)
    block = {name: one for name, one in random_block().items() if not name.startswith("ffn_")}
    block["ffn_norm.weight"] = torch.ones(WIDTH)
    block["ffn_gate_inp.weight"] = torch.randn((3, WIDTH), generator=generator)
    for part, shape in (
        ("gate", (HIDDEN, WIDTH)),
        ("up", (HIDDEN, WIDTH)),
        ("down", (WIDTH, HIDDEN)),
    ):
        block[f"ffn_{part}_exps.weight"] = torch.randn((3, *shape), generator=generator) * 0.3
    seen: dict[str, Any] = {}

    def solve(name: str, weight: Any, moments: Any) -> Any:
        seen[name] = moments
        return weight

    wanted = [name for name, one in block.items() if one.ndim == 3]
    with random_states() as states:
        x = states.read(slice(0, WINDOWS))
        calibrate_block(block, WIRING, 0, states, None, each(solve), wanted=wanted)
    sums = run_to_router(block, x)
    shares = torch.softmax(sums @ block["ffn_gate_inp.weight"].T, -1)
    chosen = torch.topk(shares, 2).indices
    for e in range(3):
        rows = sums[(chosen == e).any(-1)]
        np.testing.assert_allclose(
            seen["ffn_up_exps.weight"][e], second(rows), rtol=1e-4, atol=1e-5
        )


def run_to_router(block: dict[str, Tensor], x: Tensor) -> Tensor:
    dense = {**random_block(), **{n: w for n, w in block.items() if w.ndim < 3}}
    return by_hand(dense, x)["gate"].reshape(-1, WIDTH)


def test_states_that_are_not_finite_are_refused_by_block_and_tensor():
    with random_states() as states:
        x = states.read(slice(0, 1))
        x[0, 3, 2] = float("nan")
        states.write(slice(0, 1), x)
        with pytest.raises(UnusableModel, match=r"block 0: .*attn_q\.weight.*NaN"):
            calibrate_block(random_block(), WIRING, 0, states, None, each(coarse), wanted=LINEAR)


def test_states_above_a_limit_lie_in_a_file_that_goes(tmp_path: Path):
    states = States(4, 8, 16, scratch=tmp_path, limit_bytes=100)
    x = torch.randn((2, 8, 16))
    states.write(slice(1, 3), x)
    assert states.spilled
    assert torch.equal(states.read(slice(1, 3)), x)
    assert list(tmp_path.iterdir())
    states.close()
    assert not list(tmp_path.iterdir())


def test_batches_change_nothing_that_matters():
    block = random_block()
    found = []
    for tokens in (LENGTH, LENGTH * WINDOWS):
        with random_states() as states:
            calibrate_block(
                block, WIRING, 0, states, None, each(coarse), wanted=LINEAR, batch_tokens=tokens
            )
            found.append(states.read(slice(0, WINDOWS)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert run_block(block, WIRING, 0, found[0]).shape == found[0].shape


@pytest.mark.parametrize("room", [1 << 15, 1 << 30])
def test_windows_that_wait_give_the_same(room: int) -> None:
    found = []
    for waiting in (0, room):
        with random_states() as states:
            current = calibrate_block(
                random_block(),
                WIRING,
                0,
                states,
                None,
                each(coarse),
                wanted=LINEAR,
                batch_tokens=16,
                waiting_bytes=waiting,
            )
            found.append([*current.values(), states.read(slice(0, WINDOWS))])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
