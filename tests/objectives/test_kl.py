"""The estimators of KL: their definitions, and what their means and mean gradients are over all outcomes."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.objectives import LossMasks, NRTLossConfig, kl_estimate, nrt_loss, policy_mask

logits = hnp.arrays(np.float64, (2, 5), elements=st.floats(-2, 2, width=32))


@hypothesis.given(logits)
def test_estimates_are_their_definitions_and_k1_and_k3_are_unbiased(x):
    log_p, log_q = (row - np.log(np.exp(row).sum()) for row in x)
    log_ratio = log_q - log_p  # log pi_ref / pi
    expected = {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": np.exp(log_ratio) - 1 - log_ratio}
    divergence = np.sum(np.exp(log_p) * (log_p - log_q))
    for kind, values in expected.items():
        found = np.asarray(kl_estimate(kind, jnp.float32(log_p), jnp.float32(log_q), np.ones(5, bool)))
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=2e-6)
        if kind != "k2":
            np.testing.assert_allclose(np.sum(np.exp(log_p) * found), divergence, atol=1e-5)
    assert (np.asarray(kl_estimate("k3", log_p, log_q, np.ones(5, bool))) >= -1e-6).all()


@hypothesis.given(logits)
def test_mean_gradients_are_zero_for_k1_reverse_kl_for_k2_and_forward_kl_for_k3(x):
    mine, others = jnp.float32(x[0]), jax.nn.log_softmax(jnp.float32(x[1]))

    def of_loss(kind):
        """The mean over outcomes of grad of the estimate: the sampling itself is not differentiated."""

        def mean(z):
            log_p = jax.nn.log_softmax(z)
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * kl_estimate(kind, log_p, others, jnp.ones(5, bool)))

        return jax.grad(mean)(mine)

    def reverse(z):
        return jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - others))

    def forward(z):
        return jnp.sum(jnp.exp(others) * (others - jax.nn.log_softmax(z)))

    np.testing.assert_allclose(of_loss("k1"), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(of_loss("k2"), jax.grad(reverse)(mine), atol=1e-4)
    np.testing.assert_allclose(of_loss("k3"), jax.grad(forward)(mine), atol=1e-4)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 5)
    trace = np.arange(5) < rng.integers(1, 5, (2, 3, 1))
    delimiter = np.zeros(shape, bool)
    delimiter[0, 0, trace[0, 0].sum() - 1] = True
    masks = LossMasks(trace=trace, delimiter=delimiter, reference=~trace)
    log_probs, old, reference, signal = (jnp.array(-rng.exponential(1.0, shape), jnp.float32) for _ in range(4))
    return log_probs, old, jnp.array(rng.normal(size=(2, 3)), jnp.float32), signal, masks, reference


def test_kl_in_the_loss_adds_its_weight_times_its_mean_and_ignores_what_padding_holds():
    *args, masks, reference = inputs()
    for policy in ("nrt", "ppo"):
        base = NRTLossConfig(policy=policy, kl_estimator="k3")
        with_kl = NRTLossConfig(policy=policy, kl_estimator="k3", kl_weight=0.3)
        where = np.asarray(policy_mask(masks, base))
        assert where.sum() == masks.trace.sum() - (policy == "ppo")  # Its forced delimiter was never sampled.
        kl = kl_estimate("k3", args[0], reference, where)
        divide_by = type("By", (), {"trace": where.sum(), "delimiter": 1.0, "token": 1.0})
        plain, _ = nrt_loss(*args, masks, base, divide_by)
        total, metrics = nrt_loss(*args, masks, with_kl, divide_by, jnp.where(where, reference, jnp.nan))
        np.testing.assert_allclose(total - plain, 0.3 * kl.sum() / where.sum(), rtol=1e-4)
        np.testing.assert_allclose(metrics["kl_loss"], kl.sum() / where.sum(), rtol=1e-6)


def test_a_loss_with_kl_wants_a_reference():
    *args, masks, _ = inputs()
    with pytest.raises(ValueError, match="reference_log_probs"):
        nrt_loss(*args, masks, NRTLossConfig(kl_weight=0.1))
