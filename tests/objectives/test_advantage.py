"""Advantages as statements about a group."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.objectives import group_advantage

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


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"advantage\.clip"):
        group_advantage(np.zeros((1, 2)), clip="clipped")
    with pytest.raises(ValueError, match="baseline"):
        group_advantage(np.zeros((1, 2)), clip="clip")
