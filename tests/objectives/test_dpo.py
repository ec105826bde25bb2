"""The DPO loss against its papers' formulas in float64, its gradient, and what its numbers mean."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.objectives import DPOConfig, dpo_loss

P, T = 3, 5
numbers = hnp.arrays(np.float64, (P, 2, T), elements=st.floats(-4, 0, width=32))
references = hnp.arrays(np.float64, (P, 2), elements=st.floats(-20, 0, width=32))
masks = hnp.arrays(bool, (P, 2, T))
CONFIGS = [DPOConfig(), DPOConfig(beta=0.7), DPOConfig(label_smoothing=0.2), DPOConfig(beta=0.3, loss="ipo")]


def transcription(log_probs, mask, reference, config):
    """Equation 7 of Rafailov et al. (smoothed: Mitchell's cDPO), or 17 of Azar et al. per token; dL / d log pi, too."""
    losses, slopes, rewards = [], [], []
    for pair, covered, of_reference in zip(log_probs, mask, reference, strict=True):
        ratio = [pair[k][covered[k]].sum() - of_reference[k] for k in (0, 1)]
        h, e, beta, lengths = ratio[0] - ratio[1], config.label_smoothing, config.beta, np.array([1.0, 1.0])
        sigma = 1 / (1 + np.exp(-beta * h))
        if config.loss == "ipo":
            lengths = np.maximum(covered.sum(-1), 1)
            off = ratio[0] / lengths[0] - ratio[1] / lengths[1] - 1 / (2 * beta)
            losses.append(off**2)
            slopes.append(2 * off)
        else:
            losses.append(-(1 - e) * np.log(sigma) - e * np.log(1 - sigma))
            slopes.append(beta * (e * sigma - (1 - e) * (1 - sigma)))
        slopes[-1] = slopes[-1] * np.array([1, -1]) / lengths
        rewards.append([beta * ratio[0], beta * ratio[1]])
    return np.mean(losses), np.array(slopes) / len(losses), np.array(rewards)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@hypothesis.given(numbers, masks, references)
def test_loss_gradient_and_rewards_are_those_of_the_papers(config, log_probs, mask, reference):
    expected, slopes, rewards = transcription(log_probs, mask, reference, config)
    arrays = jnp.float32(log_probs), mask, jnp.float32(reference)
    (loss, metrics), gradient = _value_and_grad(*arrays, config)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    wanted = slopes[..., None] * mask
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)
    found = [metrics["reward_chosen"], metrics["reward_rejected"], metrics["reward_margin"]]
    margins = rewards[:, 0] - rewards[:, 1]
    np.testing.assert_allclose(found, [*rewards.mean(0), margins.mean()], rtol=1e-4, atol=1e-5)
    if (np.abs(margins) > 1e-4).all():
        assert metrics["preference_accuracy"] == pytest.approx((margins > 0).mean())


_value_and_grad = jax.jit(jax.value_and_grad(dpo_loss, has_aux=True), static_argnums=3)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_is_what_trl_computes(config):
    """The lines of trl 1.16's DPOTrainer for `sigmoid` and `ipo`, in float64; smoothing as in cDPO."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    log_probs, reference = rng.uniform(-4, 0, (P, 2, T)), rng.uniform(-9, 0, (P, 2))
    mask = np.arange(T) < rng.integers(1, T, (P, 2))[..., None]
    chosen, rejected = torch.tensor(log_probs.sum(-1, where=mask)).T - torch.tensor(reference).T
    delta = chosen - rejected
    if config.loss == "ipo":
        chosen_mask, rejected_mask = torch.tensor(mask.sum(-1)).T
        losses = (chosen / chosen_mask - rejected / rejected_mask - 1 / (2 * config.beta)) ** 2
    else:
        losses = (
            -torch.nn.functional.logsigmoid(config.beta * delta) * (1 - config.label_smoothing)
            - torch.nn.functional.logsigmoid(-config.beta * delta) * config.label_smoothing
        )
    loss, _ = dpo_loss(jnp.float32(log_probs), mask, jnp.float32(reference), config)
    assert float(loss) == pytest.approx(losses.mean().item(), rel=1e-5)


@hypothesis.given(numbers, masks)
def test_at_the_reference_the_loss_is_ln_2_and_no_completion_is_rewarded(log_probs, mask):
    reference = jnp.sum(jnp.float32(log_probs), -1, where=mask)
    loss, metrics = dpo_loss(jnp.float32(log_probs), mask, reference, DPOConfig())
    assert loss == jnp.log(jnp.float32(2))
    assert metrics["reward_margin"] == metrics["reward_chosen"] == metrics["reward_rejected"] == 0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parts_of_a_batch_add_up_to_it(config):
    rng = np.random.default_rng(1)
    log_probs, reference = jnp.float32(rng.uniform(-4, 0, (P, 2, T))), jnp.float32(rng.uniform(-9, 0, (P, 2)))
    mask = rng.random((P, 2, T)) < 0.7
    whole = dpo_loss(log_probs, mask, reference, config)
    parts = [dpo_loss(log_probs[i], mask[i], reference[i], config, P) for i in (np.array([2]), np.array([0, 1]))]
    jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, sum(y), rtol=1e-5, atol=1e-6), whole, *parts)
