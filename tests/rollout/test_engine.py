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


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([3, 5]), st.integers(0, MANY), st.permutations(range(3)))
def test_engine_equals_sample_for_any_lengths_chunks_and_order_of_prompts(seed, chunk_size, num_stops, order):
    model, params = tiny_model()
    batch, keys, order = random_batch(seed), row_keys(jax.random.key(seed), 3, 3), np.array(order)
    plain = sample(model, params, batch.prompts, keys, with_stops(sampling(chunk_size=10), num_stops))
    prompts = jax.tree.map(lambda x: x[order], batch.prompts)
    moved = engine.sample(model, params, prompts, keys[order], with_stops(sampling(chunk_size=chunk_size), num_stops))
    back = np.argsort(order)
    caches = {"prompt_cache": plain.prompt_cache, "trace_cache": moved.trace_cache}
    ordered = jax.tree.map(lambda x: x[back], moved.replace(prompt_cache=None, trace_cache=None))
    trace_cache = moved.trace_cache.replace(
        k=moved.trace_cache.k[:, back],
        v=moved.trace_cache.v[:, back],
        positions=moved.trace_cache.positions[back],
    )
    assert_same(plain, ordered.replace(**caches | {"trace_cache": trace_cache}))


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


@given(st.data())
def test_every_running_row_has_a_seat_in_its_own_prompts_row_of_the_grid(data):
    num_prompts, group_size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    num_rows = num_prompts * group_size
    place = np.array(sorted(data.draw(st.sets(st.integers(0, num_rows - 1), min_size=1))))
    size = _bucket(place.size, num_rows)
    seats, ids = _seat(place, place // group_size, np.arange(num_prompts), size, group_size)
    assert place.size <= size == seats.rows.size and ids.size == min(num_prompts, size)
    np.testing.assert_array_equal(seats.rows[seats.is_row], place)
    for i, row in enumerate(place):
        assert seats.grid.reshape(-1)[seats.cell[i]] == i
        assert seats.prompts[seats.cell[i] // group_size] == ids[seats.cell[i] // group_size] == row // group_size
    assert np.unique(seats.cell[seats.is_row]).size == place.size
