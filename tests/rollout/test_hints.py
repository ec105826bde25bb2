"""Where chains are cut, and that a teacher-forced rollout is the one that was sampled."""

import itertools

import chex
import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax.rewards import score_reference
from nrt_jax.rollout import force, sample
from nrt_jax.rollout.hints import HintConfig, boundaries
from tests.fixtures_model import random_batch, sampling, tiny_model

WISHES = st.lists(st.floats(-30, 0, width=32), min_size=2, max_size=40, unique=True).map(np.array)


@settings(max_examples=200)
@given(WISHES, st.integers(2, 6), st.integers(1, 9))
def test_a_chain_is_cut_where_the_wish_to_stop_drops_and_steps_are_long_enough(wish, steps, distance):
    cuts = boundaries(wish, steps, distance)
    assert len(cuts) == steps - 1 and sorted(cuts) == list(cuts)
    real = [int(i) for i in cuts if i]
    assert list(cuts).count(0) == steps - 1 - len(real)
    assert all(wish[i] > wish[i + 1] for i in real)
    assert not real or all(b - a >= distance for a, b in itertools.pairwise([0, *real, len(wish) - 1]))


def test_a_drop_is_one_of_probability():
    """From 0.6 to 0.05; from there to 1e-9 is a larger one of the logarithm."""
    wish = np.log([1e-3, 1e-3, 0.6, 0.05, 1e-9, 1e-9, 1e-9, 1e-9])
    assert boundaries(wish, steps=2, min_distance=2) == [2]


@settings(max_examples=200)
@given(WISHES, st.integers(2, 6), st.integers(1, 9))
def test_no_cut_that_was_left_out_could_be_added_or_drops_more_than_one_that_it_would_replace(wish, steps, distance):
    real = [int(i) for i in boundaries(wish, steps, distance) if i]
    drop = np.exp(wish[:-1]) - np.exp(wish[1:])
    ends = [0, len(wish) - 1]
    for i in np.flatnonzero(drop > 0):
        if i in real or any(abs(i - end) < distance for end in ends):
            continue
        in_the_way = [j for j in real if abs(i - j) < distance]
        if in_the_way:
            assert drop[i] <= max(drop[j] for j in in_the_way)
        else:
            assert len(real) == steps - 1 and drop[i] <= min(drop[j] for j in real)


def test_the_papers_group_has_twelve_rows():
    assert HintConfig(steps=4).group_size == 2 * 3 + 5 + 1 == 12


def test_forced_to_its_own_tokens_a_rollout_is_itself():
    model, params = tiny_model()
    batch, config = random_batch(1), sampling()
    sampled = sample(model, params, batch.prompts, jax.random.key(3), config)
    tokens = np.where(sampled.mask, sampled.tokens, -1)
    forced = force(model, params, batch.prompts, tokens, sampled.finished, config)
    for name in ("tokens", "mask", "finished", "trace_length", "prompt_length"):
        np.testing.assert_array_equal(getattr(forced, name), getattr(sampled, name), err_msg=name)
    covered = np.arange(tokens.shape[-1] + 1) <= np.asarray(sampled.trace_length)[..., None]
    for name in ("log_probs", "entropy"):
        chex.assert_trees_all_close(getattr(forced, name), getattr(sampled, name), atol=1e-4)
    wishes = [np.where(covered, rollout.delimiter_log_probs, 0) for rollout in (forced, sampled)]
    np.testing.assert_allclose(*wishes, atol=1e-4)
    assert (~np.asarray(sampled.finished)).any() and np.asarray(sampled.finished).any(), "both kinds of ends"
    scored = [score_reference(model, params, rollout, batch.reference) for rollout in (forced, sampled)]
    seen = np.asarray(batch.reference.mask)
    np.testing.assert_allclose(*(np.where(seen[:, None], s[0], 0) for s in scored), atol=1e-4)
