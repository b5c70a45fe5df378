"""Recurrent layers: PyTorch's own where the defaults hold, else step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from packlight.graph.torch.operators import elementwise
from packlight.graph.torch.operators.indexing import reverse_times
from packlight.graph.torch.values import Tensor

Activation = Callable[[Tensor], Tensor]

# Which of alpha and beta each activation takes.
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "relu": (torch.relu, ()),
    "tanh": (torch.tanh, ()),
    "sigmoid": (torch.sigmoid, ()),
    "softsign": (functional.softsign, ()),
    "softplus": (elementwise.softplus, ()),
    "affine": (elementwise.affine, ("alpha", "beta")),
    "leakyrelu": (elementwise.leaky_relu, ("alpha",)),
    "thresholdedrelu": (elementwise.thresholded_relu, ("alpha",)),
    "scaledtanh": (elementwise.scaled_tanh, ("alpha", "beta")),
    "hardsigmoid": (elementwise.hard_sigmoid, ("alpha", "beta")),
    "elu": (elementwise.elu, ("alpha",)),
}


def _activations(
    names: Sequence[str], alpha: Sequence[float] | None, beta: Sequence[float] | None
) -> list[Activation]:
    """The functions named, each with the next alpha and beta if it takes them."""
    left = {"alpha": list(alpha or ()), "beta": list(beta or ())}
    found: list[Activation] = []
    for name in names:
        function, takes = _ACTIVATIONS[name.lower()]
        keywords = {key: left[key].pop(0) for key in takes if left[key]}
        found.append(partial(function, **keywords) if keywords else function)
    return found


def _limit(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else x.clamp(-clip, clip)


def _directions(direction: str) -> list[bool]:
    """Of each direction whether it runs backwards."""
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]


class _Given:
    """The inputs of a recurrent layer with times first, and defaults filled in."""

    def __init__(
        self,
        X: Tensor,
        R: Tensor,
        B: Tensor | None,
        sequence_lens: Tensor | None,
        initial_h: Tensor | None,
        layout: int,
        gates: int,
    ) -> None:
        self.layout = layout
        self.x = X.transpose(0, 1) if layout else X  # [time, batch, in]
        directions, self.hidden = R.shape[0], R.shape[-1]
        shape = (directions, self.x.shape[1], self.hidden)
        self.zeros = X.new_zeros(shape)
        if initial_h is None:
            self.h = self.zeros
        else:
            self.h = initial_h.transpose(0, 1) if layout else initial_h
        self.bias = X.new_zeros((directions, 2 * gates * self.hidden)) if B is None else B
        self.lengths = sequence_lens
        on_host = sequence_lens is not None and sequence_lens.device.type == "cpu"
        if on_host and bool((sequence_lens == self.x.shape[0]).all()):  # type: ignore[union-attr]
            self.lengths = None

    def turned(self, x: Tensor) -> Tensor:
        """Times backwards, each sequence within its length."""
        return x.flip(0) if self.lengths is None else reverse_times(x, self.lengths)

    def alive(self, time: int) -> Tensor | None:
        """Which sequences still run at a time, [batch, 1]; None: all of them."""
        if self.lengths is None:
            return None
        return (self.lengths.to(self.x.device) > time).unsqueeze(1)

    def outputs(self, ys: Sequence[Tensor], *states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Y [time, directions, batch, hidden] and last states, in the layout asked for."""
        Y = torch.stack(list(ys), 1)
        last = [torch.stack(list(state)) for state in states]
        return self.laid_out(Y, *last)

    def laid_out(self, Y: Tensor, *last: Tensor) -> tuple[Tensor, ...]:
        if not self.layout:
            return (Y, *last)
        return (Y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))


def _reorder(weight: Tensor, order: Sequence[int]) -> Tensor:
    """Gates, blocks of rows, in another order."""
    parts = weight.chunk(len(order))
    return torch.cat([parts[place] for place in order])


def _fused(
    run: Callable[..., tuple[Tensor, ...]],
    given: _Given,
    W: Tensor,
    R: Tensor,
    order: Sequence[int],
    direction: str,
    states: Any,
) -> tuple[Tensor, ...]:
    """PyTorch's own layer, whose gates stand in another order."""
    weights = []
    for d in range(W.shape[0]):
        first, second = given.bias[d].chunk(2)
        weights += [_reorder(one, order) for one in (W[d], R[d], first, second)]
    backwards = direction == "reverse"
    x = given.x.flip(0) if backwards else given.x
    Y, *last = run(x, states, weights, True, 1, 0.0, False, len(W) == 2, False)
    Y = Y.flip(0) if backwards else Y
    return given.laid_out(Y.reshape(*Y.shape[:2], len(W), given.hidden).transpose(1, 2), *last)


