"""Groups with hints: what each row was given, what it sampled, and what of it is learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.data import Example
from nrt_jax.errors import UserError
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import Judge, JudgeConfig, Judgement, VerifierConfig
from nrt_jax.rollout.hints import HintConfig, boundaries
from nrt_jax.training import loop, setup
from nrt_jax.training.collect import collect
from nrt_jax.training.config import RewardConfig, TrainConfig
from nrt_jax.training.hinted import Chains
from nrt_jax.training.learner import completion_log_probs
from tests import fixtures_run
from tests.fixtures_model import DELIMITER, EOS, random_batch, sampling, tiny_model

HINTS = HintConfig(steps=3, per_level=2, plain=2, min_distance=2)  # 7 rows
GROUP = ["plain", "plain", 1, 1, 2, 2, "chain"]
LENGTHS = (10, 7, 9)


def chains(batch, with_answer: bool) -> Chains:
    rng = np.random.default_rng(0)
    answers = [[*list(row[mask]), EOS] for row, mask in zip(batch.reference.tokens, batch.reference.mask, strict=True)]
    rows = [[*rng.integers(8, 48, n), DELIMITER, *(answers[p] if with_answer else ())] for p, n in enumerate(LENGTHS)]
    tokens = np.full((3, 1, max(map(len, rows)) + 1), -1, np.int32)
    for p, row in enumerate(rows):
        tokens[p, 0, : len(row)] = row
    return Chains(tokens, HINTS)


@pytest.fixture(scope="module", params=["trace", "answer"])
def collected(request):
    """Of an intrinsic reward, after traces, and of a rule's, after answers."""
    model, params = tiny_model()
    with_answer = request.param == "answer"
    batch, config = random_batch(2), sampling().replace(delimiter=jnp.int32(DELIMITER))
    if with_answer:  # As many stop ids: the same programs.
        config = config.replace(stop_ids=config.stop_ids.at[0].set(EOS))
    given = chains(batch, with_answer)
    learner, outcome = collect(
        model,
        params,
        batch,
        jax.random.key(1),
        config,
        score=(lambda tokens, lengths: {"verifiable": tokens.sum(-1) % 7.0}) if with_answer else None,
        chains=given,
        reward_config=RewardConfig(intrinsic=0.0, verifiable=1.0) if with_answer else RewardConfig(),
        advantage_config=AdvantageConfig(clip="none"),
        loss_config=NRTLossConfig(),
        max_length=1000,
    )
    return model, params, batch, given.tokens[:, 0], learner, outcome


def given_lengths(model, params, batch, chain) -> np.ndarray:
    """[P, K] tokens that each row should have been given, from plain forwards."""
    expected = []
    for p, length in enumerate(LENGTHS):
        prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
        ids = np.concatenate([prompt, chain[p][chain[p] >= 0]])
        position = len(prompt) - 1 + np.arange(length + 1)
        wish = full_forward(model, params, ids)[position, DELIMITER]
        cuts = boundaries(wish, HINTS.steps, HINTS.min_distance)
        expected.append([0, 0, *np.repeat(cuts, 2), np.count_nonzero(chain[p] >= 0)])
    return np.array(expected)


