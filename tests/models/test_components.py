"""Each component against the one of transformers, in float32, over drawn configs."""

import functools
import json
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax import hf
from nrt_jax.hf.table import TENSORS
from nrt_jax.models import ModelConfig, RopeConfig, rope
from nrt_jax.models.transformer import Block, rms_norm
from tests.hf import tiny
from tests.models.reference import LENGTHS, model_configs, sharpen, their_config, torch

masking = pytest.importorskip("transformers.masking_utils")
modeling_llama = pytest.importorskip("transformers.models.llama.modeling_llama")
modeling_mistral = pytest.importorskip("transformers.models.mistral.modeling_mistral")

LAYERS = {"llama": modeling_llama.LlamaDecoderLayer, "mistral": modeling_mistral.MistralDecoderLayer}
PUBLISHED = sorted((Path(__file__).parents[1] / "hf" / "configs").glob("*.json"))


def their_table(config: ModelConfig, positions):
    """inv_freq [d / 2], and cosine and sine [T, d / 2], of the first half: they store it twice."""
    table = modeling_llama.LlamaRotaryEmbedding(their_config(config))
    both = table(torch.zeros(1), torch.tensor(positions)[None])
    return table.inv_freq.numpy(), [x[0, :, : config.head_dim // 2].numpy() for x in both]


def our_table(config: ModelConfig, positions):
    rotation = functools.partial(rope.rotation, config.rope, config.head_dim)
    return rope.inverse_frequencies(config.rope, config.head_dim), jax.jit(rotation)(np.asarray(positions))


def llama(head_dim, rope_config):
    return ModelConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=head_dim,
        rope=rope_config,
        max_position_embeddings=131072,
    )


@given(st.floats(2.0, 1e8), st.integers(1, 128))
def test_frequencies_differ_by_the_last_place_at_most(theta, half):
    config = llama(2 * half, RopeConfig(theta=theta))
    np.testing.assert_allclose(our_table(config, [0])[0], their_table(config, [0])[0], rtol=2**-22, atol=0)


@given(
    tiny.ropes(theta=st.sampled_from([1e4, 5e5]), original=st.sampled_from([4096, 8192, 32768])),
    st.sampled_from([64, 80, 128]),
)
def test_rotary_tables_are_equal_up_to_8192_tokens(rope_config, head_dim):
    config, positions = llama(head_dim, rope_config), np.arange(8193)
    (_, ours), (_, theirs) = our_table(config, positions), their_table(config, positions)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_rotary_tables_of_published_models_are_equal_to_the_end_of_their_contexts(path):
    config = hf.from_hf(json.loads(path.read_text()))
    (ours_inv, ours), (theirs_inv, theirs) = (f(config, np.arange(8193)) for f in (our_table, their_table))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    end = np.arange(config.max_position_embeddings - 512, config.max_position_embeddings)
    # At theta = 1e6 and d = 128, torch's power is a unit in the last place off for one frequency; see rope.py.
    off = np.abs(ours_inv - theirs_inv)
    assert np.count_nonzero(off) == (config.rope.theta == 1e6)
    bound = 1e-6 + end[:, None] * off
    for a, b in zip(our_table(config, end)[1], their_table(config, end)[1], strict=True):
        assert np.all(np.abs(a - b) <= bound)


@settings(max_examples=25)
@given(st.sampled_from([1, 6, 64]), st.sampled_from([1e-6, 1e-5, 1e-3]), st.floats(1e-4, 1e4), st.integers(0, 2**20))
def test_rms_norm_is_equal(width, eps, scale, seed):
    theirs = sharpen(modeling_llama.LlamaRMSNorm(width, eps=eps), seed)
    x = scale * np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).numpy()
    ours = rms_norm(jnp.asarray(x), jnp.asarray(theirs.weight.detach().numpy()), eps)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


class Layer:
    """One decoder layer in both libraries, with random inputs [2, T, D] and outputs of order 1."""

    def __init__(self, config: ModelConfig, length: int, seed: int):
        their = their_config(config)
        self.config, self.theirs = config, sharpen(LAYERS[config.model_type](their, 0), seed)
        self.theirs.self_attn.o_proj.weight.data /= 4
        self.theirs.mlp.down_proj.weight.data /= 16
        self.x = torch.randn((2, length, config.hidden_size), generator=torch.Generator().manual_seed(seed))
        positions = torch.arange(length)[None]
        self.rotation = modeling_llama.LlamaRotaryEmbedding(their)(self.x, positions)
        full, windowed = masking.create_causal_mask, masking.create_sliding_window_causal_mask
        self.mask = (full if config.sliding_window is None else windowed)(
            config=their, inputs_embeds=self.x, attention_mask=None, past_key_values=None, position_ids=positions
        )
        graph, _ = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))

        @jax.jit
        def block(params, x):
            positions = jnp.broadcast_to(jnp.arange(length), x.shape[:3])
            cos, sin = rope.rotation(config.rope, config.head_dim, positions)
            return nnx.merge(graph, params)(x, positions, (cos[..., None, :], sin[..., None, :]), (), {})[0] - x

        self.block = block

    def params(self):
        """Their weights in our layout."""
        c, weights = self.config, self.theirs.state_dict()
        sizes = {"D": c.hidden_size, "H": c.num_heads, "G": c.num_kv_heads, "d": c.head_dim, "F": c.intermediate_size}
        return {
            spec.path[-1]: jnp.array(spec.to_ours(weights[spec.name.split("{layer}.")[1]].numpy(), sizes))
            for spec in TENSORS
            if spec.per_layer
        }

    def ours_without(self, projection: str):
        """Block(x) - x where this projection is zero, so that one of the two branches is left."""
        params = self.params()
        params[projection] = jnp.zeros_like(params[projection])
        return self.block(params, jnp.asarray(self.x.numpy())[:, None])[:, 0]


@settings(max_examples=15)
@given(st.builds(Layer, config=model_configs(), length=st.sampled_from(LENGTHS), seed=st.integers(0, 2**20)))
def test_attention_and_feed_forward_are_equal(layer):
    with torch.no_grad():
        attention, weights = layer.theirs.self_attn(
            hidden_states=layer.theirs.input_layernorm(layer.x),
            position_embeddings=layer.rotation,
            attention_mask=layer.mask,
        )
        feed_forward = layer.theirs.mlp(layer.theirs.post_attention_layernorm(layer.x))
    length = layer.x.shape[1]
    seen = min(layer.config.sliding_window or length, length)
    assert not weights[..., -1, : length - seen].any()  # theirs has the window, too
    np.testing.assert_allclose(layer.ours_without("down"), attention.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer.ours_without("o"), feed_forward.numpy(), rtol=0, atol=1e-5)
