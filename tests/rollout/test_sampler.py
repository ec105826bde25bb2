"""The sampler against plain full forwards, and its invariances."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.data import Prompts
from nrt_jax.models import Model
from nrt_jax.rollout import cut_traces, row_keys, sample
from tests.fixtures_model import DELIMITER, EOS, full_log_probs, random_batch, sampling, tiny_model


def sequence(batch, rollout, p, k):
    prompt = batch.prompts.tokens[p][batch.prompts.mask[p]]
    return np.concatenate([prompt, np.asarray(rollout.tokens[p, k])[np.asarray(rollout.mask[p, k])]])


def same_rows(a, b):
    for name in ("tokens", "mask", "finished"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("log_probs", "entropy"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5, err_msg=name)


@pytest.fixture(scope="module", params=[None, 4], ids=["full", "window4"])
def sampled(request):
    model, params = tiny_model(request.param)
    batch = random_batch(1)
    return model, params, batch, sample(model, params, batch.prompts, jax.random.key(3), sampling())


def test_log_probs_entropy_and_delimiter_log_probs_equal_a_full_forward(sampled):
    model, params, batch, rollout = sampled
    for p in range(3):
        start = int(batch.prompts.mask[p].sum())
        for k in range(3):
            ids = sequence(batch, rollout, p, k)
            log_probs = full_log_probs(model, params, ids)[start - 1 :]
            num = len(ids) - start
            picked = log_probs[np.arange(num), ids[start:]]
            entropy = -(np.exp(log_probs) * log_probs).sum(-1)
            np.testing.assert_allclose(rollout.log_probs[p, k, :num], picked, atol=1e-4)
            np.testing.assert_allclose(rollout.entropy[p, k, :num], entropy, atol=1e-4)
            length = int(rollout.trace_length[p, k])
            delimiter = full_log_probs(model, params, np.append(ids, 0))[start - 1 :, DELIMITER]
            np.testing.assert_allclose(
                rollout.delimiter_log_probs[p, k, : length + 1], delimiter[: length + 1], atol=1e-4
            )


def test_a_row_ends_with_its_first_stop_token_which_stays_in_the_mask(sampled):
    _, _, _, rollout = sampled
    stops = np.asarray(sampling().stop_ids)
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    is_stop = np.isin(tokens, stops) & mask
    num = mask.sum(-1)
    assert rollout.finished.any() and not rollout.finished.all()
    for p, k in np.ndindex(num.shape):
        where = np.flatnonzero(is_stop[p, k])
        assert bool(rollout.finished[p, k]) == bool(where.size)
        assert where.size == 0 or where.tolist() == [num[p, k] - 1]
        assert mask[p, k, : num[p, k]].all()
        last = tokens[p, k, num[p, k] - 1]
        assert bool(rollout.matched(DELIMITER)[p, k]) == (last == DELIMITER)
        assert bool(rollout.matched(EOS)[p, k]) == (last == EOS)


def test_k_traces_from_one_prefill_equal_k_separate_ones_for_the_same_keys():
    model, params = tiny_model()
    batch, keys = random_batch(2), row_keys(jax.random.key(7), 3, 3)
    together = sample(model, params, batch.prompts, keys, sampling())
    repeated = Prompts(tokens=np.repeat(batch.prompts.tokens, 3, axis=0), mask=np.repeat(batch.prompts.mask, 3, axis=0))
    apart = sample(model, params, repeated, keys.reshape(9, 1), sampling(group_size=1))
    np.testing.assert_array_equal(together.tokens.reshape(9, 1, -1), apart.tokens)
    np.testing.assert_allclose(together.log_probs.reshape(9, 1, -1), apart.log_probs, atol=1e-5)


def test_chunk_size_changes_nothing():
    model, params = tiny_model()
    batch = random_batch(3)
    same_rows(*(sample(model, params, batch.prompts, jax.random.key(1), sampling(chunk_size=c)) for c in (4, 10)))


def test_padding_and_order_of_the_batch_change_nothing():
    model, params = tiny_model()
    batch, keys = random_batch(4), row_keys(jax.random.key(1), 3, 3)
    plain = sample(model, params, batch.prompts, keys, sampling())
    order = np.array([2, 0, 1])
    wider = Prompts(
        tokens=np.pad(batch.prompts.tokens, ((0, 0), (0, 5)), constant_values=9)[order],
        mask=np.pad(batch.prompts.mask, ((0, 0), (0, 5)))[order],
    )
    moved = sample(model, params, wider, keys[order], sampling())
    same_rows(jax.tree.map(lambda x: x, moved), plain.replace(**{
        name: getattr(plain, name)[order] for name in ("tokens", "mask", "finished", "log_probs", "entropy")
    }))  # fmt: skip


def test_jit_equals_no_jit():
    model, params = tiny_model()
    batch, config = random_batch(5, (2, 3, 4)), sampling(group_size=2, chunk_size=2, max_new_tokens=2)
    with jax.disable_jit():
        plain = sample(model, params, batch.prompts, jax.random.key(1), config)
    same_rows(sample(model, params, batch.prompts, jax.random.key(1), config), plain)


def test_temperature_zero_takes_the_likeliest_token():
    model, params = tiny_model()
    batch = random_batch(6)
    rollout = sample(model, params, batch.prompts, jax.random.key(1), sampling(temperature=0.0))
    np.testing.assert_array_equal(rollout.tokens[:, 0], rollout.tokens[:, 1])
    ids = sequence(batch, rollout, 0, 0)
    start = int(batch.prompts.mask[0].sum())
    np.testing.assert_array_equal(full_log_probs(model, params, ids)[start - 1 :].argmax(-1), ids[start:])


def test_sampled_tokens_follow_the_model_distribution():
    """The first token's frequencies over many rows, against softmax(logits / T)."""
    model, params = tiny_model()
    batch = random_batch(7)
    config = sampling(group_size=2000, max_new_tokens=1, temperature=0.7)
    rollout = sample(model, params, batch.prompts, jax.random.key(2), config)
    prompt = batch.prompts.tokens[0][batch.prompts.mask[0]]
    log_probs = full_log_probs(model, params, np.append(prompt, 0))[-1] / 0.7
    expected = np.exp(log_probs - np.logaddexp.reduce(log_probs))
    observed = np.bincount(np.asarray(rollout.tokens[0, :, 0]), minlength=expected.size) / 2000
    assert np.abs(observed - expected).max() < 5 * np.sqrt(0.25 / 2000)
    assert np.abs(observed - expected).sum() < 0.3  # Chance for 2000 draws over 48 tokens is about 0.1.
    np.testing.assert_allclose(
        rollout.log_probs[0, :, 0], np.log(expected)[np.asarray(rollout.tokens[0, :, 0])], atol=1e-4
    )