def lstm(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    P: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """Long short-term memory; gates i, o, f, c. X [time, batch, in], W [directions, 4 h, in]."""
    given = _Given(X, R, B, sequence_lens, initial_h, layout, 4)
    c0 = given.zeros
    if initial_c is not None:
        c0 = initial_c.transpose(0, 1) if layout else initial_c
    plain = activations is None and P is None and clip is None and not input_forget
    if plain and given.lengths is None:
        # PyTorch has i, f, c, o.
        return _fused(torch.lstm, given, W, R, (0, 2, 3, 1), direction, [given.h, c0])
    names = activations or ("Sigmoid", "Tanh", "Tanh") * W.shape[0]
    functions = _activations(names, activation_alpha, activation_beta)
    ys, hs, cs = [], [], []
    for d, backwards in enumerate(_directions(direction)):
        f, g, k = functions[3 * d : 3 * d + 3]
        x = given.turned(given.x) if backwards else given.x
        first, second = given.bias[d].chunk(2)
        prepared = functional.linear(x, W[d], first + second)
        peep_i, peep_o, peep_f = (0.0, 0.0, 0.0) if P is None else P[d].chunk(3)
        h, c = given.h[d], c0[d]
        steps: list[Tensor] = []
        for time in range(x.shape[0]):
            gates = prepared[time] + h @ R[d].t()
            i, o, forget, cell = gates.chunk(4, -1)
            i = f(_limit(i + peep_i * c, clip))
            forget = 1 - i if input_forget else f(_limit(forget + peep_f * c, clip))
            new_c = forget * c + i * g(_limit(cell, clip))
            new_h = f(_limit(o + peep_o * new_c, clip)) * k(new_c)
            h, c = _advance(given.alive(time), steps, (new_h, h), (new_c, c))
        Y = torch.stack(steps)
        ys.append(given.turned(Y) if backwards else Y)
        hs.append(h)
        cs.append(c)
    return given.outputs(ys, hs, cs)


def _advance(
    alive: Tensor | None, steps: list[Tensor], *states: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """The new states, or the old ones of sequences that have ended, whose output is 0."""
    new = tuple(after for after, _ in states)
    if alive is None:
        steps.append(new[0])
        return new
    steps.append(torch.where(alive, new[0], 0))
    return tuple(torch.where(alive, after, before) for after, before in states)


def gru(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit; gates z, r, h."""
    given = _Given(X, R, B, sequence_lens, initial_h, layout, 3)
    if activations is None and clip is None and linear_before_reset and given.lengths is None:
        # PyTorch has r, z, h.
        return _fused(torch.gru, given, W, R, (1, 0, 2), direction, given.h)
    names = activations or ("Sigmoid", "Tanh") * W.shape[0]
    functions = _activations(names, activation_alpha, activation_beta)
    ys, hs = [], []
    for d, backwards in enumerate(_directions(direction)):
        f, g = functions[2 * d : 2 * d + 2]
        x = given.turned(given.x) if backwards else given.x
        first, second = given.bias[d].chunk(2)
        prepared = functional.linear(x, W[d], first)
        n = given.hidden
        gates_r, gates_b, new_r, new_b = (
            R[d][: 2 * n],
            second[: 2 * n],
            R[d][2 * n :],
            second[2 * n :],
        )
        h = given.h[d]
        steps: list[Tensor] = []
        for time in range(x.shape[0]):
            both = prepared[time][:, : 2 * n] + functional.linear(h, gates_r, gates_b)
            z, r = f(_limit(both, clip)).chunk(2, -1)
            if linear_before_reset:
                own = r * functional.linear(h, new_r, new_b)
            else:
                own = functional.linear(r * h, new_r, new_b)
            new = g(_limit(prepared[time][:, 2 * n :] + own, clip))
            (h,) = _advance(given.alive(time), steps, ((1 - z) * new + z * h, h))
        Y = torch.stack(steps)
        ys.append(given.turned(Y) if backwards else Y)
        hs.append(h)
    return given.outputs(ys, hs)


def rnn(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """The plain recurrent layer, h = f(W x + R h + b)."""
    given = _Given(X, R, B, sequence_lens, initial_h, layout, 1)
    functions = _activations(activations, activation_alpha, activation_beta)
    ys, hs = [], []
    for d, backwards in enumerate(_directions(direction)):
        f = functions[d]
        x = given.turned(given.x) if backwards else given.x
        first, second = given.bias[d].chunk(2)
        prepared = functional.linear(x, W[d], first + second)
        h = given.h[d]
        steps: list[Tensor] = []
        for time in range(x.shape[0]):
            new = f(_limit(prepared[time] + h @ R[d].t(), clip))
            (h,) = _advance(given.alive(time), steps, (new, h))
        Y = torch.stack(steps)
        ys.append(given.turned(Y) if backwards else Y)
        hs.append(h)
    return given.outputs(ys, hs)


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "GRU": gru,
    "LSTM": lstm,
    "RNN": rnn,
}
