"""Low-rank adapters: nothing at first, then the same whether beside the matrices or merged into them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax.models import LoRAConfig, Model, lora
from tests.hf import tiny

TOKENS = np.random.default_rng(0).integers(0, tiny.LLAMA.vocab_size, (2, 9))


def adapted(seed: int, config: LoRAConfig, row_ids=(3, 5), **changes):
    """A model with random adapters and rows, its base params, and the trainable and frozen parts."""
    model = Model(dataclasses.replace(tiny.LLAMA, **changes), config)
    params = tiny.params(model.config)
    trainable, frozen = lora.split(model, params, list(row_ids), jax.random.key(seed))
    leaves, tree = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return model, params, trainable, jax.tree.unflatten(tree, noisy), frozen


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
    return model.logits(params, TOKENS)


def test_new_adapters_change_nothing():
    model, params, start, _, frozen = adapted(0, LoRAConfig(rank=2))
    np.testing.assert_array_equal(logits(model, lora.combine(start, frozen)), logits(Model(model.config), params))
    bound = tiny.LLAMA.hidden_size**-0.5
    assert 0.5 * bound < np.abs(start["lora"]["q"]["a"]).max() <= bound


def test_the_tree_of_a_model_with_adapters_is_what_combine_makes():
    model, _, start, _, frozen = adapted(0, LoRAConfig(rank=3, targets=("v", "o", "down")))
    shapes = jax.tree.map(lambda leaf: leaf.shape, lora.combine(start, frozen))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, model.abstract_params())
    assert set(shapes["lora"]) == {"v", "o", "down"}
    axes = model.logical_axes()["lora"]["o"]
    assert (tuple(axes["a"]), tuple(axes["b"])) == (
        ("layers", "heads", "head_dim", "lora"),
        ("layers", "lora", "embed"),
    )


@settings(max_examples=4)
@given(
    rank=st.integers(1, 5),
    alpha=st.floats(0.5, 4.0),
    targets=st.lists(st.sampled_from(lora.PROJECTIONS), min_size=1, unique=True),
    tied=st.booleans(),
)
def test_merged_and_unmerged_are_the_same_policy(rank, alpha, targets, tied):
    config = LoRAConfig(rank=rank, alpha=alpha, targets=tuple(targets))
    model, params, _, trained, frozen = adapted(1, config, tie_embeddings=tied)
    combined = lora.combine(trained, frozen)
    merged = lora.merge(combined, config)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    beside = logits(model, combined)
    assert np.abs(beside - logits(Model(model.config), params)).max() > 0.1
    np.testing.assert_allclose(logits(Model(model.config), merged), beside, rtol=2e-5, atol=2e-4)


def test_merging_is_w_plus_scaled_a_b_in_float64():
    config = LoRAConfig(rank=2, alpha=3.0)
    _, params, _, trained, frozen = adapted(2, config)
    merged = lora.merge(lora.combine(trained, frozen), config)
    a, b = (np.asarray(trained["lora"]["o"][name], np.float64) for name in "ab")
    expected = params["layers"]["o"] + 1.5 * np.einsum("lhdr,lrm->lhdm", a, b)
    np.testing.assert_allclose(merged["layers"]["o"], expected, rtol=1e-5, atol=1e-5)


def test_only_rows_of_added_tokens_are_replaced():
    _, params, _, trained, frozen = adapted(3, LoRAConfig(rank=1))
    combined = lora.combine(trained, frozen)
    for name in ("embedding", "head"):
        changed = np.flatnonzero((combined[name] != params[name]).any(-1))
        assert changed.tolist() == [3, 5]
        np.testing.assert_array_equal(combined[name][jnp.array([3, 5])], trained["rows"][name])


def test_a_base_in_half_precision_stays_so_and_what_is_trained_does_not():
    config = LoRAConfig(rank=2)
    model = Model(tiny.LLAMA, config)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params(tiny.LLAMA))
    trainable, frozen = lora.split(model, params, [3], jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    combined = lora.combine(trainable, frozen)
    assert combined["embedding"].dtype == jnp.bfloat16
    assert lora.merge(combined, config)["layers"]["q"].dtype == jnp.bfloat16


def test_without_frozen_params_everything_is_trained():
    params = tiny.params(tiny.LLAMA)
    assert lora.combine(params, None) is params
    with pytest.raises(ZeroDivisionError):
        _ = LoRAConfig().scale
