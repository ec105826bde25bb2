"""Merging: the methods' formulas, against plain float64 and against mergekit: its recorded answers, and its own."""

import functools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nrt_jax import merging
from tests.golden import mergekit as golden
from tests.golden.mergekit import models

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
floats = st.floats(-100, 100, width=32)
tensors = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 5)), elements=floats).map(
        lambda x: x.astype(dtype)
    )
)


def rngs(num, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(num)]


#: Every method that takes a base, any number of models and weights; with density 1 nothing is dropped.
FROM_BASE = {
    "task": merging.task_arithmetic,
    "task normalized": functools.partial(merging.task_arithmetic, normalize=True),
    "ties": merging.ties,
    "ties not normalized": functools.partial(merging.ties, normalize=False),
    "dare": lambda b, x, w, **numbers: merging.dare(b, x, w, rngs(len(x)), **numbers),
    "dare_ties": lambda b, x, w, **numbers: merging.dare(b, x, w, rngs(len(x)), elect_signs=True, **numbers),
}


def plain(base, x, weights, *, scale=1.0, normalize=False, masks=None, rescale=1.0, elect=False):
    """What the papers of task arithmetic, TIES and DARE write, in float64: masks are what trimming or dropping left."""
    deltas = np.array(x, np.float64) - np.array(base, np.float64)
    weights = np.array(weights, np.float64).reshape(-1, *[1] * base.ndim)
    weighted = weights * deltas * (1.0 if masks is None else np.array(masks)) * rescale
    chosen = np.ones_like(weighted)
    if elect:
        chosen = np.sign(weighted) == np.where(weighted.sum(0) >= 0, 1, -1)
    divisor = (weights * chosen).sum(0) if normalize else 1.0
    return base + scale * (weighted * chosen).sum(0) / np.where(divisor == 0, 1.0, divisor)


def largest(base, x, density):
    size = np.abs(np.array(x, np.float64) - base).reshape(-1)
    mask = np.zeros(size.size)
    mask[np.argsort(-size)[: int(density * size.size)]] = 1
    return mask.reshape(base.shape)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 0.2, 0.1), (0.5, -0.3, 2.0)])
def test_linear_is_the_weighted_sum(weights, normalize):
    _, x = models(3)
    expected = np.average(x, axis=0, weights=weights) if normalize else np.tensordot(weights, x, 1)
    np.testing.assert_allclose(merging.linear(x, weights, normalize=normalize), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_task_arithmetic_adds_the_weighted_differences_to_the_base(scale, normalize):
    base, x = models(3)
    found = merging.task_arithmetic(base, x, (1.0, 0.2, 0.1), scale=scale, normalize=normalize)
    expected = plain(base, x, (1.0, 0.2, 0.1), scale=scale, normalize=normalize)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.07])
