"""Drawing tokens against numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.rollout.draw import MASKED, Truncation, draw

V, PADDED, N = 100, 128, 4000
SEEDS = st.integers(0, 2**31 - 1)
TRUNCATIONS = st.tuples(st.integers(1, V), st.floats(0.01, 1.0), st.floats(0.0, 1.0))

jitted = jax.jit(draw)


def random_logits(seed, spread=2.0):
    return (spread * np.random.default_rng(seed).standard_normal(V)).astype(np.float32)


def drawn(seed, logits, temperature=1.0, truncation=(V, 1.0, 0.0)):
    """N draws from one distribution."""
    columns = np.full((PADDED, N), MASKED, np.float32)
    columns[:V] = logits[:, None]
    uniform = jax.random.uniform(jax.random.key(seed), (N, 2))
    arrays = Truncation(*(jnp.asarray(x, dtype) for x, dtype in zip(truncation, (int, float, float), strict=True)))
    return jitted(columns, uniform, jnp.float32(temperature), jnp.int32(7), arrays)


def probabilities(logits, temperature=1.0):
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def truncated(p, top_k, top_p, min_p):
    """The renormalised distribution after top-k, then top-p of what is left, then min-p."""
    order = np.argsort(-p)[:top_k]
    kept_mass = np.cumsum(p[order]) / p[order].sum()
    order = order[: np.searchsorted(kept_mass, top_p) + 1] if top_p < 1 else order
    order = order[p[order] >= min_p * p.max()]
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


@given(SEEDS, TRUNCATIONS, st.floats(0.3, 2.0))
def test_drawn_tokens_lie_in_the_truncated_set(seed, truncation, temperature):
    logits = random_logits(seed)
    allowed = truncated(probabilities(logits, temperature), *truncation) > 0
    assert allowed[np.asarray(drawn(seed, logits, temperature, truncation).token)].all()


@given(SEEDS, TRUNCATIONS)
def test_frequencies_follow_the_renormalised_distribution(seed, truncation):
    """Each count within 5 standard deviations of its binomial, or 5 draws where hardly any are expected."""
    logits = random_logits(seed)
    expected = N * truncated(probabilities(logits), *truncation)
    counts = np.bincount(drawn(seed, logits, truncation=truncation).token, minlength=V)
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 5).all()


@given(SEEDS, TRUNCATIONS, st.floats(0.3, 2.0))
def test_statistics_are_those_of_the_whole_distribution(seed, truncation, temperature):
    logits = random_logits(seed)
    log_p = np.log(probabilities(logits, temperature))
    found = drawn(seed, logits, temperature, truncation)
    np.testing.assert_allclose(found.log_prob, log_p[found.token], atol=1e-5)
    np.testing.assert_allclose(found.watched_log_prob, log_p[7], atol=1e-5)
    np.testing.assert_allclose(found.entropy, -(np.exp(log_p) * log_p).sum(), atol=1e-5)


@given(SEEDS)
def test_temperature_zero_takes_the_first_of_the_likeliest(seed):
    logits = np.round(random_logits(seed, spread=1.0))  # Rounded, so that several are equal.
    assert (drawn(seed, logits, temperature=0.0).token == np.argmax(logits)).all()


def test_truncation_at_its_weakest_equals_none():
    logits = random_logits(0)
    columns = np.full((PADDED, N), MASKED, np.float32)
    columns[:V] = logits[:, None]
    uniform = jax.random.uniform(jax.random.key(0), (N, 2))
    plain = jitted(columns, uniform, jnp.float32(1.0), jnp.int32(7), Truncation())
    np.testing.assert_array_equal(plain.token, drawn(0, logits).token)


def test_tokens_of_no_weight_are_never_drawn_at_the_ends_of_the_unit_interval():
    """0 and the largest float below 1, with mass on one token alone, wherever it stands."""
    for only in (0, 63, 64, 99):
        logits = np.full((PADDED, 4), MASKED, np.float32)
        logits[only] = 0.0
        ends = np.array([[a, b] for a in (0, 1 - 2**-24) for b in (0, 1 - 2**-24)], np.float32)
        token = jitted(logits, ends, jnp.float32(1.0), jnp.int32(7), Truncation()).token
        assert (token == only).all()


def test_changing_the_truncation_compiles_nothing():
    count = jax.jit(functools.partial(draw))
    logits, uniform = jnp.zeros((PADDED, 4)), jnp.zeros((4, 2))
    for k in (3, 5, 50):
        count(logits, uniform, jnp.float32(1.0), jnp.int32(7), Truncation(top_k=jnp.int32(k)))
    assert count._cache_size() == 1