def full_forward(model, params, ids) -> np.ndarray:
    """log p(. | ids[:t + 1]) at index t, [T, V], by one plain forward."""
    padded = np.zeros((1, 48), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(_log_softmax(model, params, padded))[0, : len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def _log_softmax(model, params, tokens):
    return jax.nn.log_softmax(model.logits(params, tokens))


def test_rows_begin_with_their_hints_and_all_log_probs_are_those_of_full_forwards(collected):
    model, params, batch, chain, learner, _ = collected
    hint = given_lengths(model, params, batch, chain)
    assert (hint[:, 2:6] > 0).any() and (hint[:, 4] > hint[:, 2]).any()
    log_probs, _ = jax.jit(completion_log_probs, static_argnums=0)(model, params, learner)
    trace = np.asarray(learner.masks.trace)
    for p, k in np.ndindex(trace.shape[:2]):
        tokens = np.asarray(learner.tokens[p, k])
        np.testing.assert_array_equal(tokens[1 : 1 + hint[p, k]], chain[p, : hint[p, k]])
        np.testing.assert_allclose(log_probs[p, k][trace[p, k]], learner.old_log_probs[p, k][trace[p, k]], atol=1e-4)
        prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
        ids = np.concatenate([prompt, tokens[1:][np.asarray(trace | learner.masks.reference)[p, k, 1:]]])
        expected = full_forward(model, params, ids)[len(prompt) - 1 : -1]
        covered = 1 + np.arange(len(ids) - len(prompt))
        picked = expected[np.arange(len(covered)), ids[len(prompt) :]]
        np.testing.assert_allclose(log_probs[p, k][covered], picked, atol=1e-4)
    np.testing.assert_array_equal(trace[:, -1].sum(-1), hint[:, -1])  # The chain's row is the chain.


def test_a_right_hint_is_never_unlearned_and_other_tokens_have_the_groups_advantage(collected):
    model, params, batch, chain, learner, outcome = collected
    hint = given_lengths(model, params, batch, chain)
    reward = np.asarray(outcome.reward, np.float64)
    expected = (reward - reward.mean(-1, keepdims=True)) / reward.std(-1, ddof=1, keepdims=True)
    advantage = np.asarray(learner.advantage)
    assert (expected[:, 2:] < -0.1).any(), "no hinted row did worse than its group"
    for p, k in np.ndindex(expected.shape):
        np.testing.assert_allclose(advantage[p, k, 1 + hint[p, k] :], expected[p, k], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(advantage[p, k, 1 : 1 + hint[p, k]], max(expected[p, k], 0), rtol=1e-3, atol=1e-5)


def test_only_what_the_policy_sampled_counts_as_sampled(collected):
    model, params, batch, chain, _, outcome = collected
    hint = given_lengths(model, params, batch, chain)
    np.testing.assert_array_equal(np.asarray(outcome.num_sampled)[:, -1], 0)
    in_all = np.asarray(outcome.num_sampled) + hint
    assert (in_all >= np.asarray(outcome.trace_length)).all()
    assert (np.asarray(outcome.num_sampled)[:, :-1] > 0).all()


def test_a_config_that_cannot_be_composed_is_refused():
    base = TrainConfig(hints=HintConfig(steps=4))
    with pytest.raises(UserError, match=r"rollout.group_size: 8 cannot work; expected 12 = hints.per_level x"):
        base.validate()
    with pytest.raises(UserError, match=r"hints.steps: 1 cannot work"):
        TrainConfig(hints=HintConfig(steps=1)).validate()


def hinted_config(folder, **hints):
    config = fixtures_run.write_config(folder)
    hints = HintConfig(steps=3, per_level=1, plain=1, min_distance=1, **hints)
    rollout = config.rollout.__class__(**vars(config.rollout) | {"group_size": hints.group_size})
    return config.__class__(**vars(config) | {"hints": hints, "rollout": rollout})


def test_a_run_with_hints_learns_from_a_judge_and_one_without_chains_is_refused(tmp_path, monkeypatch):
    """The chain's own row is judged by the answer that ends it, as every row is."""
    asked = []

    def judge(self, responses):
        asked.extend(responses)
        return [
            Judgement(("",), (int(response == answers[question]),), (0.5,), 0.5) for question, response in responses
        ]

    monkeypatch.setattr(Judge, "judge", judge)
    config = hinted_config(tmp_path)
    answers = {example.question: example.answer for example in fixtures_run.examples(99)}
    reward = RewardConfig(intrinsic=0.0, judge=1.0)
    config = dataclasses.replace(config, reward=reward, judge=JudgeConfig(score="vote"))
    loop.train(config, setup.prepare(config), tmp_path / "run", lambda line: None)
    records = fixtures_run.records(tmp_path / "run")
    assert len(records) == config.steps
    right = [question for question, response in asked if response == answers[question]]
    assert len(right) >= config.steps * config.rollout.prompts
    shares = [record["reward"] for record in records]
    assert sum(shares) * config.rollout.prompts * config.rollout.group_size == pytest.approx(len(right))
    rows = [*fixtures_run.examples(11), Example("What is 1 plus 1?", "It is 2.")]
    fixtures_run.write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match=r"hints.steps: 3 needs a chain.* 1 rows of .*train.jsonl have none"):
        setup.prepare(config)


@pytest.mark.parametrize("tag", ["", "answer"])
@pytest.mark.parametrize("is_tight", [False, True])
def test_the_chains_own_row_is_right_and_written_as_asked(tmp_path, tag, is_tight):
    config = dataclasses.replace(
        hinted_config(tmp_path),
        reward=RewardConfig(intrinsic=0.0, verifiable=1.0, format=1.0),
        verifier=VerifierConfig(answer_tag=tag),
    )
    made = setup.prepare(config)
    rows = made.train[:4]
    if is_tight:  # There is room for one token of a trace at least.
        longest = max(len(row.prompt) + 2 + len(made.rules.written(row)) for row in rows)
        made = dataclasses.replace(made, max_length=longest)
    tokens = loop._chains_of(config, made, rows).tokens
    lengths = np.sum(tokens >= 0, -1)
    scores = made.rules.score(rows, tokens, lengths, has_answers=True)
    assert (scores["format"] == 1).all() and (scores["verifiable"] == 1).all()
    assert (lengths[:, 0] + [len(row.prompt) for row in rows] <= made.max_length).all()
    traces = [made.rules.read(chain[0]).trace for chain in tokens]
    assert [trace == row.example.trace for trace, row in zip(traces, rows, strict=True)] == [not is_tight] * 4
