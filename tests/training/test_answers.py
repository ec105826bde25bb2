"""Rollouts that go on to sample answers: they hold the traces of those that do not, and are learned from as sampled."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax import tasks
from nrt_jax.data import Example
from nrt_jax.data.encode import Encoded
from nrt_jax.errors import UserError
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import VERIFIERS, Rules, VerifierConfig, score_reference
from nrt_jax.rollout import sample, until_delimiter
from nrt_jax.tasks import judging
from nrt_jax.training.config import RewardConfig, TrainConfig
from nrt_jax.training.learner import completion_log_probs
from nrt_jax.training.step import Asked, completions, describe, mix, reward_rollout, score_rollout
from tests.data.common import DELIMITER as ENCODER_DELIMITER
from tests.data.common import EOS as ENCODER_EOS
from tests.data.common import encoder
from tests.fixtures_model import DELIMITER, EOS, full_log_probs, random_batch, sampling, tiny_model


@pytest.fixture(scope="module")
def sampled():
    """A rollout that stops at the delimiter, and one of the same keys that goes on."""
    model, params = tiny_model()
    batch, config = random_batch(1), sampling().replace(delimiter=jnp.int32(DELIMITER))
    going_on = config.replace(stop_ids=config.stop_ids.at[0].set(EOS))  # As many stop ids: the same program.
    rng = jax.random.key(3)
    return (
        model,
        params,
        batch,
        sample(model, params, batch.prompts, rng, config),
        sample(model, params, batch.prompts, rng, going_on),
    )


def test_cut_at_its_delimiter_a_rollout_with_answers_is_the_rollout_without(sampled):
    model, params, batch, stopped, going_on = sampled
    cut = until_delimiter(going_on, batch.reference.delimiter)
    assert int(jnp.sum(going_on.mask)) > int(jnp.sum(stopped.mask)), "no answer was sampled"
    for name in ("tokens", "mask", "finished", "trace_length"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(stopped, name), err_msg=name)
    np.testing.assert_array_equal(cut.matched(DELIMITER), stopped.matched(DELIMITER))
    chex.assert_trees_all_close(cut.log_probs, stopped.log_probs, atol=1e-5)
    length = np.asarray(stopped.trace_length)
    for p, k in np.ndindex(length.shape):
        valid = slice(0, length[p, k] + 1)
        np.testing.assert_allclose(
            cut.delimiter_log_probs[p, k, valid], stopped.delimiter_log_probs[p, k, valid], atol=1e-5
        )
    scored = [score_reference(model, params, rollout, batch.reference) for rollout in (cut, stopped)]
    covered = np.asarray(batch.reference.mask)[:, None]
    chex.assert_trees_all_close(*(np.where(covered, s[0], 0.0) for s in scored), atol=1e-5)


def score(sampled, reward_config, max_length=1000, **limits):
    model, params, batch, _, going_on = sampled
    limits |= {"max_length": max_length}
    return score_rollout(params, going_on, batch, jnp.float32(1.0), model=model, reward_config=reward_config, **limits)


def rewarded(sampled, reward_config, scores, max_length=1000, **loss):
    scored = score(sampled, reward_config, max_length)
    configs = {"advantage_config": AdvantageConfig(clip="none"), "loss_config": NRTLossConfig(**loss)}
    return reward_rollout(scored, sampled[2], None, scores, reward_config=reward_config, **configs)


SCORE = np.arange(9.0, dtype=np.float32).reshape(3, 3) ** 2


@pytest.mark.parametrize("max_length", [1000, 11])
def test_without_an_intrinsic_reward_all_that_was_sampled_is_learned_and_nothing_else(sampled, max_length):
    model, params, batch, _, going_on = sampled
    config = RewardConfig(intrinsic=0.0, verifiable=1.0)
    learner, outcome = rewarded(sampled, config, {"verifiable": SCORE}, max_length)
    log_probs, _ = jax.jit(completion_log_probs, static_argnums=0)(model, params, learner)
    num_cut = 0
    for p, k in np.ndindex(3, 3):
        prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
        ids = np.asarray(going_on.tokens[p, k])[np.asarray(going_on.mask[p, k])]
        fitting = ids[: max(max_length - len(prompt), 0)]
        # A sample that does not fit loses its stop token first; `cut_traces` says so.
        num_cut += len(fitting) < len(ids)
        num = len(fitting)
        assert int(learner.masks.trace[p, k].sum()) == num
        np.testing.assert_array_equal(learner.tokens[p, k, 1 : 1 + num], fitting)
        np.testing.assert_allclose(learner.old_log_probs[p, k, 1 : 1 + num], going_on.log_probs[p, k, :num], atol=1e-6)
        expected = full_log_probs(model, params, np.concatenate([prompt, fitting]))[len(prompt) - 1 :]
        picked = expected[np.arange(num), fitting]
        np.testing.assert_allclose(log_probs[p, k, 1 : 1 + num], picked, atol=1e-4)
        np.testing.assert_allclose(learner.old_log_probs[p, k, 1 : 1 + num], picked, atol=1e-4)
    assert not (learner.masks.delimiter.any() or learner.masks.reference.any() or learner.masks.trace[..., 0].any())
    assert (num_cut > 0) == (max_length == 11)
    centred = SCORE - SCORE.mean(-1, keepdims=True)
    np.testing.assert_allclose(learner.advantage, centred / SCORE.std(-1, ddof=1, keepdims=True), rtol=1e-5)
    assert "reward_gain" not in describe(outcome) and describe(outcome)["reward"] == SCORE.mean()


def test_rewards_add_up_with_their_weights_after_the_baseline(sampled):
    config = RewardConfig(intrinsic=0.7, verifiable=0.2, format=-3.0)
    scores = {"verifiable": SCORE, "format": SCORE % 2}
    learner, outcome = rewarded(sampled, config, scores)
    intrinsic = np.asarray(outcome.rewards["intrinsic"])
    total = 0.7 * intrinsic + 0.2 * SCORE - 3.0 * (SCORE % 2)
    np.testing.assert_allclose(outcome.reward, total, rtol=1e-5)
    np.testing.assert_allclose(
        learner.advantage, (total - total.mean(-1, keepdims=True)) / total.std(-1, ddof=1, keepdims=True), rtol=1e-4
    )
    assert learner.masks.reference.any(), "y* is learned from where there is an intrinsic reward"
    scalars = describe(outcome)
    assert {"reward_intrinsic", "reward_verifiable", "reward_format", "reward_gain"} <= scalars.keys()


@pytest.mark.parametrize(("token_signal", "share"), [("derived", 0.25), ("fixed", 1.0)])
def test_the_gradient_of_the_weighted_sum_has_the_intrinsic_rewards_weight(sampled, token_signal, share):
    whole, part = (
        rewarded(
            sampled, RewardConfig(intrinsic=weight, verifiable=1.0), {"verifiable": SCORE}, token_signal=token_signal
        )
        for weight in (1.0, 0.25)
    )
    assert np.abs(whole[0].token_signal).max() > 1e-3
    np.testing.assert_allclose(part[0].token_signal, share * whole[0].token_signal, rtol=1e-6)


def test_a_trace_without_a_delimiter_is_scored_as_if_it_had_ended_at_the_limit_of_traces(sampled):
    config = RewardConfig(verifiable=1.0)
    whole, cut = score(sampled, config).rollout, score(sampled, config, max_trace_length=2)
    assert (whole.trace_length > 2).any()
    np.testing.assert_array_equal(cut.rollout.trace_length, np.minimum(whole.trace_length, 2))
    np.testing.assert_array_equal(cut.sampled.mask, sampled[4].mask)


def test_tokens_that_a_row_was_given_cost_no_kl(sampled):
    config = RewardConfig(intrinsic=0.0, verifiable=1.0)
    scored = score(sampled, config)
    hint_length = jnp.array([[0, 1, 2], [3, 0, 1], [0, 0, 99]])
    laid_out = completions(scored, sampled[2])
    reference = jnp.asarray(np.random.default_rng(0).normal(size=laid_out.old_log_probs.shape), jnp.float32)
    _, outcome = reward_rollout(
        scored.replace(hint_length=hint_length),
        sampled[2],
        None,
        {"verifiable": SCORE},
        Asked(log_probs=reference),
        reward_config=config,
        advantage_config=AdvantageConfig(clip="none"),
        loss_config=NRTLossConfig(kl_weight=0.5, kl_estimator="k1", kl_in="reward"),
    )
    ratio = np.asarray(laid_out.old_log_probs - reference)
    for p, k in np.ndindex(3, 3):
        own = ratio[p, k, 1:][np.asarray(laid_out.masks.trace[p, k, 1:])][int(hint_length[p, k]) :]
        np.testing.assert_allclose(outcome.reward[p, k], SCORE[p, k] - 0.5 * own.sum(), rtol=1e-4)


def test_the_baseline_concerns_the_intrinsic_reward_alone():
    rewards = {"intrinsic": np.array([[0.2, 0.9]]), "verifiable": np.array([[0.2, 0.9]])}
    total = mix(rewards, RewardConfig(verifiable=1.0), np.array([0.5]), clip="clip")
    np.testing.assert_allclose(total, [[0.0 + 0.2, 0.4 + 0.9]])


def test_normalised_rewards_weigh_alike_whatever_their_scale():
    rewards = {"format": np.array([[1.0, 0.0, 0.0]]), "verifiable": np.array([[0.0, 1000.0, 0.0]])}
    config = RewardConfig(intrinsic=0.0, format=1.0, verifiable=1.0, normalise="group")
    total = np.asarray(mix(rewards, config, None))
    assert total[0, 0] == pytest.approx(total[0, 1]) and total[0, 2] < 0
    equal = {"format": np.ones((1, 3)), "verifiable": rewards["verifiable"]}
    np.testing.assert_allclose(mix(equal, config, None), mix({"verifiable": rewards["verifiable"]}, config, None))


def row(encode, question="2 + 2 ?", answer="4") -> Encoded:
    return encode.encode(Example(question, answer))


def completion(encode, trace: str, answer: str | None, *, end=True) -> list[int]:
    ids = list(encode.tokenizer(trace, add_special_tokens=False).input_ids)
    if answer is not None:
        ids += [ENCODER_DELIMITER, *encode.tokenizer(answer, add_special_tokens=False).input_ids]
    return ids + [ENCODER_EOS] * end


def test_completions_are_read_from_ids_and_scored():
    encode = encoder()
    rules = Rules(encode, VerifierConfig(right=2.0, wrong=-1.5, unparseable=-2.0))
    right = row(encode)
    texts = [("sum", "4"), ("sum", "5"), ("sum", None), ("sum", "4")]
    completions = [completion(encode, *text, end=i != 3) for i, text in enumerate(texts)]
    tokens = np.zeros((1, 4, max(map(len, completions))), np.int32)
    for k, ids in enumerate(completions):
        tokens[0, k, : len(ids)] = ids
    scores = rules.score([right], tokens, np.array([list(map(len, completions))]), has_answers=True)
    np.testing.assert_array_equal(scores["verifiable"], [[2.0, -1.5, -2.0, 2.0]])
    np.testing.assert_array_equal(scores["format"], [[1.0, 1.0, 0.0, 0.0]])
    twice = [*completion(encode, "sum", "4", end=False), ENCODER_DELIMITER, *completion(encode, "4", None)]
    assert rules.read(np.array(twice)).answer is None, "a second delimiter"


def test_traces_alone_are_well_formed_where_the_policy_wrote_the_delimiter():
    encode = encoder()
    tokens = np.array([[[7, ENCODER_DELIMITER], [7, ENCODER_EOS], [7, 7], [ENCODER_DELIMITER, 0]]])
    scores = Rules(encode, VerifierConfig()).score(
        [row(encode)], tokens, np.array([[2, 2, 2, 1]]), ["format"], has_answers=False
    )
    np.testing.assert_array_equal(scores["format"], [[1, 0, 0, 1]])
    assert set(scores) == {"format"}


def bad_verifier(example, completion):
    return "yes"


def test_a_verifier_that_returns_no_number_is_named():
    encode = encoder()
    rules = Rules(encode, VerifierConfig(name=f"{__name__}:bad_verifier"))
    with pytest.raises(UserError, match=r"verifier.name: .*bad_verifier' returned 'yes'; expected a finite number"):
        rules.verdict(row(encode), rules.read(np.array(completion(encode, "sum", "4"))))


@pytest.mark.parametrize(
    ("verifier", "answer"),
    [
        ("number", "no number"),
        ("math", "who knows"),
        ("verdict", "yes"),
        ("deduction", "4"),
        ("exact", "<|response_start|>"),
    ],
)
def test_a_row_to_which_no_answer_could_be_right_is_told_before_any_is_judged(verifier, answer):
    if verifier == "math":
        pytest.importorskip("math_verify")
    rules = Rules(encoder(), VerifierConfig(verifier))
    problem = rules.problem(row(rules.encoder, answer=answer))
    assert problem.reason == f"answer is not right to the verifier {verifier!r}"
    assert str(problem).startswith("verifier.name: ") and repr(verifier) in str(problem)


@pytest.mark.parametrize("name", [*VERIFIERS, *tasks.TASKS, f"{__name__}:bad_verifier"])
def test_rows_that_can_be_answered_have_no_problem(name):
    if name == "math":
        pytest.importorskip("math_verify")
    asked = tasks.get(name).examples(20, seed=0) if tasks.is_task(name) else [Example("2 + 2 ?", "4")]
    if name == "verdict":
        asked = [Example("?", judging.verdict(label)) for label in (0, 1)]
    for tag in ("",) if name == "verdict" else ("", "answer"):
        rules = Rules(encoder(), VerifierConfig(name, answer_tag=tag))
        assert [rules.problem(rules.encoder.encode(example)) for example in asked] == [None] * len(asked)


def test_without_its_package_the_verifier_of_mathematics_is_refused_with_the_config(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    config = TrainConfig(verifier=VerifierConfig("math"))
    with pytest.raises(UserError, match=r"verifier.name: 'math' needs the package math-verify.*; pip install"):
        config.validate()


def raising_verifier(example, completion):
    return {}[f"no such\nkey as {completion.answer.strip()}"]


def test_a_verifier_that_raises_is_named_in_one_line_with_the_question():
    encode = encoder()
    rules = Rules(encode, VerifierConfig(name=f"{__name__}:raising_verifier"))
    with pytest.raises(
        UserError, match=r"verifier.name: .*:raising_verifier' raised KeyError.* as 4.*'2 \+ 2 \?'"
    ) as error:
        rules.verdict(row(encode), rules.read(np.array(completion(encode, "sum", "4"))))
    assert "\n" not in str(error.value)


def test_weights_that_cannot_work_are_refused():
    for reward in (RewardConfig(intrinsic=0.0), RewardConfig(verifiable=float("nan"))):
        with pytest.raises(UserError, match=r"reward: weights .* expected finite numbers, one of them not 0"):
            TrainConfig(reward=reward).validate()
