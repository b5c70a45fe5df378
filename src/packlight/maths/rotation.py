"""Turning the inputs of a layer so that outliers spread over all of them.

A Hadamard matrix behind random signs turns any row into one whose entries are of like size
(QuIP, Chee et al. 2023; QuIP#, Tseng et al. 2024; QuaRot, Ashkboos et al. 2024), which a few
evenly spaced levels hold much better. With Q orthogonal, W x = (W Q)(Q^T x): whoever turns the
weight must turn the activations too, or fold Q^T into what makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from packlight.maths.grids import Array
from packlight.maths.layer import check_moments


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix Q [n, n] = diag(signs) times blocks of one Hadamard matrix.

    signs: float64 [n], each -1 or 1. block: order of the Hadamard matrix, which divides n;
    n itself where the rotation is whole.
    """

    signs: Array
    block: int

    @property
    def is_whole(self) -> bool:
        """Whether every input is mixed with every other one."""
        return self.block == int(self.signs.shape[0])


def hadamard(order: int) -> NDArray[np.float64]:
    """Give a matrix M [order, order] of -1 and 1 with M M^T = order * I.

    Sylvester's (1867) for powers of two; otherwise Paley's (1933) of order p + 1 or 2 (p + 1)
    for a prime p, and Kronecker products of those.
    Raises ValueError for an order that these do not reach.
    """
    plan = _factors(order)
    if plan is None:
        raise ValueError(
            f"no Hadamard matrix of order {order} is known here: an order is 1, 2, p + 1 for a "
            "prime p = 3 modulo 4, 2 (p + 1) for a prime p = 1 modulo 4, or a product of such; "
            f"{largest_order(order) if order > 0 else 1} is the largest that divides it"
        )
    matrix = np.ones((1, 1), np.float64)
    for factor in plan:
        matrix = np.asarray(np.kron(matrix, _irreducible(factor)), np.float64)
    return matrix


def largest_order(size: int) -> int:
    """Give the largest order of a Hadamard matrix that divides a size above 0."""
    divisors = (size // part for part in range(1, size + 1) if size % part == 0)
    return next(order for order in divisors if _factors(order) is not None)


def random_rotation(size: int, *, seed: int = 0, like: Array | None = None) -> Rotation:
    """Draw the signs of a rotation of `size` inputs, in blocks of the largest order there is.

    like: an array of the library and on the device that the signs shall have (else NumPy).
    """
    if size < 1:
        raise ValueError(f"a rotation turns at least one input, not {size}")
    signs: Array = np.random.default_rng(seed).choice((-1.0, 1.0), size)
    if like is not None:
        signs = array_namespace(like).asarray(signs, device=device(like))
    return Rotation(signs, largest_order(size))


def rotate(array: Array, rotation: Rotation) -> Array:
    """Give A Q for an array [..., n]: rows of a weight, or activations x as Q^T x. Float64."""
    xp = array_namespace(array)
    wide = xp.astype(array, xp.float64) * rotation.signs
    return _times_blocks(xp, wide, rotation.block, back=False)


def rotate_back(array: Array, rotation: Rotation) -> Array:
    """Give A Q^T for an array [..., n]: the inverse of `rotate`. Float64."""
    xp = array_namespace(array)
    wide = xp.astype(array, xp.float64)
    return _times_blocks(xp, wide, rotation.block, back=True) * rotation.signs


def rotate_inputs(
    weight: Array, second_moments: Array, *, seed: int = 0
) -> tuple[Array, Array, Rotation]:
    """Turn a layer's inputs at random: W' = W Q and H' = Q^T H Q.

    weight: [out, in]. second_moments: [in, in]. Any V' that stands in for W' stands in as
    `rotate_back(V', rotation)` for W, with the same error at the output.
    Returns W' and H' (float64) and the Rotation.
    Raises ValueError for second moments of another size or that are not finite.
    """
    inputs = weight.shape[1]
    check_moments(second_moments, inputs)
    rotation = random_rotation(inputs, seed=seed, like=weight)
    # H is symmetric: Q^T H Q = (H Q)^T Q.
    turned = rotate(rotate(second_moments, rotation).T, rotation)
    return rotate(weight, rotation), (turned + turned.T) / 2, rotation


def incoherence(weight: Array) -> float:
    """Give the largest magnitude over the root mean square; 1 where all magnitudes are equal.

    After a rotation it is about sqrt(2 ln(number of weights)). 0 for a weight of zeros.
    """
    xp = array_namespace(weight)
    w = xp.astype(weight, xp.float64)
    spread = float(xp.sqrt(xp.mean(w * w)))
    return float(xp.max(xp.abs(w))) / spread if spread else 0.0


def _times_blocks(xp: Any, array: Array, block: int, *, back: bool) -> Array:
    """Multiply each block of the last axis with M / sqrt(block), or its transpose.

    A Kronecker product is applied factor by factor: n sum(factors) products a row, not n^2.
    """
    shape = tuple(array.shape)
    factors = _factors(block)
    assert factors is not None
    after = 1
    for factor in reversed(factors):
        matrix = _irreducible(factor) / np.sqrt(factor)
        turn = xp.asarray(matrix if back else matrix.T, device=device(array))
        parts = xp.reshape(array, (-1, factor, after))
        array = parts[:, :, 0] @ turn.T if after == 1 else xp.matmul(turn, parts)
        after *= factor
    return xp.reshape(array, shape)


@cache
def _factors(order: int) -> tuple[int, ...] | None:
    """Take an order apart into orders that `_irreducible` builds, small ones where it can."""
    if order < 1 or (order > 2 and order % 4):
        return None
    if order <= 2:
        return (order,)
    if order & (order - 1) == 0:
        sixes, left = divmod(order.bit_length() - 1, 6)
        return (64,) * sixes + ((2**left,) if left else ())
    # The smallest of Paley's orders first: 768 is then 12 * 64.
    for part in range(12, order // 2 + 1, 4):
        rest = _factors(order // part) if order % part == 0 and _prime_of(part) else None
        if rest is not None and part & (part - 1):
            return (part, *rest)
    return (order,) if _prime_of(order) else None


def _prime_of(order: int) -> int | None:
    """Give the prime of Paley's construction of an order, where there is one."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return order - 1
    if order % 2 == 0 and _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return order // 2 - 1
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % part for part in range(2, int(number**0.5) + 1))


def _irreducible(order: int) -> NDArray[np.float64]:
    """Build Sylvester's matrix of a power of two, or one of Paley's."""
    pair = np.array([[1.0, 1.0], [1.0, -1.0]])
    if order <= 2:
        return pair[:order, :order]
    if order & (order - 1) == 0:
        return np.kron(pair, _irreducible(order // 2))
    prime = _prime_of(order)
    assert prime is not None
    # Jacobsthal's matrix: +1 where the difference of row and column is a square modulo p.
    squares = {number * number % prime for number in range(1, prime)}
    signs = np.array([0.0] + [1.0 if n in squares else -1.0 for n in range(1, prime)])
    places = np.arange(prime)
    jacobsthal = signs[(places[:, None] - places[None, :]) % prime]
    border = np.ones((prime + 1, prime + 1))
    border[1:, 1:] = jacobsthal
    border[0, 0] = 0
    if prime % 4 == 3:  # Paley I: skew, so the border is antisymmetric.
        border[1:, 0] = -1
        return border + np.eye(prime + 1)
    # Paley II: symmetric; each 0 becomes one 2 x 2 block, each sign another.
    diagonal = np.kron(np.eye(prime + 1), np.array([[1.0, -1.0], [-1.0, -1.0]]))
    return np.kron(border, pair) + diagonal
