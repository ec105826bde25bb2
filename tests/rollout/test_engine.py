"""Letting finished rows leave changes nothing: the engine against the program inside jit, and against full forwards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax.models import LoRAConfig, Model
from nrt_jax.rewards import score_reference
from nrt_jax.rollout import engine, row_keys, sample
from tests.fixtures_model import DELIMITER, VOCAB, full_log_probs, random_batch, sampling, tiny_model

MANY = 12


def with_stops(config, count):
    """The first of `count` stop tokens is the delimiter; the shape is the same for every count."""
    ids = np.full(MANY, -1, np.int32)
    ids[:count] = np.roll(np.arange(VOCAB), -DELIMITER)[:count]
    return config.replace(stop_ids=jnp.array(ids))


def assert_same(a, b):
    for name in ("tokens", "mask", "finished", "prompt_length"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.trace_cache.positions, b.trace_cache.positions)
    for name in ("log_probs", "entropy", "delimiter_log_probs"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=3e-5, err_msg=name)
    in_trace = np.asarray(a.trace_mask)[None, :, None, :, :, None]
    for x, y in ((a.trace_cache.k, b.trace_cache.k), (a.trace_cache.v, b.trace_cache.v)):
        np.testing.assert_allclose(x * in_trace, y * in_trace, atol=3e-5)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([(3, 4), (5, 2)]), st.integers(0, MANY))
def test_engine_equals_sample_whatever_the_chunks_the_seats_and_the_lengths(seed, chunk_and_seats, num_stops):
    """With 2 or 4 seats for 9 rows, rows start in the middle of others' chunks, and prompts wait."""
    model, params = tiny_model()
    chunk_size, max_rows = chunk_and_seats
    batch, keys = random_batch(seed), row_keys(jax.random.key(seed), 3, 3)
    plain = sample(model, params, batch.prompts, keys, with_stops(sampling(chunk_size=10), num_stops))
    config = with_stops(sampling(chunk_size=chunk_size), num_stops).replace(max_rows=max_rows)
    assert_same(plain, engine.sample(model, params, batch.prompts, keys, config))


def test_order_of_prompts_and_number_of_devices_change_nothing():
    model, params = tiny_model()
    batch, keys, order = random_batch(7), row_keys(jax.random.key(7), 3, 3), np.array([2, 0, 1])
    config = with_stops(sampling(chunk_size=3), MANY)
    plain = engine.sample(model, params, batch.prompts, keys, config)
    moved = jax.tree.map(lambda x: x[order], batch.prompts)
    copies = [jax.device_put(params, device) for device in jax.devices()[:2]]
    on_two = engine.sample(model, copies, moved, keys[order], config)
    assert_same(plain, on_two.map_prompts(lambda x, axis: jnp.take(x, np.argsort(order), axis)))


def test_groups_are_handed_out_once_each_where_they_were_sampled():
    model, params = tiny_model()
    batch, config = random_batch(3), with_stops(sampling(chunk_size=3), MANY).replace(max_rows=2)
    copies = [jax.device_put(params, device) for device in jax.devices()[:2]]
    parts = list(engine.stream(model, copies, batch.prompts, jax.random.key(3), config))
    assert sorted(np.concatenate([part.prompts for part in parts])) == [0, 1, 2]
    for part in parts:
        devices = {device for leaf in jax.tree.leaves((part.params, part.rollout)) for device in leaf.devices()}
        assert len(devices) == 1 and devices <= set(jax.devices()[:2])


