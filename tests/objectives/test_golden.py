"""Rewards, advantages, loss terms and gradients against outputs of the released NRT code (float32 inside)."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.objectives import LossMasks, NRTLossConfig, group_advantage, nrt_loss, token_signal
from nrt_jax.rewards import AGGREGATIONS, aggregate

CASES = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "nrt_release.json").read_text())
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def arrays(case):
    """The case's inputs as [P, K, ...] arrays."""
    shape = (case["num_prompts"], case["group_size"], -1)
    bools = {k: np.array(case[k], bool).reshape(shape) for k in ("think_mask", "delimiter_mask", "reference_mask")}
    floats = {k: np.array(case[k], np.float32).reshape(shape) for k in ("log_probs", "old_log_probs")}
    matched = np.array(case["delimiter_matched"], bool).reshape(shape[:2])
    # The baseline's log-probs sit on a row of their own; move them to where the reference is in the sample's row.
    base = np.zeros_like(floats["log_probs"])
    base_mask = np.array(case["baseline_reference_mask"], bool).reshape(shape)
    base[bools["reference_mask"]] = np.array(case["baseline_log_probs"], np.float32).reshape(shape)[base_mask]
    return bools, floats, matched, base


@pytest.fixture(params=range(len(CASES)), ids=lambda i: f"seed{CASES[i]['seed']}")
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_reward_token_signal_and_advantage_match_the_release(case, mode):
    bools, floats, _, base = arrays(case)
    expected = case["modes"][mode]
    reward = aggregate(mode, floats["old_log_probs"], bools["reference_mask"], base)
    np.testing.assert_allclose(reward.trace.ravel(), expected["raw_trace_reward"], **TOLERANCE)
    np.testing.assert_allclose(
        reward.token.reshape(-1, reward.token.shape[-1]), expected["raw_token_signal"], **TOLERANCE
    )
    advantage = group_advantage(reward.trace, clip="none", scale="std")
    np.testing.assert_allclose(advantage.ravel(), expected["advantage"], **TOLERANCE)


@pytest.mark.parametrize("signal", ["fixed", "group_normalised"])
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_loss_and_gradient_match_the_release(case, mode, signal):
    bools, floats, matched, base = arrays(case)
    expected = case["modes"][mode][f"{signal}_token_signal"]
    reward = aggregate(mode, floats["old_log_probs"], bools["reference_mask"], base)
    advantage = group_advantage(reward.trace)
    masks = LossMasks(
        trace=bools["think_mask"] | bools["delimiter_mask"],
        delimiter=bools["delimiter_mask"] & ~matched[..., None],
        reference=bools["reference_mask"],
    )
    signals = token_signal(signal, reward.token, bools["reference_mask"])
    np.testing.assert_allclose(
        signals[bools["reference_mask"]],
        np.array(expected["token_signal"]).reshape(signals.shape)[bools["reference_mask"]],
        **TOLERANCE,
    )

    def loss(log_probs, normaliser):
        config = NRTLossConfig(normaliser=normaliser, token_signal=signal)
        return nrt_loss(log_probs, floats["old_log_probs"], advantage, signals, masks, config)

    for normaliser, name in [
        ("token_mean", "token_mean"),
        ("sequence_mean_token_sum", "seq_mean_token_sum"),
    ]:
        (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.array(floats["log_probs"]), normaliser)
        for term in ("trace_loss", "delimiter_loss", "token_loss"):
            np.testing.assert_allclose(metrics[term], expected[name][term], err_msg=term, **TOLERANCE)
        if "total" in expected[name]:
            np.testing.assert_allclose(total, expected[name]["total"], **TOLERANCE)
            np.testing.assert_allclose(
                gradient.reshape(-1, gradient.shape[-1]), expected[name]["grad_log_probs"], **TOLERANCE
            )