@pytest.mark.parametrize("weights", [(1.0, 0.2, 0.1), (0.5, 0.3, 2.0)])
def test_ties_trims_elects_and_takes_the_disjoint_mean(weights, density, normalize):
    base, x = models(3)
    masks = [largest(base, model, density) for model in x]
    found = merging.ties(base, x, weights, density=density, scale=0.7, normalize=normalize)
    expected = plain(base, x, weights, scale=0.7, normalize=normalize, masks=masks, elect=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("elect", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_dare_drops_at_random_and_divides_by_the_density(elect, normalize):
    base, x = models(3)
    masks = [rng.random(base.size, np.float32).reshape(base.shape) < 0.3 for rng in rngs(3)]
    found = merging.dare(base, x, (1.0, 0.2, 0.1), rngs(3), density=0.3, elect_signs=elect, normalize=normalize)
    numbers = {"masks": masks, "rescale": 1 / 0.3, "elect": elect, "normalize": normalize}
    np.testing.assert_allclose(found, plain(base, x, (1.0, 0.2, 0.1), **numbers), rtol=1e-5, atol=1e-5)


def test_dare_is_task_arithmetic_in_expectation_and_a_function_of_its_generators():
    base, x = models(2)
    merged = [merging.dare(base, x, (1.0, 0.5), rngs(2, seed), density=0.2) for seed in range(400)]
    exact = merging.task_arithmetic(base, x, (1.0, 0.5))
    error = np.mean(merged, axis=0) - exact
    assert np.abs(error.mean()) < 0.01 and np.abs(error / np.std(merged, axis=0)).max() < 5 / np.sqrt(400)
    np.testing.assert_array_equal(merging.dare(base, x, (1.0, 0.5), rngs(2, 3), density=0.2), merged[3])
    one_model = merging.dare(base, x[:1], (1.0,), rngs(1), density=0.2)
    assert 0.1 < np.mean(one_model != base) < 0.3


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_turns_the_direction_at_constant_speed(t):
    a, b = np.random.default_rng(0).standard_normal((2, 3, 50))
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    found = merging.slerp(a.astype(np.float32), b.astype(np.float32), t).astype(np.float64)

    def angle(x, y):
        return np.arccos(np.clip((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))

    assert abs(angle(a, found) - t * angle(a, b)) < 1e-3 and abs(angle(found, b) - (1 - t) * angle(a, b)) < 1e-3
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(a), rtol=1e-5)


def test_slerp_of_colinear_or_no_vectors_is_linear():
    a = np.array([3.0, 4.0, 0.0], np.float32)
    np.testing.assert_allclose(merging.slerp(a, 2 * a, 0.25), 1.25 * a, rtol=1e-6)
    np.testing.assert_allclose(merging.slerp(a, -a, 0.25), 0.5 * a, rtol=1e-6)
    # An angle of 1.8 degrees is the limit.
    near, far = ([3.0, 4.0, 5 * np.tan(np.radians(degrees))] for degrees in (1.7, 1.9))
    linear = [0.5 * a + 0.5 * np.array(b) for b in (near, far)]
    found = [merging.slerp(a, np.array(b, np.float32), 0.5) for b in (near, far)]
    np.testing.assert_allclose(found[0], linear[0], rtol=1e-6)
    assert np.abs(found[1] - linear[1]).max() > 1e-4
    zero = np.zeros(3, np.float32)
    np.testing.assert_allclose(merging.slerp(zero, a, 0.5), np.sin(np.pi / 4) * a, rtol=1e-6)
    np.testing.assert_array_equal(merging.slerp(zero, zero, 0.5), zero)


@settings(max_examples=200)
@given(x=tensors, data=st.data())
def test_weights_1_0_0_return_the_first_model_bit_for_bit(x, data):
    others = [data.draw(arrays(np.float64, x.shape, elements=floats)).astype(x.dtype) for _ in range(2)]
    weights = (data.draw(st.sampled_from([1.0, 0.3, 7.0])), 0.0, 0.0)
    for merged in (
        merging.linear([x, *others], weights),
        merging.linear([x, *others], (1.0, 0.0, 0.0), normalize=False),
        merging.task_arithmetic(others[0], [x, *others], (1.0, 0.0, 0.0)),
        merging.slerp(x, others[0], 0.0),
        merging.slerp(others[0], x, 1.0),
    ):
        assert merged.dtype == np.float32
        np.testing.assert_array_equal(merged.astype(x.dtype).view(np.uint8), x.view(np.uint8))
    for method in FROM_BASE.values():  # equal, but for the sign of zeros
        np.testing.assert_array_equal(method(others[0], [x, *others], (1.0, 0.0, 0.0)).astype(x.dtype), x)


@settings(max_examples=200)
@given(
    x=tensors,
    weights=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=4),
    density=st.floats(0.05, 1.0),
    t=st.floats(0, 1),
)
def test_a_model_merged_with_itself_is_itself(x, weights, density, t):
    copies = [x] * len(weights)
    too_short = 0 < np.linalg.norm(x.astype(np.float64)) <= 1.1e-8  # to have a direction
    for merged in (merging.linear(copies, weights), x if too_short else merging.slerp(x, x, t)):
        np.testing.assert_array_equal(merged.astype(x.dtype).view(np.uint8), x.view(np.uint8))
    for method in FROM_BASE.values():  # equal, but for the sign of zeros
        np.testing.assert_array_equal(method(x, copies, weights, scale=0.5).astype(x.dtype), x)
    for method in (FROM_BASE["ties"], FROM_BASE["dare"], FROM_BASE["dare_ties"]):
        np.testing.assert_array_equal(method(x, copies, weights, density=density).astype(x.dtype), x)


def test_results_do_not_depend_on_the_block(monkeypatch):
    base, x = models(3)
    wanted = [method(base, x, (1.0, 0.2, 0.1)) for method in FROM_BASE.values()] + [merging.slerp(*x[:2], 0.3)]
    ties = merging.ties(base, x, (1.0, 0.2, 0.1), density=0.3)
    monkeypatch.setattr(merging, "_BLOCK", 7)
    found = [method(base, x, (1.0, 0.2, 0.1)) for method in FROM_BASE.values()] + [merging.slerp(*x[:2], 0.3)]
    np.testing.assert_array_equal(found[:-1], wanted[:-1])
    np.testing.assert_allclose(found[-1], wanted[-1], rtol=1e-6)
    np.testing.assert_array_equal(merging.ties(base, x, (1.0, 0.2, 0.1), density=0.3), ties)


def test_ties_keeps_as_many_as_asked_for_also_of_equal_differences():
    base = np.zeros((2, 5), np.float32)
    for density, count in ((0.25, 2), (0.5, 5), (0.01, 1), (1.0, 10)):
        merged = merging.ties(base, [np.ones_like(base)], [1.0], density=density)
        assert merged.reshape(-1).tolist() == [1.0] * count + [0.0] * (10 - count)


@pytest.fixture(scope="module", params=["recorded", "live"])
def theirs(request):
    """What mergekit makes of `models()`, by method and numbers: as 0.1.5 did, and as the one that is installed does."""
    with np.load(golden.FILE) as recorded:
        found = dict(recorded)
    base, x = models()
    for name, tensor in (("base", base), *((f"x{i}", tensor) for i, tensor in enumerate(x))):
        np.testing.assert_array_equal(found.pop(name), tensor)
    if request.param == "recorded":
        return found
    try:
        return golden.answers()
    except ImportError as error:
        pytest.skip(f"mergekit cannot be imported: {error}")


def assert_theirs(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_mergekit_gives_the_same_task_arithmetic_and_ties(theirs, normalize):
    base, x = models()
    numbers = {"scale": golden.SCALE, "normalize": normalize}
    merged = merging.task_arithmetic(base, x, golden.WEIGHTS, **numbers)
    assert_theirs(merged, theirs[f"task {normalize}"])
    for density in (1.0, 0.4, 0.1):
        merged = merging.ties(base, x, golden.WEIGHTS, density=density, **numbers)
        assert_theirs(merged, theirs[f"ties {normalize} {density}"])


def test_mergekit_gives_the_same_linear_merge_and_slerp(theirs):
    _, x = models()
    for normalize in (True, False):
        merged = merging.linear(x, golden.WEIGHTS, normalize=normalize)
        assert_theirs(merged, theirs[f"linear {normalize}"])
    for t in (0.0, 0.3, 1.0):
        for i, (a, b) in enumerate(golden.pairs(x)):
            assert_theirs(merging.slerp(a, b, t), theirs[f"slerp {t} {i}"])
