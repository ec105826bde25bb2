"""What evaluation reports, against sequences decoded and scored by hand."""

import types

import jax
import numpy as np
import pytest

from nrt_jax import hf
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.evaluation import EvaluationConfig, Limits, accuracy, answer_questions, hard_tokens, summarise
from nrt_jax.rewards import Rules, VerifierConfig
from nrt_jax.rollout import row_keys
from tests.fixtures_run import examples, write_model

LIMITS = Limits(trace=6, answer=6)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    model, params, tokenizer = hf.load(write_model(tmp_path_factory.mktemp("model") / "hf"))
    # A random model never writes the delimiter; one that leans towards it and EOS does, now and then.
    trace_format, model, params, tokenizer = formats.resolve(formats.TraceFormatConfig(), model, params, tokenizer)
    head = np.array(params["head"])
    head[[trace_format.delimiter, trace_format.eos]] *= 6.0
    params = params | {"head": jax.numpy.asarray(head)}
    encoder = Encoder(tokenizer, trace_format, TextConfig())
    rows = encoder.encode_many(examples(12))
    return model, params, encoder, rows


@pytest.fixture(scope="module")
def answered(policy):
    model, params, encoder, rows = policy
    config = EvaluationConfig(batch_size=8)  # 12 questions: the last batch is padded
    return answer_questions(model, params, Rules(encoder, VerifierConfig()), rows, jax.random.key(0), config, LIMITS)


def test_every_question_is_answered_once_in_order(policy, answered):
    assert [a.question for a in answered] == [row.example.question for row in policy[3]]
    assert [len(a.token_log_probs) for a in answered] == [len(row.answer) for row in policy[3]]


@pytest.mark.parametrize("batch_size", [5, 256])
def test_a_questions_key_follows_from_its_index_not_from_its_batch(policy, monkeypatch, batch_size):
    """So that a run may go on with another `evaluation.batch_size`; in the default's batches it is `sample`'s."""
    model, params, encoder, rows = policy
    rows, used, rng = rows[:1] * 300, [], jax.random.key(3)

    def record(model, params, batch, keys, sampling):
        used.extend(jax.random.key_data(keys[:, 0]).tolist())
        size = len(batch.prompts.tokens)
        return np.zeros((size, 1), int), np.zeros(size, int), np.zeros((size, 64)), np.zeros((size, 64))

    def nothing(model, params, prompts, rng, sampling):
        empty = np.zeros((len(prompts.tokens), 1, 1))
        return types.SimpleNamespace(tokens=empty, mask=empty > 0)

    monkeypatch.setattr(accuracy, "sample_and_score", record)
    monkeypatch.setattr(accuracy, "sample", nothing)
    config = EvaluationConfig(batch_size=batch_size)
    answer_questions(model, params, Rules(encoder, VerifierConfig()), rows, rng, config, LIMITS)
    expected = [row_keys(jax.random.fold_in(rng, first), 256, 1)[:, 0] for first in (0, 256)]
    expected = np.concatenate([jax.random.key_data(keys) for keys in expected])[:300]
    np.testing.assert_array_equal(used[:300], expected)


def test_base_log_probs_equal_a_full_forward_of_question_delimiter_answer(policy, answered):
    model, params, encoder, rows = policy
    for row, item in list(zip(rows, answered, strict=True))[::5]:
        ids = np.array([*row.prompt, encoder.format.delimiter, *row.answer])
        log_probs = jax.nn.log_softmax(model.logits(params, ids[None]))[0, :-1]
        expected = np.asarray(log_probs)[np.arange(len(ids) - 1), ids[1:]][-len(row.answer) :]
        np.testing.assert_allclose(item.base_token_log_probs, expected, atol=1e-4)


def test_answers_after_the_delimiter_and_traces_before_it(answered):
    some = [a for a in answered if a.answer is not None]
    assert some and len(some) < len(answered), "the fixture should write the delimiter now and then"
    assert all("<|response_start|>" not in a.trace for a in answered)


def test_summary_counts_what_the_records_say(answered):
    summary = summarise(answered, hard_tokens(answered, threshold=1.0))
    assert summary["accuracy"] == sum(a.answer == a.reference for a in answered) / len(answered)
    assert summary["accuracy_empty_trace"] == sum(a.empty_trace_answer == a.reference for a in answered) / 12
    every = np.concatenate([np.exp(a.token_log_probs) for a in answered])
    np.testing.assert_allclose(summary["token_prob"], every.mean(), rtol=1e-6)
    np.testing.assert_allclose(summary["hard_token_prob"], every.mean(), rtol=1e-6)  # below 1.0 all are hard
    products = [np.exp(np.sum(a.token_log_probs)) for a in answered]
    np.testing.assert_allclose(summary["answer_prob"], np.mean(products), rtol=1e-6)