def test_work_follows_the_rows_that_go_on():
    """Steps times seats, against the sum of what rows sample: finished rows cost less than a chunk each."""
    model, params = tiny_model()
    batch, config = random_batch(3), with_stops(sampling(chunk_size=2), MANY).replace(max_rows=3)
    seats = []
    advance = engine._advance

    def counted(model, weights, shared, rows, *rest):
        seats.append(rows.done.size)
        return advance(model, weights, shared, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_advance", counted)
        rollout = engine.sample(model, params, batch.prompts, jax.random.key(3), config)
    used = int(rollout.mask.sum())
    lock_step = 9 * int(rollout.mask.sum(-1).max())
    assert used <= 2 * sum(seats) < lock_step


@pytest.fixture(scope="module")
def long_tailed():
    """Twelve stop tokens of 48: a mean length of a quarter of the limit or less."""
    model, params = tiny_model()
    batch, config = random_batch(3), with_stops(sampling(chunk_size=3), MANY)
    return model, params, batch, engine.sample(model, params, batch.prompts, jax.random.key(3), config)


def test_rows_leave_at_different_chunks(long_tailed):
    *_, rollout = long_tailed
    chunks = np.unique(np.asarray(rollout.mask.sum(-1) - 1) // 3)
    assert chunks.size > 1 and rollout.mask.sum(-1).mean() < 5


def test_log_probs_of_rows_that_moved_equal_a_full_forward(long_tailed):
    model, params, batch, rollout = long_tailed
    for p, k in np.ndindex(3, 3):
        start, num = int(batch.prompts.mask[p].sum()), int(rollout.mask[p, k].sum())
        ids = np.concatenate([batch.prompts.tokens[p, :start], rollout.tokens[p, k, :num]])
        log_probs = full_log_probs(model, params, ids)[start - 1 :]
        np.testing.assert_allclose(rollout.log_probs[p, k, :num], log_probs[np.arange(num), ids[start:]], atol=1e-4)
        assert not rollout.log_probs[p, k, num:].any() and not rollout.tokens[p, k, num:].any()


def test_answers_are_scored_on_the_caches_of_rows_that_have_left(long_tailed):
    model, params, batch, rollout = long_tailed
    log_probs, _ = score_reference(model, params, rollout, batch.reference)
    for p, k in np.ndindex(3, 3):
        start, num = int(batch.prompts.mask[p].sum()), int(rollout.trace_length[p, k])
        answer = batch.reference.tokens[p][batch.reference.mask[p]]
        ids = np.concatenate([batch.prompts.tokens[p, :start], rollout.tokens[p, k, :num], [DELIMITER], answer])
        expected = full_log_probs(model, params, ids)[start + num :][np.arange(answer.size), answer]
        np.testing.assert_allclose(log_probs[p, k, : answer.size], expected, atol=1e-4)


def test_adapters_are_decoded_as_they_are_trained():
    """Of some matrices of a fused group and not of others, with B away from zero."""
    plain, params = tiny_model()
    model = Model(plain.config, LoRAConfig(rank=2, targets=("q", "v", "o", "up", "down")))
    lora = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), model.init_lora(jax.random.key(0))
    )
    params = params | {"lora": lora}
    batch = random_batch(1)
    rollout = sample(model, params, batch.prompts, jax.random.key(3), sampling())
    start, num = int(batch.prompts.mask[0].sum()), int(rollout.mask[0, 0].sum())
    ids = np.concatenate([batch.prompts.tokens[0, :start], rollout.tokens[0, 0, :num]])
    log_probs = full_log_probs(model, params, ids)[start - 1 :]
    np.testing.assert_allclose(rollout.log_probs[0, 0, :num], log_probs[np.arange(num), ids[start:]], atol=1e-4)


def test_a_narrow_cache_is_what_is_kept_and_read():
    model, params = tiny_model()
    batch = random_batch(1)
    config = dataclasses.replace(sampling(), cache_dtype="bfloat16")
    rollout = sample(model, params, batch.prompts, jax.random.key(3), config)
    assert rollout.trace_cache.k.dtype == rollout.prompt_cache.v.dtype == jnp.bfloat16
    exact = sample(model, params, batch.prompts, jax.random.key(3), sampling())
    first = np.abs(rollout.log_probs[..., 0] - exact.log_probs[..., 0])
    second = np.abs(rollout.log_probs[..., 1] - exact.log_probs[..., 1])[
        np.asarray(rollout.tokens == exact.tokens)[..., 0]
    ]
    assert (first == 0).all() and 0 < second.max() < 0.15  # The first token is predicted by the prefill alone.


def test_an_int8_cache_is_as_near_as_its_127_levels():
    """A vector's error is at most half a level, 1/254 of its largest entry."""
    model, params = tiny_model()
    batch = random_batch(1)
    config = dataclasses.replace(sampling(chunk_size=10), cache_dtype="int8")
    rollout = sample(model, params, batch.prompts, jax.random.key(3), config)
    exact = sample(model, params, batch.prompts, jax.random.key(3), sampling(chunk_size=10))
    for narrow, wide, scale in (
        (rollout.prompt_cache.k, exact.prompt_cache.k, rollout.prompt_cache.k_scale),
        (rollout.prompt_cache.v, exact.prompt_cache.v, rollout.prompt_cache.v_scale),
    ):
        assert narrow.dtype == jnp.int8
        level = np.abs(wide).max(-1) / 127
        np.testing.assert_allclose(scale, level, rtol=1e-6)
        assert (np.abs(narrow * scale[..., None] - wide) <= 0.5001 * level[..., None]).all()
    np.testing.assert_array_equal(rollout.log_probs[..., 0], exact.log_probs[..., 0])
    same = np.asarray(rollout.tokens == exact.tokens)[..., 0]
    second = np.abs(rollout.log_probs[..., 1] - exact.log_probs[..., 1])[same]
    assert 0 < second.max() < 0.15
    base, expected = (score_reference(model, params, r, batch.reference)[1] for r in (rollout, exact))
    assert 0 < np.abs(base - expected)[batch.reference.mask].max() < 0.3
