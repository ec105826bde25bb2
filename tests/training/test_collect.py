"""Groups that are rewarded in parts, in any order, on any device, make the batch that they make together."""

import chex
import jax
import numpy as np
import pytest

from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.training.collect import collect
from nrt_jax.training.config import RewardConfig
from tests.fixtures_model import random_batch, sampling, tiny_model


def collected(mode, *, max_rows=None, devices=None):
    model, params = tiny_model()
    learner_batch, outcome = collect(
        model,
        [jax.device_put(params, device) for device in devices] if devices else params,
        random_batch(2),
        jax.random.key(1),
        sampling(chunk_size=3).replace(max_rows=max_rows),
        reward_config=RewardConfig(mode),
        advantage_config=AdvantageConfig(),
        loss_config=NRTLossConfig(),
        max_length=1000,
    )
    covered = np.asarray(outcome.answer_mask)[:, None]  # Elsewhere the numbers are arbitrary.
    return learner_batch, outcome.replace(log_probs=np.where(covered, outcome.log_probs, 0.0), base_log_probs=None)


@pytest.mark.parametrize("mode", ["weighted_sum_log_prob", "random"])
def test_waiting_prompts_and_several_devices_change_nothing(mode):
    whole, parts = collected(mode), collected(mode, max_rows=2, devices=jax.devices()[:2])
    chex.assert_trees_all_close(whole, jax.tree.map(np.asarray, parts), atol=1e-4)
    np.testing.assert_array_equal(whole[0].tokens, parts[0].tokens)


def test_parts_hold_different_rewards_so_that_a_wrong_order_would_show():
    _, outcome = collected("weighted_sum_log_prob")
    assert len(np.unique(np.asarray(outcome.reward).round(4))) == outcome.reward.size
