"""An update against a gradient of the whole padded batch, whatever the micro-batches; what it plans and frees."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax.data import Prompts
from nrt_jax.objectives import LossMasks, NRTLossConfig, nrt_loss
from nrt_jax.training.learner import LearnerBatch, completion_log_probs
from nrt_jax.training.state import create_state
from nrt_jax.training.update import SHORTEST, Lengths, padding_share, plan, read_lengths, update
from tests.fixtures_model import VOCAB, tiny_model

OPTIMIZER = optax.sgd(0.1)
LOSS = NRTLossConfig(token_signal="derived")
P, K, X, T = 4, 2, 8, 16


@functools.cache
def initial():
    """The tiny model as it is initialised: sharper, float32 rounding grows to 1e-4 of its gradient."""
    model, params = tiny_model()
    return model, jax.tree.map(lambda x: x / 2 if x.ndim > 1 else x, params)


def random_learner_batch(seed: int, longest: list[int], max_length: int = T) -> LearnerBatch:
    """Completions of 2 tokens, the delimiter and one of the answer, to `longest` of their group, less one for x_X."""
    rng = np.random.default_rng(seed)
    length = rng.integers(2, np.array(longest)[:, None], (P, K))
    length[:, 0] = np.array(longest) - 1
    answer = rng.integers(1, length)
    index = np.arange(max_length) - 1
    in_trace, covered = index < (length - answer)[..., None], index < length[..., None]
    forced = rng.random((P, K)) < 0.5
    prompt_mask = np.arange(X) < rng.integers(1, X + 1, P)[:, None]
    shape = (P, K, max_length)
    return LearnerBatch(
        prompts=Prompts(tokens=rng.integers(8, VOCAB, (P, X)), mask=prompt_mask),
        tokens=rng.integers(8, VOCAB, shape),
        masks=LossMasks(
            trace=in_trace & (index >= 0),
            delimiter=(index == (length - answer)[..., None] - 1) & forced[..., None],
            reference=covered & ~in_trace & (index >= 0),
        ),
        old_log_probs=-4 - rng.random(shape, np.float32),
        advantage=rng.normal(size=(P, K)).astype(np.float32),
        token_signal=rng.random(shape, np.float32),
    )


@functools.partial(jax.jit, static_argnames="config")
def plain_update(params, batch, config):
    """The same by one gradient of the whole padded batch."""
    model, _ = tiny_model()

    def loss(params):
        log_probs, entropy = completion_log_probs(model, params, batch)
        terms = (batch.old_log_probs, batch.advantage, batch.token_signal, batch.masks)
        num_trace, num_answer = jnp.sum(batch.masks.trace), jnp.sum(batch.masks.reference)
        num_forced = jnp.maximum(jnp.sum(batch.masks.delimiter), 1)
        divide_by = type("By", (), {"trace": num_trace, "delimiter": num_forced, "token": num_answer})
        loss, metrics = nrt_loss(log_probs, *terms, config, divide_by)
        return loss, metrics | {"loss": loss, "trace_entropy": jnp.mean(entropy, where=batch.masks.trace)}

    gradient, metrics = jax.grad(loss, has_aux=True)(params)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), metrics | {"gradient_norm": norm}


def updated(batch, **options):
    model, params = initial()
    state = create_state(jax.tree.map(jnp.copy, params), OPTIMIZER)
    state, metrics = update(state, batch, **{"model": model, "optimizer": OPTIMIZER, "config": LOSS} | options)
    return state.params, {name: float(value) for name, value in metrics.items()}


def assert_same(found, expected):
    (params, metrics), (expected_params, expected_metrics) = found, expected
    chex.assert_trees_all_close(params, expected_params, atol=1e-6)  # They change by about 0.03.
    for name, value in expected_metrics.items():
        if name != "padding_share":
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@settings(max_examples=6)
@given(seed=st.integers(0, 999), longest=st.lists(st.sampled_from([4, T]), min_size=P, max_size=P))
def test_update_is_that_of_the_whole_padded_batch_for_any_number_of_micro_batches(seed, longest):
    batch = random_learner_batch(seed, longest)
    expected = plain_update(initial()[1], batch, LOSS)
    assert float(expected[1]["gradient_norm"]) > 0.01
    for micro_batches in (1, 4):
        assert_same(updated(batch, micro_batches=micro_batches), expected)


@settings(max_examples=6)
@given(seed=st.integers(0, 999), order=st.permutations(range(P)), padding=st.sampled_from([0, 8]))
def test_update_ignores_the_order_of_prompts_and_traces_and_the_width_of_the_padding(seed, order, padding):
    batch = random_learner_batch(seed, [T, 4, T, 4])
    moved = jax.tree.map(lambda x: x[np.array(order)], batch)
    per_trace = ("tokens", "masks", "old_log_probs", "advantage", "token_signal")
    flipped = {name: jax.tree.map(lambda x: x[:, ::-1], getattr(moved, name)) for name in per_trace}

    def widen(x):
        return np.pad(x, ((0, 0), (0, 0), (0, padding))) if x.ndim == 3 else x

    wide = jax.tree.map(widen, moved.replace(**flipped))
    assert_same(updated(wide, micro_batches=4), updated(batch, micro_batches=4))


def test_update_does_not_depend_on_rematerialisation():
    batch = random_learner_batch(0, [T] * P)
    assert_same(updated(batch, remat="full"), updated(batch))


def test_update_ignores_what_padding_holds():
    batch = random_learner_batch(1, [T, 4, T, 4])
    masks = batch.masks
    covered = masks.trace | masks.delimiter | masks.reference
    covered[..., 0] = True  # The prompt's last token.
    garbage = dataclasses.replace(
        batch,
        tokens=np.where(covered, batch.tokens, 17),
        old_log_probs=np.where(covered, batch.old_log_probs, 55.0),
        token_signal=np.where(covered, batch.token_signal, np.nan),
        prompts=batch.prompts.replace(tokens=np.where(batch.prompts.mask, batch.prompts.tokens, 31)),
    )
    assert_same(updated(garbage, micro_batches=4), updated(batch, micro_batches=4))


def test_an_advantage_a_token_is_split_as_one_a_sequence_is():
    batch = random_learner_batch(3, [T, 4, T, 4])
    wide = np.broadcast_to(batch.advantage[..., None], batch.tokens.shape)
    assert_same(updated(batch.replace(advantage=wide), micro_batches=4), updated(batch, micro_batches=4))


def test_the_old_state_is_donated():
    model, params = initial()
    adam = optax.adam(1e-3)
    state = create_state(jax.tree.map(jnp.copy, params), adam)
    batch = random_learner_batch(1, [T, 4, T, 4])
    new, _ = update(state, batch, model=model, optimizer=adam, config=LOSS, micro_batches=4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


lengths_and_parts = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda sizes: st.tuples(
        st.lists(
            st.lists(st.integers(1, 299), min_size=sizes[2], max_size=sizes[2]),
            min_size=sizes[0] * sizes[1],
            max_size=sizes[0] * sizes[1],
        ),
        st.just(sizes[0]),
    )
)


@given(case=lengths_and_parts, room=st.integers(0, 900))
def test_a_plan_splits_prompts_equally_holds_every_completion_and_has_few_lengths(case, room):
    completions, micro_batches = np.array(case[0]), case[1]
    lengths = Lengths(np.ones(len(completions), int), completions)
    max_length = 1 + int(completions.max()) + room
    parts = plan(lengths, max_length, micro_batches)
    assert sorted(p for part in parts for p in part.prompts) == list(range(len(completions)))
    assert {part.prompts.size for part in parts} == {len(completions) // micro_batches}
    for part in parts:
        longest = 1 + completions[part.prompts].max()
        # Rounding up to a power of two, or 3 / 4 of one, adds less than half.
        assert longest <= part.length <= min(1.5 * max(longest, SHORTEST * max_length), max_length)
    in_order = [plan(Lengths(l.prompts, l.completions), max_length, 1)[0] for l in lengths.split(micro_batches)]
    assert sum(part.length for part in parts) <= sum(part.length for part in in_order)


@given(case=lengths_and_parts)
def test_no_prompt_of_a_part_is_longer_than_any_of_the_part_before(case):
    completions = np.array(case[0])
    parts = plan(Lengths(np.ones(len(completions), int), completions), 300, case[1])
    longest = [completions[part.prompts].max(-1) for part in parts]
    assert all(later.max() <= before.min() for before, later in itertools.pairwise(longest))
    assert all(before.length >= later.length for before, later in itertools.pairwise(parts))


@pytest.mark.parametrize("max_length", [1, 2, 5, 46, 100, 1000, 4098])
def test_a_run_meets_at_most_seven_lengths(max_length):
    found = {plan(Lengths(np.ones(1), np.array([[n]])), max_length, 1)[0].length for n in range(max_length)}
    assert len(found) <= 7 + (max_length & (max_length - 1) != 0) and max_length in found


@given(seed=st.integers(0, 999), longest=st.lists(st.integers(3, T), min_size=P, max_size=P))
def test_padding_share_counts_the_empty_slots_of_every_part(seed, longest):
    batch = random_learner_batch(seed, longest)
    lengths = read_lengths(batch)
    parts = plan(lengths, T, 2)
    masks = batch.masks
    covered, empty, slots = masks.trace | masks.delimiter | masks.reference, 0, 0
    for part in parts:
        assert not covered[part.prompts, :, part.length :].any()
        for filled in (batch.prompts.mask[part.prompts], covered[part.prompts, :, 1 : part.length]):
            empty, slots = empty + np.sum(~filled), slots + filled.size
    assert padding_share(lengths, parts, X) == pytest.approx(empty / slots)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_update_that_is_not_finite_leaves_params_and_optimizer_bit_for_bit(value, micro_batches):
    model, params = initial()
    optimizer = optax.adam(0.1)
    good = random_learner_batch(0, [9, 9, 9, 9])
    bad = dataclasses.replace(good, advantage=np.where(np.arange(P)[:, None] == 2, value, good.advantage))
    state = create_state(jax.tree.map(jnp.copy, params), optimizer)
    options = {"model": model, "optimizer": optimizer, "config": LOSS, "micro_batches": micro_batches}
    state, metrics = update(state, good, **options)
    assert metrics["skipped_updates"] == 0
    before = jax.device_get(state)
    state, metrics = update(state, bad, **options)
    assert metrics["skipped_updates"] == 1 and not np.isfinite(metrics["gradient_norm"])
    chex.assert_trees_all_equal(jax.device_get(state), before)
    state, metrics = update(state, good, **options)
    assert metrics["skipped_updates"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert not jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(state), before))
