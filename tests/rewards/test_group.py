"""Rewards of a whole group against their papers' formulas, in float64, trace by trace."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.rewards import AGGREGATIONS, GROUP_AGGREGATIONS, aggregate_group

P, K, T = 2, 4, 5

inputs = st.fixed_dictionaries(
    {
        "log_probs": hnp.arrays(np.float32, (P, K, T), elements=st.integers(-32, 0).map(lambda n: n / 8)),
        "base_log_probs": hnp.arrays(np.float32, (P, T), elements=st.integers(-32, 0).map(lambda n: n / 8)),
        "mask": hnp.arrays(np.int64, (P,), elements=st.integers(1, T)).map(lambda n: np.arange(T) < n[:, None]),
        "trace_length": hnp.arrays(np.int32, (P, K), elements=st.integers(1, 200)),
        "matched": hnp.arrays(bool, (P, K)),
    }
)


def jepo(log_c, base, trace_length, matched):
    p = np.exp(log_c.sum(-1))
    return log_c.sum(-1), np.repeat(p[:, None] / p.sum(), log_c.shape[1], 1)


def nover(log_c, base, trace_length, matched):
    perplexity = [
        np.exp(-row.mean() / max(1.0, 1.0 + np.log10(length))) for row, length in zip(log_c, trace_length, strict=True)
    ]
    valid = [i for i in range(K) if matched[i]]
    reward = np.zeros(K)
    for i in valid:
        better = [j for j in valid if perplexity[j] < perplexity[i] - 1e-9]
        beaten = [j for j in valid if perplexity[j] > perplexity[i] + 1e-9 and trace_length[j] > trace_length[i]]
        reward[i] = 1 + (len(valid) - len(better)) / len(valid)
        reward[i] += len(beaten) / (len(valid) - 1) if len(valid) > 1 else 0
    return reward, np.zeros_like(log_c)


def dro(log_c, base, trace_length, matched):
    sigma = log_c.std(0)
    weight = sigma / sigma.sum() if sigma.sum() else sigma
    return ((log_c - base) * weight).sum(-1), np.broadcast_to(weight, log_c.shape)


FORMULAS = {"jepo": jepo, "nover": nover, "dro": dro}


@pytest.mark.parametrize("mode", GROUP_AGGREGATIONS)
@hypothesis.given(inputs, st.permutations(range(K)))
def test_reward_and_token_signal_are_the_papers_whatever_padding_holds_and_follow_the_order_of_traces(mode, x, order):
    log_probs = np.where(x["mask"][:, None], x["log_probs"], np.nan)
    reward, baseline = aggregate_group(mode, **x | {"log_probs": log_probs})
    for p in range(P):
        n = x["mask"][p].sum()
        log_c, base = np.float64(x["log_probs"][p, :, :n]), np.float64(x["base_log_probs"][p, :n])
        expected, token = FORMULAS[mode](log_c, base, x["trace_length"][p], x["matched"][p])
        np.testing.assert_allclose(reward.trace[p], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(reward.token[p, :, :n], token, rtol=1e-4, atol=1e-6)
        assert not np.asarray(reward.token)[p, :, n:].any()
        np.testing.assert_allclose(baseline[p], base.sum() if mode == "jepo" else 0, rtol=1e-5)
    order = np.array(order)
    per_trace = ("log_probs", "trace_length", "matched")
    turned, _ = aggregate_group(mode, **x | {name: x[name][:, order] for name in per_trace})
    np.testing.assert_allclose(turned.trace, np.asarray(reward.trace)[:, order], rtol=1e-4, atol=1e-5)


@hypothesis.given(hnp.arrays(np.float32, (K, T), elements=st.floats(-4, 0, width=32)))
def test_jepo_signal_is_the_gradient_of_the_bound(log_c):
    mask = np.ones((1, T), bool)
    args = (np.zeros((1, T)), mask, np.ones((1, K), int), np.ones((1, K), bool))
    bound = jax.grad(lambda x: jax.nn.logsumexp(jnp.sum(x, -1)) - jnp.log(K))(jnp.array(log_c))
    np.testing.assert_allclose(aggregate_group("jepo", log_c[None], *args)[0].token[0], bound, rtol=1e-4, atol=1e-6)


def test_an_empty_trace_gains_exactly_nothing():
    """Scored in another shape it is an ulp off."""
    log_c = np.full((1, 2, 3), np.float32(-0.3))
    base = np.nextafter(log_c[:, 0], np.float32(0))
    for mode in ("dro", "jepo", *AGGREGATIONS):
        reward, baseline = aggregate_group(
            mode, log_c, base, np.ones((1, 3), bool), np.array([[0, 4]]), log_c[..., 0] < 0
        )
        assert reward.trace[0, 0] == baseline[0], mode


def test_an_unknown_mode_is_refused():
    group, answer = np.ones((1, 2), bool), np.ones((1, 3), bool)
    with pytest.raises(UserError, match=r"reward\.mode"):
        aggregate_group("jeppo", np.zeros((1, 2, 3)), np.zeros((1, 3)), answer, group, group)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@hypothesis.given(inputs)
def test_an_empty_trace_has_the_baseline_of_its_own_policy_alone(mode, given):
    """Against another policy's baseline it keeps the reward that its own probabilities make."""
    length = given["trace_length"].copy()
    length[:, 0] = 0
    given = {name: jnp.asarray(value) for name, value in (given | {"trace_length": jnp.asarray(length)}).items()}
    reward, baseline = aggregate_group(mode, **given)
    np.testing.assert_array_equal(reward.trace[:, 0], baseline)
    other, base = aggregate_group(mode, **given, same_policy=False)
    np.testing.assert_array_equal(base, baseline)
    np.testing.assert_array_equal(other.trace[:, 1:], reward.trace[:, 1:])
    moved = given | {"trace_length": jnp.ones_like(given["trace_length"])}
    np.testing.assert_array_equal(other.trace, aggregate_group(mode, **moved)[0].trace)
