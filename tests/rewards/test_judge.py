"""A judge's verdicts, votes and probabilities, against hand-made ones and against plain full forwards."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.data import Example, formats
from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.models import Model, ModelConfig
from nrt_jax.rewards import Judge, JudgeConfig, Judgement
from nrt_jax.rollout import engine
from nrt_jax.tasks import judging
from tests.fixtures_run import tokenizer

CONFIG = JudgeConfig(thoughts=3, max_thought_length=6, batch_size=8)
RESPONSES = [("What is 2 plus 3?", "It is 5."), ("What is 2 plus 3?", "It is 6."), ("What is 9 plus 3?", "It is 12.")]


def judge_of(config: JudgeConfig = CONFIG, max_length: int = 2048) -> Judge:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    known = tokenizer()
    model = Model(
        ModelConfig(model_type="llama", vocab_size=len(known), head_dim=8, max_position_embeddings=max_length, **shape)
    )
    params = jax.tree.map(lambda x: 3.0 * x if x.ndim > 1 else x, model.init(jax.random.key(0)))
    trace_format, model, params, known = formats.resolve(TraceFormatConfig("<think>", "</think>"), model, params, known)
    return Judge(model, params, Encoder(known, trace_format, TextConfig()), config)


@functools.partial(jax.jit, static_argnums=0)
def full_log_probs(model, params, tokens):
    return jax.nn.log_softmax(model.logits(params, tokens))


def recorded(judge: Judge) -> tuple[list[Judgement], dict[tuple[int, ...], list[list[int]]]]:
    """Judgements, and by prompt the ids of what the judge wrote."""
    wrote, stream = {}, engine.stream

    def spy(model, params, prompts, rng, config):
        for part in stream(model, params, prompts, rng, config):
            for j, i in enumerate(part.prompts):
                prompt = tuple(prompts.tokens[i][prompts.mask[i]].tolist())
                rows = zip(np.asarray(part.rollout.tokens[j]), np.asarray(part.rollout.mask[j]), strict=True)
                wrote[prompt] = [tokens[mask].tolist() for tokens, mask in rows]
            yield part

    engine.stream = spy
    try:
        return judge.judge(RESPONSES), wrote
    finally:
        engine.stream = stream


@pytest.fixture(scope="module")
def judged():
    """A judge, its judgements, and by prompt what it wrote. Some of its thoughts end with a delimiter.

    A random model seldom writes the delimiter, so a token that it does write is made one.
    """
    judge = judge_of()
    _, wrote = recorded(judge)
    said = collections.Counter(ids[2] for rows in wrote.values() for ids in rows if len(ids) > 3)
    delimiter, known = said.most_common(1)[0][0], judge.encoder.format
    ending = dataclasses.replace(known, delimiter=delimiter, stop_ids=(delimiter, *known.stop_ids[1:]))
    judge = dataclasses.replace(judge, encoder=Encoder(judge.encoder.tokenizer, ending, TextConfig()))
    return judge, *recorded(judge)


@pytest.mark.parametrize(
    ("verdicts", "vote"),
    [((1, 1, 0), 1), ((0, None, None), 0), ((1, 0), 1), ((None, 0, 1), 0), ((None,), None), ((1, 0, None, 0), 0)],
)
def test_the_vote_is_the_verdict_of_more_thoughts_and_a_soft_score_their_mean(verdicts, vote):
    p = tuple(0.1 * (i + 1) for i in range(len(verdicts)))
    judgement = Judgement(("",) * len(verdicts), verdicts, p, 0.5)
    assert judgement.vote == vote
    assert judgement.soft == pytest.approx(sum(p) / len(p))
    assert judgement.score("soft") == judgement.soft
    assert judgement.score("vote") == (1.0 if vote == 1 else 0.0)
    assert judgement.num_unparseable == sum(v is None for v in verdicts)


def test_p_correct_is_that_of_full_forwards_over_both_verdicts(judged):
    judge, judgements, wrote = judged
    trace_format, encoder = judge.encoder.format, judge.encoder
    answers = [list(encoder.encode(Example("", judging.verdict(label))).answer) for label in (0, 1)]

    def log_p(context, label):
        ids = [*context, trace_format.delimiter, *answers[label]]
        padded = jnp.zeros((1, 320), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
        log_probs = np.asarray(full_log_probs(judge.model, judge.params, padded)[0], np.float64)
        first = len(context) + 1
        return sum(log_probs[first + i - 1, token] for i, token in enumerate(answers[label]))

    def p_correct(context):
        wrong, right = log_p(context, 0), log_p(context, 1)
        return 1 / (1 + np.exp(wrong - right))

    num_ended = sum(trace_format.delimiter in ids for rows in wrote.values() for ids in rows)
    assert 0 < num_ended < 3 * len(RESPONSES)
    for (question, response), judgement in zip(RESPONSES, judgements, strict=True):
        prompt = encoder.encode(judging.Judged(question, response, 1).example()).prompt
        for ids, p in zip(wrote[prompt], judgement.p_correct, strict=True):
            ends = [i for i, token in enumerate(ids) if token in (trace_format.delimiter, *trace_format.stop_ids)]
            thought = ids[: min([*ends, CONFIG.max_thought_length])]
            assert p == pytest.approx(p_correct([*prompt, *thought]), abs=2e-5)
        assert judgement.p_without_thought == pytest.approx(p_correct(prompt), abs=2e-5)


def test_a_judgement_does_not_depend_on_what_is_judged_beside_it_and_equal_texts_have_one(judged):
    judge, judgements, _ = judged
    order = [2, 0, 1, 1, 2]
    assert judge.judge([RESPONSES[i] for i in order]) == [judgements[i] for i in order]
    (alone,) = judge.judge([RESPONSES[1]])  # In a batch of another size, which rounds otherwise.
    assert alone.thoughts == judgements[1].thoughts and alone.verdicts == judgements[1].verdicts
    np.testing.assert_allclose(alone.p_correct, judgements[1].p_correct, atol=1e-4)
    other = dataclasses.replace(judge, config=dataclasses.replace(CONFIG, seed=1)).judge(RESPONSES)
    assert [j.thoughts for j in other] != [j.thoughts for j in judgements]
    assert judge.judge([]) == []


def test_copies_on_several_devices_judge_as_one_does(judged):
    judge, judgements, _ = judged
    copies = [jax.device_put(judge.params, device) for device in jax.devices()[:2]]
    for found, known in zip(dataclasses.replace(judge, params=copies).judge(RESPONSES), judgements, strict=True):
        assert found.thoughts == known.thoughts and found.verdicts == known.verdicts
        np.testing.assert_allclose(found.p_correct, known.p_correct, atol=1e-4)  # Other batches round otherwise.


def test_a_response_that_leaves_no_room_for_a_thought_gets_no_verdict():
    judge = judge_of(max_length=300)
    fits, too_long = judge.judge([RESPONSES[0], ("What is 2 plus 3?", "5" * 400)])
    assert fits.p_correct != (0.0, 0.0, 0.0)
    assert too_long.verdicts == (None, None, None) and too_long.vote is None and too_long.soft == 0.0


def test_verdicts_are_read_from_what_the_judge_wrote_alone():
    judge = judge_of()
    trace_format, encoder = judge.encoder.format, judge.encoder

    def read(answer: str) -> int | None:
        said = [
            *encoder.encode(Example("", "", "Well.")).trace,
            trace_format.delimiter,
            *encoder.encode(Example("", answer)).answer,
        ]
        return judge._judgement(np.array([said]), [len(said)], np.zeros(1), 0.0).verdicts[0]

    assert [read(judging.verdict(label)) for label in (0, 1)] == [0, 1]
    assert read(f"The response says {judging.verdict(1)}") is None
    assert read(f"{judging.verdict(1)}</think>") is None
