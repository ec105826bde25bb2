"""The learner's layout and forward against sequences built by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.data import Example
from nrt_jax.data.encode import Encoded
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rollout import sample
from nrt_jax.training.config import RewardConfig
from nrt_jax.training.learner import completion_log_probs, from_demonstrations
from nrt_jax.training.step import describe, fit_traces, reward_rollout, score_rollout
from tests.data.common import DELIMITER as ENCODER_DELIMITER
from tests.data.common import EOS, encoder
from tests.fixtures_model import DELIMITER, full_log_probs, random_batch, sampling, tiny_model


def learner_batch(batch, *, max_length=1000, has_opening=False, window=None, seed=3):
    model, params = tiny_model(window)
    rollout = sample(model, params, batch.prompts, jax.random.key(seed), sampling())
    scored = score_rollout(
        params, rollout, batch, jnp.float32(1.0), model=model, reward_config=RewardConfig(), max_length=max_length
    )
    learner, outcome = reward_rollout(
        scored,
        batch,
        None,
        reward_config=RewardConfig(),
        advantage_config=AdvantageConfig(clip="none"),
        loss_config=NRTLossConfig(token_signal="derived"),
        has_opening=has_opening,
    )
    return model, params, fit_traces(rollout, batch, max_length), learner, describe(outcome)


@pytest.mark.parametrize("window", [None, 4])
def test_layout_is_prompt_trace_delimiter_answer_and_its_log_probs_equal_a_full_forward(window):
    batch = random_batch(1)
    model, params, rollout, learner, _ = learner_batch(batch, window=window)
    log_probs, entropy = jax.jit(completion_log_probs, static_argnums=0)(model, params, learner)
    for p in range(3):
        prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
        answer = batch.reference.tokens[p][batch.reference.mask[p]]
        for k in range(3):
            z = np.asarray(rollout.tokens[p, k])[: int(rollout.trace_length[p, k])]
            ids = np.concatenate([prompt, z, [DELIMITER], answer])
            num = len(ids) - len(prompt) + 1
            np.testing.assert_array_equal(learner.tokens[p, k, :num], ids[len(prompt) - 1 :])
            expected = full_log_probs(model, params, ids)[len(prompt) - 2 :]
            picked = expected[np.arange(num), ids[len(prompt) - 1 :]]
            np.testing.assert_allclose(log_probs[p, k, :num], picked, atol=1e-4)
            np.testing.assert_allclose(entropy[p, k, :num], -(np.exp(expected) * expected).sum(-1), atol=1e-4)
            names = np.array(["."] * learner.tokens.shape[-1])
            names[1 : 1 + len(z)], names[1 + len(z)] = "z", "d"
            names[2 + len(z) : 2 + len(z) + len(answer)] = "y"
            np.testing.assert_array_equal(learner.masks.trace[p, k], (names == "z") | (names == "d"))
            np.testing.assert_array_equal(learner.masks.reference[p, k], names == "y")
            forced = not bool(rollout.matched(DELIMITER)[p, k])
            np.testing.assert_array_equal(learner.masks.delimiter[p, k], (names == "d") & forced)


def test_sampler_log_probs_equal_the_training_forward():
    """Trace and delimiter, forced delimiters included: ratios are 1 before any update."""
    model, params, _, learner, _ = learner_batch(random_batch(1))
    log_probs, _ = jax.jit(completion_log_probs, static_argnums=0)(model, params, learner)
    where = np.asarray(learner.masks.trace)
    np.testing.assert_allclose(log_probs[where], learner.old_log_probs[where], atol=1e-4)


def test_reward_is_computed_from_the_same_probabilities_as_the_training_forward():
    """The token signal -c log c_base / T from the scorer, recomputed from the learner's own log-probabilities."""
    batch = random_batch(2)
    model, params, _, learner, metrics = learner_batch(batch)
    log_probs, _ = jax.jit(completion_log_probs, static_argnums=0)(model, params, learner)
    where = np.asarray(learner.masks.reference)
    weights = np.asarray(learner.token_signal)[where] / np.exp(np.asarray(log_probs)[where])
    per_answer = np.repeat(weights.reshape(-1), 1)
    assert (per_answer > 0).all()
    # The weight -log c_base / T belongs to the prompt: the same for each of its K traces.
    counts = np.asarray(batch.reference.mask).sum(-1)
    start = 0
    for count in counts:
        group = weights[start : start + 3 * count].reshape(3, count)
        np.testing.assert_allclose(group, np.broadcast_to(group[0], group.shape), rtol=1e-3)
        start += 3 * count
    reward = np.where(where, learner.token_signal, 0).sum(-1)
    np.testing.assert_allclose(metrics["reward"], reward.mean(), rtol=1e-5)


