"""The loss's switches as statements, beside the golden vectors of the release."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.objectives import POLICY_LOSSES, LossMasks, NRTLossConfig, denominators, nrt_loss, sft_loss

P, K, T = 2, 3, 7


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    trace = np.arange(T) < rng.integers(1, 4, (P, K, 1))
    reference = (np.arange(T) >= 4) & (np.arange(T) < rng.integers(5, 8, (P, K, 1)))
    delimiter = np.zeros((P, K, T), bool)
    delimiter[0, 1, 3] = True  # one forced delimiter in six sequences
    log_probs = jnp.array(-rng.exponential(1.0, (P, K, T)), jnp.float32)
    old = log_probs + jnp.array(rng.normal(0, 0.2, (P, K, T)), jnp.float32)
    advantage = jnp.array(rng.normal(size=(P, K)), jnp.float32)
    masks = LossMasks(trace=trace | delimiter, delimiter=delimiter, reference=reference)
    return log_probs, old, advantage, jnp.array(reference, jnp.float32), masks


def test_on_policy_gradient_of_the_trace_term_is_reinforce(inputs):
    """With r = 1 everywhere the gradient is -A / N on the trace and nothing else."""
    log_probs, _, advantage, signal, masks = inputs
    config = NRTLossConfig(delimiter_weight=0.0, token_weight=0.0)
    gradient = jax.grad(lambda x: nrt_loss(x, log_probs, advantage, signal, masks, config)[0])(log_probs)
    expected = np.where(masks.trace, -np.asarray(advantage)[..., None], 0) / masks.trace.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


NORMALISERS = ("token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant")


@pytest.mark.parametrize("policy", POLICY_LOSSES)
def test_parts_of_a_batch_add_up_to_the_whole(inputs, policy):
    reference = inputs[1] - 0.1
    for normaliser in NORMALISERS:
        for delimiter_mean in ("forced", "sequences"):
            config = NRTLossConfig(
                policy=policy, normaliser=normaliser, constant=7.0, delimiter_mean=delimiter_mean, kl_weight=0.5
            )
            whole = denominators(inputs[-1], config)
            total, metrics = nrt_loss(*inputs, config, whole, reference)
            parts = [
                nrt_loss(*part, config, whole, kl_part)
                for part, kl_part in (jax.tree.map(lambda x, p=p: x[p : p + 1], (inputs, reference)) for p in range(P))
            ]
            np.testing.assert_allclose(sum(loss for loss, _ in parts), total, rtol=1e-5)
            np.testing.assert_allclose(sum(m["kl_loss"] for _, m in parts), metrics["kl_loss"], rtol=1e-5)


@pytest.mark.parametrize("policy", POLICY_LOSSES)
def test_an_advantage_a_token_is_that_of_its_sequence_where_all_are_equal_and_reaches_its_own_token_alone(
    inputs, policy
):
    log_probs, old, advantage, signal, masks = inputs
    config = NRTLossConfig(policy=policy, delimiter_weight=0.0, token_weight=0.0, ratio_low=0.0, ratio_high=9.0)

    def loss(x, advantage):
        return nrt_loss(x, old, advantage, signal, masks, config)[0]

    # What padding holds reaches nothing, not even as nan.
    per_token = jnp.where(masks.trace, advantage[..., None], jnp.nan)
    for expected, found in zip(
        jax.value_and_grad(loss)(log_probs, advantage), jax.value_and_grad(loss)(log_probs, per_token), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    protected = jnp.arange(T) < 1  # A given prefix, which is never pushed down.
    gradient = jax.grad(loss)(log_probs, jnp.where(protected, jnp.maximum(advantage[..., None], 0.0), per_token))
    assert (np.asarray(gradient)[..., 0] <= 0).all() and (np.asarray(gradient)[..., 1:] > 0).any()


def test_one_forced_delimiter_weighs_as_one_sequence_or_as_all(inputs):
    log_probs = inputs[0]
    cross_entropy = -float(log_probs[0, 1, 3])
    for delimiter_mean, expected in (("forced", cross_entropy), ("sequences", cross_entropy / (P * K))):
        _, metrics = nrt_loss(*inputs, NRTLossConfig(delimiter_mean=delimiter_mean))
        np.testing.assert_allclose(metrics["delimiter_loss"], expected, rtol=1e-6)


def test_padding_changes_no_normaliser(inputs):
    def widen(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, 5))) if x.ndim == 3 else x

    for normaliser in NORMALISERS:
        config = NRTLossConfig(normaliser=normaliser)
        np.testing.assert_allclose(
            nrt_loss(*jax.tree.map(widen, inputs), config)[0], nrt_loss(*inputs, config)[0], rtol=1e-6
        )


def test_weights_switch_terms_off(inputs):
    log_probs, _, _, signal, masks = inputs
    _, metrics = nrt_loss(*inputs, NRTLossConfig())
    for name, term in (("trace", "trace_loss"), ("delimiter", "delimiter_loss"), ("token", "token_loss")):
        off = dict.fromkeys(("trace_weight", "delimiter_weight", "token_weight"), 0.0) | {f"{name}_weight": 2.0}
        total, _ = nrt_loss(*inputs, dataclasses.replace(NRTLossConfig(), **off))
        np.testing.assert_allclose(total, 2 * metrics[term], rtol=1e-6)
    np.testing.assert_allclose(metrics["token_loss"], sft_loss(log_probs, masks.reference), rtol=1e-6)
    assert signal.sum() == masks.reference.sum()


def test_tokens_beyond_the_ratio_bounds_are_dropped_only_where_the_update_would_push_them_further():
    old = jnp.zeros((1, 1, 4))
    log_probs = jnp.log(jnp.array([[[2.0, 2.0, 0.5, 0.5]]]))
    masks = LossMasks(
        trace=np.ones((1, 1, 4), bool), delimiter=np.zeros((1, 1, 4), bool), reference=np.zeros((1, 1, 4)) > 0
    )
    config = NRTLossConfig(normaliser="constant")
    for advantage, kept in ((1.0, [0, 0, 1, 1]), (-1.0, [1, 1, 0, 0])):
        gradient = jax.grad(lambda x, a=advantage: nrt_loss(x, old, jnp.full((1, 1), a), old, masks, config)[0])(
            log_probs
        )
        clipped = np.clip([2.0, 2.0, 0.5, 0.5], 0.8, 1.28)
        np.testing.assert_allclose(gradient[0, 0], -advantage * clipped * kept, rtol=1e-6)
