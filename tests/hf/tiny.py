"""What the tests of HF folders share: a word-level tokenizer, a small config and weights of order 1."""

import jax
import jax.numpy as jnp
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nrt_jax.models import Model, ModelConfig, RopeConfig

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "one", "two", "three", "plus", "is")

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=13,
    hidden_size=8,
    intermediate_size=12,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
)
LLAMA3_ROPE = RopeConfig(
    theta=500000.0,
    type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


@st.composite
def ropes(draw, theta=st.floats(10.0, 1e7), original=st.integers(16, 10**6)) -> RopeConfig:  # noqa: B008
    """A rotary embedding with the fields that its type has."""
    fields = {"type": draw(st.sampled_from(["default", "linear", "llama3", "yarn"])), "theta": draw(theta)}
    if fields["type"] == "default":
        return RopeConfig(**fields)
    fields["factor"] = draw(st.floats(1.0, 64.0))
    if fields["type"] == "linear":
        return RopeConfig(**fields)
    fields["original_max_position_embeddings"] = draw(original)
    if fields["type"] == "llama3":
        low = draw(st.floats(0.5, 4.0))
        return RopeConfig(**fields, low_freq_factor=low, high_freq_factor=low * draw(st.floats(1.5, 8.0)))
    return RopeConfig(
        **fields,
        beta_fast=draw(st.floats(4.0, 64.0)),
        beta_slow=draw(st.floats(0.25, 4.0)),
        truncate=draw(st.booleans()),
        attention_factor=draw(st.none() | st.floats(0.5, 2.0)),
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Nine words, ids 0 to 8."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def params(config: ModelConfig, seed: int = 0):
    """Normal weights: norms away from 1, nothing at initialisation scale."""
    leaves, treedef = jax.tree.flatten(Model(config).abstract_params())
    rngs = jax.random.split(jax.random.key(seed), len(leaves))
    values = [jax.random.normal(rng, leaf.shape, jnp.float32) for rng, leaf in zip(rngs, leaves, strict=True)]
    return jax.tree.unflatten(treedef, values)
