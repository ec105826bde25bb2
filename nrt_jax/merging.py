"""Merging models in parameter space: pure functions over one tensor of each model.

Linear (model soups, arXiv 2203.05482), task arithmetic (2212.04089), SLERP, TIES (2306.01708) and DARE (2311.03099),
by the formulas of mergekit, whose defaults are the defaults here. The meta-ability paper (2505.10554) merges its
specialists linearly, 1.0 deduction + 0.2 induction + 0.1 abduction.

All but SLERP's angle and TIES' threshold are sums, element by element, of the models' weights times coefficients:

    merged = sum_i c_i x_i + (1 - sum_i c_i) base

which are added in float64, a block at a time, and rounded once to float32. So one model with weight 1 is returned bit
for bit, and the merge of a model with itself is itself (zeros may change their sign where coefficients are negative).

Of mergekit we leave out one thing: its DARE rescales what is left to the L1 norm of what there was; this one divides
by the density, as the paper does, which is the same in expectation.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

#: Elements that are in float64 at a time: few enough for a core's cache.
_BLOCK = 2**14
#: SLERP: vectors whose cosine is beyond this are taken for colinear.
_COLINEAR = 0.9995
#: SLERP: vectors that are shorter than this are not normalised.
_SHORTEST = 1e-8


def linear(models: Sequence[np.ndarray], weights: Sequence[float], *, normalize: bool = True) -> np.ndarray:
    """sum_i w_i x_i, divided by sum_i w_i if `normalize`.

    Args:
        models: Tensors x_i of one shape and any float dtype.
        weights: w_i, whose sum is not 0 if `normalize`. Tensors with weight 0 are not looked at.
        normalize: Whether the weights are to sum to 1.

    Returns:
        The merged tensor in float32.
    """
    total = math.fsum(weights) if normalize else 1.0
    return _blockwise(models, lambda *x: _weighted(x, [w / total for w in weights]))


def task_arithmetic(
    base: np.ndarray,
    models: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = False,
) -> np.ndarray:
    """base + scale * sum_i w_i (x_i - base), the sum divided by sum_i w_i if `normalize`.

    Args:
        base: What the models were trained from.
        models: As in `linear`.
        weights: As in `linear`.
        scale: The paper's lambda.
        normalize: Whether the weights are to sum to 1.
    """
    factor = scale / math.fsum(weights) if normalize else scale
    return _blockwise([base, *models], lambda b, *x: _from_base(b, x, [factor * w for w in weights]))


def slerp(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """From `first` at t = 0 to `second` at t = 1 along the arc between their directions, each taken as one long vector.

    Vectors that are nearly colinear are interpolated linearly. One that is shorter than 1e-8 has no direction and is
    taken for orthogonal to the other, as in mergekit.
    """
    squares = [_dot(x, x) for x in (first, second)]
    norms = [math.sqrt(square) if math.sqrt(square) > _SHORTEST else 1.0 for square in squares]
    cosine = _dot(first, second) / (norms[0] * norms[1])
    if abs(cosine) > _COLINEAR:
        coefficients = [1.0 - t, t]
    else:
        angle = math.acos(cosine)
        coefficients = [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return _blockwise([first, second], lambda *x: _weighted(x, coefficients))


def ties(
    base: np.ndarray,
    models: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    density: float = 1.0,
    scale: float = 1.0,
    normalize: bool = True,
) -> np.ndarray:
    """Trim, elect signs, merge: the mean of those large deltas that have the sign of their weighted sum.

    Args:
        base: What the models were trained from.
        models: As in `linear`.
        weights: As in `linear`.
        density: Share of a model's deltas, the largest ones, that is kept; at least one is. Of equal ones, the first.
        scale: The paper's lambda.
        normalize: Whether a sum of deltas is divided by the sum of their weights.
    """
    kept = [_largest(base, model, density) for model in models]

    def merge(b, *rest):
        x, keep = rest[: len(models)], rest[len(models) :]
        coefficients = [w * k for w, k in zip(weights, keep, strict=True)]
        return _from_base(b, x, _elect(b, x, coefficients, weights, scale, normalize))

    return _blockwise([base, *models, *kept], merge)


def dare(
    base: np.ndarray,
    models: Sequence[np.ndarray],
    weights: Sequence[float],
    rngs: Sequence[np.random.Generator],
    *,
    density: float = 1.0,
    scale: float = 1.0,
    normalize: bool = False,
    elect_signs: bool = False,
) -> np.ndarray:
    """Drop and rescale: each delta is kept with probability `density` and then divided by it.

    Args:
        base: What the models were trained from.
        models: As in `linear`.
        weights: As in `linear`.
        rngs: One for each model: which deltas it keeps.
        density: The paper's 1 - p.
        scale: Factor of the sum of deltas.
        normalize: Whether that sum is divided by the sum of weights; with `elect_signs`, of those that are in it.
        elect_signs: Whether the deltas are merged as by `ties`, not just added.
    """
    total = math.fsum(weights)

    def merge(b, *x):
        keep = [rng.random(b.size, np.float32) < density for rng in rngs]
        coefficients = [w * k / density for w, k in zip(weights, keep, strict=True)]
        if elect_signs:
            return _from_base(b, x, _elect(b, x, coefficients, weights, scale, normalize))
        factor = scale / total if normalize else scale
        return _from_base(b, x, [factor * c for c in coefficients])

    return _blockwise([base, *models], merge)


def _elect(base, models, coefficients, weights, scale: float, normalize: bool) -> list[np.ndarray]:
    """The coefficients of deltas with the sign that is more in weight, 0 for the others."""
    deltas = [c * (x - base) for c, x in zip(coefficients, models, strict=True)]
    is_positive = sum(deltas) >= 0
    agrees = [np.where(is_positive, delta > 0, delta < 0) for delta in deltas]
    divisor = sum(w * mask for w, mask in zip(weights, agrees, strict=True))
    factor = scale / np.where(divisor == 0, 1.0, divisor) if normalize else scale
    return [factor * c * mask for c, mask in zip(coefficients, agrees, strict=True)]


def _largest(base: np.ndarray, model: np.ndarray, density: float) -> np.ndarray:
    """Which deltas are among the share `density` of largest size."""
    size = np.abs(model.astype(np.float32) - base.astype(np.float32)).reshape(-1)
    count = max(1, int(density * size.size))
    if count >= size.size:
        return np.ones(model.shape, bool)
    threshold = np.partition(size, size.size - count)[size.size - count]
    keep = size > threshold
    equal = np.flatnonzero(size == threshold)
    keep[equal[: count - np.count_nonzero(keep)]] = True
    return keep.reshape(model.shape)


def _from_base(base: np.ndarray, models: Sequence[np.ndarray], coefficients: Sequence) -> np.ndarray:
    """sum_i c_i x_i + (1 - sum_i c_i) base."""
    return _weighted([base, *models], [1.0 - sum(coefficients), *coefficients])


def _weighted(tensors: Sequence[np.ndarray], coefficients: Sequence) -> np.ndarray:
    """sum_i c_i x_i, without those of which c_i is 0: 0 times infinity is not 0, and -0 + 0 not -0."""
    terms = [c * x for c, x in zip(coefficients, tensors, strict=True) if np.ndim(c) or c != 0]
    return sum(terms[1:], start=terms[0]) if terms else np.zeros_like(tensors[0])


def _blockwise(tensors: Sequence[np.ndarray], merge: Callable[..., np.ndarray]) -> np.ndarray:
    """Applies `merge` to flat blocks of all tensors in float64; its results are rounded to float32."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    merged = np.empty(flat[0].size, np.float32)
    for start in range(0, merged.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):  # Infinities stay what they are.
            merged[block] = merge(*(tensor[block].astype(np.float64) for tensor in flat))
    return merged.reshape(tensors[0].shape)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """The dot product of two tensors as long vectors."""
    a, b = a.reshape(-1), b.reshape(-1)
    starts = range(0, a.size, _BLOCK)
    blocks = (tuple(x[start : start + _BLOCK].astype(np.float64) for x in (a, b)) for start in starts)
    return math.fsum(float(x @ y) for x, y in blocks)
