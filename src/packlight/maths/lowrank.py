"""Few directions that matter most at a layer's output: factors of a weight or of its error.

|R x|^2 averaged over the inputs is |R S|^2 for any S with S S^T = H, so the best matrix of
rank r in the norm of the output is that of R S by Eckart and Young (1936), times S^-1. This is
the whitening of SVD-LLM (Wang et al. 2024), LQER (Zhang et al. 2024) and ASER (Zhao et al. 2024).
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from packlight.maths.grids import Array
from packlight.maths.layer import check_moments

NEGLIGIBLE = 1e-12
"""Directions with less than this share of the largest second moment count as never seen."""


def low_rank_of(
    weight: Array, second_moments: Array, rank: int, *, damping: float = 0.001
) -> tuple[Array, Array]:
    """Give the factors L [out, rank], R [rank, in] of least tr((W - L R) H (W - L R)^T).

    The error is the sum of the squared singular values of W S that are left out, S S^T = H.
    They are shared evenly between the factors, so that both round equally well.

    weight: [out, in]. second_moments: [in, in]; may be singular. rank: 0 to min(out, in).
    damping: share of the mean diagonal added to H, so that directions the samples lack come
    after all others rather than not at all; with 0 the factors are 0 there.
    Returns float64 factors. Raises ValueError for a rank outside these limits, a negative
    damping, or second moments that do not fit or are not finite.
    """
    xp = array_namespace(weight)
    most = min(weight.shape)
    if not 0 <= rank <= most:
        raise ValueError(
            f"the rank of a {weight.shape[0]} x {weight.shape[1]} weight lies from 0 to {most}, "
            f"not at {rank}"
        )
    forth, back = _whitening(xp, second_moments, weight.shape[1], damping)
    seen = xp.matmul(xp.astype(weight, xp.float64), forth)
    left, values, right = xp.linalg.svd(seen, full_matrices=False)
    half = xp.sqrt(values[:rank])
    return left[:, :rank] * half[None, :], xp.matmul(half[:, None] * right[:rank, :], back)


def spatial_factors_of(
    weight: Array,
    second_moments: Array,
    rank: int,
    *,
    kernel: tuple[int, int],
    damping: float = 0.001,
) -> tuple[Array, Array]:
    """Split a kernel into columns, then rows: [rank, channels * high] and [out, rank * wide].

    W_oiab ~ sum_r B_orb A_ria (Jaderberg et al. 2014, scheme 2) is a matrix [(o, b), (i, a)] of
    that rank: A and B are those of least error in the mean, over b, of the second moments of
    what the taps (i, a) see. Then B is fitted again to A with all second moments,
    B = W H T^T (T H T^T)^-1 with T = A at every b, which never raises tr((W - B T) H (W - B T)^T).

    weight: [out, channels * high * wide], channels outside, rows of taps before columns.
    second_moments: [in, in], in this order. kernel: (high, wide). rank: 0 to
    min(out * wide, channels * high). damping: as in `low_rank_of`; B stays near where it was.
    Returns float64 factors. Raises ValueError as `low_rank_of`, and for a kernel that does not
    divide the inputs.
    """
    xp = array_namespace(weight)
    outputs, inputs = (int(size) for size in weight.shape)
    high, wide = kernel
    if inputs % (high * wide):
        raise ValueError(f"a kernel of {high} x {wide} does not divide {inputs} inputs")
    check_moments(second_moments, inputs)
    down = inputs // wide
    h = xp.astype(second_moments, xp.float64)
    h = h + damping * xp.mean(xp.linalg.diagonal(h)) * xp.eye(
        inputs, dtype=xp.float64, device=device(weight)
    )
    w = xp.astype(weight, xp.float64)
    apart = xp.reshape(h, (down, wide, down, wide))
    mean = apart[:, 0, :, 0]
    for b in range(1, wide):
        mean = mean + apart[:, b, :, b]
    tall = xp.reshape(xp.permute_dims(xp.reshape(w, (outputs, down, wide)), (0, 2, 1)), (-1, down))
    left, right = low_rank_of(tall, mean / wide, rank, damping=0.0)
    rows = xp.reshape(
        xp.permute_dims(xp.reshape(left, (outputs, wide, rank)), (0, 2, 1)), (outputs, -1)
    )
    if not rank:
        return right, rows
    # What the second layer sees: T [(r, b), (i, a, b)].
    eye = xp.eye(wide, dtype=xp.float64, device=device(weight))
    through = right[:, None, :, None] * eye[None, :, None, :]
    through = xp.reshape(through, (rank * wide, inputs))
    reach = xp.matmul(through, h)
    square = xp.matmul(reach, through.T)
    square = square + 1e-9 * xp.mean(xp.linalg.diagonal(square)) * xp.eye(
        rank * wide, dtype=xp.float64, device=device(weight)
    )
    step = xp.matmul(xp.matmul(w - xp.matmul(rows, through), h), through.T)
    return right, rows + xp.linalg.solve(square, step.T).T


def correct_low_rank(
    residual: Array, second_moments: Array, rank: int, *, damping: float = 0.001
) -> tuple[Array, Array]:
    """Give the correction L [out, rank], R [rank, in] of a rounded weight: V + L R for W.

    residual: W - V [out, in], what rounding left. As in `low_rank_of`, of which this is the
    use that LQER and ASER make. Rounding what remains, W - L R, again and alternating the two
    helps where few bits are left (LoftQ, Li et al. 2023).
    """
    return low_rank_of(residual, second_moments, rank, damping=damping)


def errors_by_rank(weight: Array, second_moments: Array, *, damping: float = 0.001) -> Array:
    """Give the error under damped H that `low_rank_of` leaves, for each rank from 0 up.

    weight: [out, in]. second_moments: [in, in]. Returns float64 [min(out, in) + 1], falling to 0.
    Without damping these are the errors tr((W - L R) H (W - L R)^T), otherwise no less.
    """
    xp = array_namespace(weight)
    forth, _ = _whitening(xp, second_moments, weight.shape[1], damping)
    values = xp.linalg.svdvals(xp.matmul(xp.astype(weight, xp.float64), forth))
    # Added up from the smallest, so that a small rest is not lost in a large sum.
    rest = xp.flip(xp.cumulative_sum(xp.flip(values[: min(weight.shape)] ** 2)))
    return xp.concat([rest, xp.zeros_like(rest[:1])])


def rank_for_error(
    weight: Array, second_moments: Array, error: float, *, damping: float = 0.001
) -> int:
    """Give the smallest rank that leaves at most `error`, in the units of `errors_by_rank`.

    weight: [out, in], or a residual. Raises ValueError for an error below 0.
    """
    if not error >= 0:
        raise ValueError(f"an error to stay under is not negative: {error}")
    errors = errors_by_rank(weight, second_moments, damping=damping)
    xp = array_namespace(errors)
    return int(xp.count_nonzero(errors > error))


def _whitening(xp: Any, second_moments: Array, inputs: int, damping: float) -> tuple[Array, Array]:
    """Give S [in, in] with S S^T = H + damping, and S^-1, 0 in directions without moment.

    By eigenvectors, as singular moments have no Cholesky factor.
    """
    if not damping >= 0:
        raise ValueError(f"damping is not negative: {damping}")
    check_moments(second_moments, inputs)
    values, vectors = xp.linalg.eigh(xp.astype(second_moments, xp.float64))
    # Sums in float32 leave eigenvalues slightly below 0.
    values = xp.clip(values, 0, None)
    values = values + damping * xp.mean(values)
    seen = values > NEGLIGIBLE * xp.max(values)
    root = xp.sqrt(xp.where(seen, values, xp.zeros_like(values)))
    inverse = xp.where(seen, 1 / xp.where(seen, root, xp.ones_like(root)), xp.zeros_like(root))
    return vectors * root[None, :], inverse[:, None] * vectors.T
