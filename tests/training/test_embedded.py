"""The shipped base is what the README says it is. (What NRT does to it: tests/launch/test_readme.py.)"""

import dataclasses

import jax
import numpy as np
import pytest

from configs import default
from nrt_jax import hf, tasks
from nrt_jax.checkpoints import ASSETS
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.rollout import sample
from nrt_jax.training import setup
from nrt_jax.training.learner import completion_log_probs, from_demonstrations
from nrt_jax.training.step import reward_rollout, sampling_config, score_rollout

TASK = tasks.get("clock")
CHANCE = 1 / 12


def hour_probabilities(base: str, kind: str) -> np.ndarray:
    """p of the two hours of the answer after traces of one kind, [64, 2]."""
    model, params, tokenizer = hf.load(ASSETS / base)
    trace_format, model, params, tokenizer = formats.resolve(formats.TraceFormatConfig(), model, params, tokenizer)
    encoder = Encoder(tokenizer, trace_format, TextConfig())
    rows = encoder.encode_many(TASK.documents(64, 1, {kind: 1.0}))
    batch = from_demonstrations(encoder, rows, with_trace=True)
    log_probs = np.asarray(jax.jit(completion_log_probs, static_argnums=0)(model, params, batch)[0])[:, 0]
    is_hour = np.vectorize(lambda token: tokenizer.decode([token]).strip().isdigit())(batch.tokens[:, 0])
    after_delimiter = np.cumsum(batch.tokens[:, 0] == trace_format.delimiter, axis=1) > 0
    return np.exp(log_probs[is_hour & after_delimiter].reshape(64, 2))


@pytest.mark.parametrize(("base", "skill"), [("tiny", 0.95), ("tiny_weak", 0.7)])
def test_the_base_has_the_skill_and_no_answer_without_working(base, skill):
    assert sum(f.stat().st_size for f in (ASSETS / base).iterdir()) < 4_000_000
    assert hour_probabilities(base, "useful").mean() > skill
    for kind in ("empty", "filler", "irrelevant", "sloppy"):
        np.testing.assert_allclose(hour_probabilities(base, kind).mean(0), CHANCE, atol=0.02, err_msg=kind)


def test_an_empty_trace_is_never_rewarded_for_a_rounding():
    """Scored in another shape it is an ulp off its own baseline, which clip and std would blow up to an advantage."""
    recipe = default.get_config()
    config = dataclasses.replace(recipe, dataset=dataclasses.replace(recipe.dataset, size=64))
    prepared = setup.prepare(config)
    batch = prepared.encoder.batch(prepared.train[: config.rollout.prompts])
    sampling = sampling_config(config.rollout, prepared.trace_format)
    rollout = sample(prepared.model, prepared.params, batch.prompts, jax.random.key(0), sampling)
    how = {"reward_config": config.reward}
    args = (prepared.params, rollout, batch, sampling.temperature)
    scored = score_rollout(*args, model=prepared.model, max_length=prepared.max_length, **how)
    learner, _ = reward_rollout(scored, batch, None, advantage_config=config.advantage, loss_config=config.loss, **how)
    of_empty = np.asarray(learner.advantage)[np.asarray(rollout.trace_length) == 0]
    assert of_empty.size > 20 and of_empty.max() <= 0
