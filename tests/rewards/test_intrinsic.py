"""The six aggregations as maths, and the scorer against plain full forwards."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.rewards import AGGREGATIONS, aggregate, score_reference
from nrt_jax.rollout import cut_traces, sample
from tests.fixtures_model import DELIMITER, full_log_probs, random_batch, sampling, tiny_model

T = 6
log_probs = hnp.arrays(np.float32, (4, T), elements=st.floats(-8, -0.0625, width=32))
lengths = hnp.arrays(np.int32, 4, elements=st.integers(1, T))
modes = st.sampled_from(sorted(AGGREGATIONS))


def float64_reward(mode, c, base):
    """The table of the specification, transcribed for one unpadded sequence in float64."""
    c, base, num = np.float64(c), np.float64(base), len(c)
    return {
        "log_prob": lambda: np.log(c).sum(),
        "prob": lambda: c.prod(),
        "arithmetic_mean": lambda: c.sum() / num,
        "geometric_mean": lambda: c.prod() ** (1 / num),
        "weighted_sum_inverse_prob": lambda: (c / base).sum() / num,
        "weighted_sum_log_prob": lambda: (-c * np.log(base)).sum() / num,
    }[mode]()


@hypothesis.given(modes, log_probs, log_probs, lengths)
def test_reward_and_token_signal_match_the_formula_and_its_derivative(mode, log_c, log_base, length):
    mask = np.arange(T) < length[:, None]
    reward = aggregate(mode, jnp.where(mask, log_c, jnp.nan), mask, log_base)
    for i, num in enumerate(length):
        c, base = np.exp(np.float64(log_c[i, :num])), np.exp(np.float64(log_base[i, :num]))
        np.testing.assert_allclose(reward.trace[i], float64_reward(mode, c, base), rtol=2e-5)
        # alpha_i c_i = df / d log c_i, by central differences in float64.
        step = 1e-6
        for j in range(num):
            up, down = c.copy(), c.copy()
            up[j], down[j] = c[j] * np.exp(step), c[j] * np.exp(-step)
            slope = (float64_reward(mode, up, base) - float64_reward(mode, down, base)) / (2 * step)
            np.testing.assert_allclose(reward.token[i, j], slope, rtol=1e-3, atol=1e-7)
    assert (np.asarray(reward.token)[~mask] == 0).all()


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_token_signal_is_the_autodiff_gradient_of_the_reward(mode):
    """The derived token signal against jax.grad of f itself, with the stop-gradient taken off."""
    rng = np.random.default_rng(0)
    log_c, log_base = (jnp.array(-rng.exponential(1.0, (3, T)), jnp.float32) for _ in range(2))
    mask = jnp.array(np.arange(T) < np.array([[6], [4], [1]]))
    f = AGGREGATIONS[mode]
    masked = jnp.where(mask, log_base, 0.0)
    gradient = jax.grad(lambda x: f(jnp.where(mask, x, 0.0), mask, masked).trace.sum())(log_c)
    np.testing.assert_allclose(aggregate(mode, log_c, mask, log_base).token, gradient, rtol=1e-5, atol=1e-7)


@hypothesis.given(modes, log_probs, lengths, st.integers(1, 5), st.permutations(range(4)))
def test_padding_and_permutation_of_the_group(mode, log_c, length, extra, order):
    mask, base = np.arange(T) < length[:, None], np.full_like(log_c, -1.5)
    plain = aggregate(mode, log_c, mask, base)
    wider = [np.pad(a, ((0, 0), (0, extra)), constant_values=v) for a, v in ((log_c, -3.0), (mask, False), (base, 2.0))]
    padded = aggregate(mode, *wider)
    np.testing.assert_allclose(padded.trace, plain.trace, rtol=1e-6)
    np.testing.assert_allclose(padded.token[:, :T], plain.token, rtol=1e-6)
    order = np.array(order)
    permuted = aggregate(mode, log_c[order], mask[order], base[order])
    chex.assert_trees_all_equal(permuted.trace, plain.trace[order])


@hypothesis.given(st.floats(-5, -0.01), st.integers(1, T))
def test_means_are_invariant_to_answer_length(log_c, length):
    """Every mean of equal c_i is c_i; the product is not."""
    values, mask = jnp.full((T,), log_c), jnp.arange(T) < length
    for mode in ("arithmetic_mean", "geometric_mean"):
        np.testing.assert_allclose(aggregate(mode, values, mask).trace, np.exp(log_c), rtol=1e-5)
    np.testing.assert_allclose(aggregate("prob", values, mask).trace, np.exp(length * log_c), rtol=1e-4)


def test_weighted_sums_ignore_tokens_that_were_certain_without_a_trace():
    log_c = jnp.log(jnp.array([[0.2, 0.9], [0.9, 0.9]]))
    base = jnp.log(jnp.array([1.0, 0.1]))
    reward = aggregate("weighted_sum_log_prob", log_c, jnp.ones((2, 2), bool), jnp.broadcast_to(base, (2, 2)))
    np.testing.assert_allclose(reward.trace[0], reward.trace[1])
    np.testing.assert_allclose(reward.token[:, 0], 0.0)


def test_unknown_mode_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'geometric_mean'"):
        aggregate("geometric", jnp.zeros((1, 1)), jnp.ones((1, 1), bool))
    with pytest.raises(ValueError, match="base_log_probs"):
        aggregate("weighted_sum_log_prob", jnp.zeros((1, 1)), jnp.ones((1, 1), bool))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("limit", [10, 3])
def test_scores_equal_a_full_forward_of_prompt_trace_delimiter_answer(window, limit):
    model, params = tiny_model(window)
    batch = random_batch(1)
    rollout = sample(model, params, batch.prompts, jax.random.key(3), sampling())
    rollout = cut_traces(rollout, jnp.full(3, limit))
    log_probs, base = jax.jit(score_reference, static_argnums=0)(model, params, rollout, batch.reference)
    for p in range(3):
        prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
        answer = batch.reference.tokens[p][batch.reference.mask[p]]
        traces = [np.asarray(rollout.tokens[p, k])[: int(rollout.trace_length[p, k])] for k in range(3)]
        for scores, trace in zip([*log_probs[p], base[p]], [*traces, []], strict=True):
            ids = np.concatenate([prompt, np.array(trace, int), [DELIMITER], answer]).astype(int)
            expected = full_log_probs(model, params, ids)[-len(answer) :][np.arange(len(answer)), answer]
            np.testing.assert_allclose(scores[: len(answer)], expected, atol=1e-4)


def test_the_empty_trace_scores_as_the_baseline():
    model, params = tiny_model()
    batch = random_batch(2)
    rollout = cut_traces(sample(model, params, batch.prompts, jax.random.key(3), sampling()), jnp.zeros(3, int))
    log_probs, base = jax.jit(score_reference, static_argnums=0)(model, params, rollout, batch.reference)
    mask = batch.reference.mask
    for k in range(3):
        np.testing.assert_allclose(log_probs[:, k][mask], base[mask], atol=1e-5)
