"""A given trace is worth what the same trace is worth to training, which sampled it."""

import jax
import numpy as np

from nrt_jax.data import Example
from nrt_jax.data.encode import Encoded
from nrt_jax.evaluation.scoring import score
from nrt_jax.rewards import AGGREGATIONS, aggregate, score_reference
from nrt_jax.rollout import sample
from tests.fixtures_model import DELIMITER, random_batch, sampling, tiny_model


def test_a_given_trace_earns_what_training_gave_it_when_it_was_sampled():
    model, params = tiny_model(sliding_window=4)
    batch, temperature = random_batch(4), 0.7
    rollout = sample(model, params, batch.prompts, jax.random.key(4), sampling(temperature=temperature))
    reference = batch.reference
    jitted = jax.jit(score_reference, static_argnums=0)
    log_probs, base = jitted(model, params, rollout, reference, np.float32(temperature))

    def ids(tokens, mask):
        return tuple(np.asarray(tokens)[np.asarray(mask)].tolist())

    rows = [
        Encoded(
            prompt=ids(batch.prompts.tokens[p], batch.prompts.mask[p]),
            answer=ids(reference.tokens[p], reference.mask[p]),
            trace=ids(rollout.tokens[p, k], rollout.trace_mask[p, k]),
            example=Example("", ""),
        )
        for p in range(3)
        for k in range(3)
    ]
    assert len({len(row.trace) for row in rows}) > 3
    parts = score(model, params, rows, delimiter=DELIMITER, temperature=temperature, batch_size=5)
    scores = {i: one for part in parts for i, one in part.items()}
    assert sorted(scores) == list(range(9))
    for i, one in scores.items():
        p, k = divmod(i, 3)
        mask = reference.mask[p]
        np.testing.assert_allclose(one.token_log_probs, log_probs[p, k][mask], rtol=0, atol=2e-5)
        np.testing.assert_allclose(one.base_token_log_probs, base[p][mask], rtol=0, atol=2e-5)
        for mode in AGGREGATIONS:
            expected = aggregate(mode, log_probs[p, k], mask, base[p]).trace
            np.testing.assert_allclose(one.rewards[mode], expected, rtol=1e-4)