def test_cutting_loses_the_tail_of_the_trace_and_the_match(sampled):
    _, _, _, rollout = sampled
    limit = jnp.array([2, 0, 10])
    cut = cut_traces(rollout, limit)
    chex.assert_trees_all_equal(cut.trace_length, jnp.minimum(rollout.trace_length, limit[:, None]))
    shortened = rollout.trace_length > limit[:, None]
    assert shortened.any() and not shortened.all()
    assert not (cut.finished & shortened).any()
    np.testing.assert_array_equal(cut.finished[~shortened], rollout.finished[~shortened])
    np.testing.assert_array_equal(cut.tokens[2], rollout.tokens[2])
    assert (cut.trace_cache.positions[1] == -1).all()


def test_bfloat16_sampler_agrees_with_the_bfloat16_training_forward():
    """The same dtype policy in both: what differs is rounding, of the size of bfloat16's (8 bits)."""
    model, params = tiny_model()
    model = Model(dataclasses.replace(model.config, dtype="bfloat16"))
    batch = random_batch(1)
    rollout = sample(model, params, batch.prompts, jax.random.key(3), sampling())
    ids = sequence(batch, rollout, 0, 1)
    start = int(batch.prompts.mask[0].sum())
    log_probs = full_log_probs(model, params, ids)[start - 1 :]
    picked = log_probs[np.arange(len(ids) - start), ids[start:]]
    np.testing.assert_allclose(rollout.log_probs[0, 1, : len(picked)], picked, atol=0.15)
    assert rollout.log_probs.dtype == jnp.float32 and rollout.trace_cache.k.dtype == jnp.bfloat16