@pytest.mark.parametrize("max_length", [9, 12])
def test_overlong_samples_lose_trace_never_answer(max_length):
    batch = random_batch(4, prompt_lengths=(4, 3, 2), answer_lengths=(4, 2, 1))
    _, _, rollout, learner, _ = learner_batch(batch, max_length=max_length)
    total = batch.prompts.mask.sum(-1)[:, None] + np.asarray(learner.masks.trace | learner.masks.reference).sum(-1)
    assert total.max() == max_length
    answers = np.asarray(learner.masks.reference).sum(-1)
    np.testing.assert_array_equal(answers, np.broadcast_to(batch.reference.mask.sum(-1)[:, None], answers.shape))
    for p in range(3):
        for k in range(3):
            kept = np.asarray(learner.tokens[p, k])[np.asarray(learner.masks.reference[p, k])]
            np.testing.assert_array_equal(kept, batch.reference.tokens[p][batch.reference.mask[p]])
    cut = np.asarray(rollout.trace_length) + batch.prompts.mask.sum(-1)[:, None] + 1 + answers == max_length
    assert cut.any()


@given(
    traces=st.lists(st.lists(st.integers(4, 9), max_size=40), min_size=1, max_size=4),
    max_length=st.one_of(st.none(), st.integers(0, 60)),
)
def test_overlong_demonstrations_lose_the_tail_of_their_trace_and_nothing_else(traces, max_length):
    """The prompt takes 3 tokens and the answer 4; a limit too small for these leaves an empty trace."""
    rows = [Encoded((1, 5, 6), (7, 8, 9, EOS), tuple(trace), Example("", "")) for trace in traces]
    batch = from_demonstrations(encoder(), rows, with_trace=True, max_length=max_length)
    for row, tokens, mask in zip(rows, batch.tokens[:, 0], batch.masks.reference[:, 0], strict=True):
        kept = tuple(tokens[mask])
        cut = kept[: -len(row.answer) - 1]
        assert kept == (*cut, ENCODER_DELIMITER, *row.answer) and cut == row.trace[: len(cut)]
        whole = len(row.prompt) + len(row.trace) + 1 + len(row.answer)
        wanted = whole if max_length is None else min(whole, max(max_length, 3 + 1 + 4))
        assert len(row.prompt) + len(kept) == wanted


def test_an_opening_tag_is_learned_as_a_forced_delimiter():
    _, _, _, plain, _ = learner_batch(random_batch(1))
    _, _, _, opened, _ = learner_batch(random_batch(1), has_opening=True)
    assert np.asarray(opened.masks.delimiter)[..., 0].all()
    assert not np.asarray(plain.masks.delimiter)[..., 0].any()
    chex.assert_trees_all_equal(plain.masks.delimiter[..., 1:], opened.masks.delimiter[..., 1:])


def test_gradient_equals_that_of_separate_full_forwards():
    """The question runs once a group here and K times there; gradients flow through it in both."""
    batch = random_batch(6)
    model, params, _, learner, _ = learner_batch(batch)
    wanted = np.asarray(learner.masks.trace | learner.masks.reference)
    rows, weights = np.zeros((9, 24), np.int32), np.zeros((9, 23), np.float32)
    for row, (p, k) in enumerate(np.ndindex(3, 3)):
        prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
        ids = np.concatenate([prompt, np.asarray(learner.tokens[p, k])[wanted[p, k]]])
        rows[row, : len(ids)] = ids
        weights[row, len(prompt) - 1 : len(ids) - 1] = 1.0

    def shared(params):
        log_probs, _ = completion_log_probs(model, params, learner)
        return -jnp.sum(log_probs, where=wanted)

    def separate(params):
        log_probs = jax.nn.log_softmax(model.logits(params, rows))[:, :-1]
        return -jnp.sum(weights * jnp.take_along_axis(log_probs, rows[:, 1:, None], -1)[..., 0])

    (loss, gradient), (expected, full_gradient) = (jax.jit(jax.value_and_grad(f))(params) for f in (shared, separate))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(full_gradient))
    chex.assert_trees_all_close(gradient, full_gradient, atol=1e-4 * scale)  # float32 sums
