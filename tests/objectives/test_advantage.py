"""Advantages as statements about a group."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.objectives import SCALES, drop_low_std, group_advantage

# On a grid, since float32 cannot tell 1 + 1e-8 from 1 and a group of such rewards has no meaningful std.
grid = st.integers(-64, 64).map(lambda n: n / 16)
rewards = hnp.arrays(np.float32, (3, 5), elements=grid)
baselines = hnp.arrays(np.float32, 3, elements=grid)
clips = st.sampled_from(["clip", "subtract", "none"])


@hypothesis.given(rewards, baselines, clips)
def test_advantage_has_mean_zero_and_unit_std_or_is_zero(reward, baseline, clip):
    advantage = np.asarray(group_advantage(reward, baseline, clip=clip))
    for row in advantage:
        if row.any():
            np.testing.assert_allclose(row.mean(), 0, atol=1e-4)
            np.testing.assert_allclose(row.std(ddof=1), 1, rtol=1e-3)


@hypothesis.given(rewards, baselines, clips, st.permutations(range(5)))
def test_permuting_the_group_permutes_the_advantage(reward, baseline, clip, order):
    order = np.array(order)
    plain = group_advantage(reward, baseline, clip=clip)
    np.testing.assert_allclose(group_advantage(reward[:, order], baseline, clip=clip), plain[:, order], atol=1e-5)


@hypothesis.given(hnp.arrays(np.float32, 3, elements=st.floats(-4, 4, width=32)), st.integers(2, 9))
def test_equal_rewards_give_exactly_zero(value, group_size):
    """Also where the mean of K equal floats is one ulp off, which dividing by std would turn into 1."""
    reward = np.repeat(value[:, None], group_size, axis=1)
    assert not np.asarray(group_advantage(reward)).any()


@hypothesis.given(rewards, baselines, st.sampled_from(["std", "none"]))
def test_subtracting_a_constant_of_the_group_changes_nothing_but_clipping_does(reward, baseline, scale):
    none = group_advantage(reward, baseline, clip="none", scale=scale)
    np.testing.assert_allclose(group_advantage(reward, baseline, clip="subtract", scale=scale), none, atol=1e-5)
    clipped = np.asarray(group_advantage(reward, baseline, clip="clip", scale="none"))
    gain = np.maximum(0, np.float64(reward) - baseline[:, None])
    np.testing.assert_allclose(clipped, gain - gain.mean(-1, keepdims=True), atol=1e-5)


def test_a_group_without_any_gain_over_the_empty_trace_learns_nothing():
    advantage = group_advantage(np.array([[0.1, 0.2, 0.3]]), np.array([0.5]), clip="clip")
    assert not np.asarray(advantage).any()


def leave_one_out(log_p, i):
    """L - log(1/(K - 1) sum_{j != i} p_j) of probabilities, in float64."""
    p = np.exp(np.float64(log_p))
    return np.log(p.mean()) - np.log(np.delete(p, i).mean())


@hypothesis.given(rewards, st.floats(-300, 0))
def test_rloo_and_jepo_are_their_papers_formulas_and_jepo_holds_where_probabilities_underflow(reward, shift):
    found = np.asarray(group_advantage(reward, scale="rloo"))
    expected = [[row[i] - np.delete(row, i).mean() for i in range(5)] for row in np.float64(reward)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for row, advantage in zip(
        reward, np.asarray(group_advantage(reward + np.float32(shift), scale="jepo")), strict=True
    ):
        gain = np.array([leave_one_out(row, i) for i in range(5)])
        std = gain.std(ddof=1)
        expected = np.clip(gain / std, -1, 1) if std else np.zeros(5)
        np.testing.assert_allclose(advantage, expected, atol=2e-3)  # exp(-300) is 0 in float32; the sum is -300.


@hypothesis.given(rewards)
def test_batch_scales_use_the_whole_batch_and_batch_std_the_groups_means(reward):
    wide = np.float64(reward)
    whitened = wide - wide.mean()
    found = np.asarray(group_advantage(reward, scale="batch"))
    np.testing.assert_allclose(found, whitened / (whitened.std(ddof=1) or 1), atol=1e-4)
    centred = wide - wide.mean(-1, keepdims=True)
    found = np.asarray(group_advantage(reward, scale="batch_std"))
    np.testing.assert_allclose(found, centred / (centred.std(ddof=1) or 1), atol=1e-4)


@hypothesis.given(rewards, st.sampled_from(sorted(SCALES)), st.permutations(range(5)), st.integers(-40, 40))
def test_every_scale_follows_the_order_of_the_group_and_ignores_a_constant(reward, scale, order, constant):
    plain = group_advantage(reward, scale=scale)
    np.testing.assert_allclose(
        group_advantage(reward[:, np.array(order)], scale=scale), plain[:, np.array(order)], atol=1e-5
    )
    np.testing.assert_allclose(group_advantage(reward + np.float32(constant), scale=scale), plain, atol=2e-3)


@pytest.mark.parametrize("scale", sorted(SCALES))
def test_no_scale_divides_by_the_rounding_of_equal_rewards(scale):
    assert not np.asarray(group_advantage(np.full((3, 7), 0.1, np.float32), scale=scale)).any()


@hypothesis.given(st.lists(rewards, min_size=1, max_size=4), st.floats(0.3, 1.2))
def test_prompts_are_dropped_below_a_share_of_the_average_of_the_steps_before(steps, min_std):
    average, expected_average = np.float32(np.nan), None
    for reward in steps:
        plain = np.asarray(group_advantage(reward))
        found, average = drop_low_std(plain, reward, average, min_std=min_std, decay=0.99)
        std = np.float64(reward).std(-1, ddof=1)
        limit = -1.0 if expected_average is None else min_std * expected_average
        hypothesis.assume((np.abs(std - limit) > 1e-4).all())
        np.testing.assert_array_equal(found, np.where((std < limit)[:, None], 0.0, plain))
        mean = std.mean()
        expected_average = mean if expected_average is None else 0.99 * expected_average + 0.01 * mean
        np.testing.assert_allclose(average, expected_average, rtol=1e-5, atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"advantage\.clip"):
        group_advantage(np.zeros((1, 2)), clip="clipped")
    with pytest.raises(UserError, match=r"advantage\.scale"):
        group_advantage(np.zeros((1, 2)), scale="stdev")
    with pytest.raises(ValueError, match="baseline"):
        group_advantage(np.zeros((1, 2)), clip="clip")
