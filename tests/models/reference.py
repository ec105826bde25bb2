"""What the parity tests share: configs of every family, and transformers' models for them, far from initialisation."""

import dataclasses

import pytest
from hypothesis import strategies as st

from nrt_jax import hf
from nrt_jax.models import ModelConfig, RopeConfig
from tests.hf import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()  # it warns of contexts as short as the ones here

TOLERANCE = 1e-4
LENGTHS = range(13, 40)
# Stretched from a context shorter than the sequences, so that all branches of a rotary embedding are met.
YARN = RopeConfig(theta=500.0, type="yarn", factor=4.0, original_max_position_embeddings=40, beta_fast=8.0)
_LLAMA = dataclasses.replace(
    tiny.LLAMA, vocab_size=61, hidden_size=32, intermediate_size=40, num_layers=2, head_dim=8, num_kv_heads=2
)
_MISTRAL = dataclasses.replace(_LLAMA, model_type="mistral")
#: Every family of the supported checkpoints in small, and the rotary embeddings that they may come with.
FAMILIES = {
    "llama_2": dataclasses.replace(_LLAMA, num_kv_heads=4),
    "llama_3": dataclasses.replace(_LLAMA, rope=RopeConfig(theta=500000.0)),
    "llama_3.1": dataclasses.replace(_LLAMA, rope=tiny.LLAMA3_ROPE),
    "llama_3.2_tied": dataclasses.replace(
        _LLAMA, rope=dataclasses.replace(tiny.LLAMA3_ROPE, factor=32.0), tie_embeddings=True, head_dim=12
    ),
    "llama_linear": dataclasses.replace(_LLAMA, rope=RopeConfig(type="linear", factor=2.5), num_kv_heads=1),
    "llama_yarn": dataclasses.replace(_LLAMA, rope=YARN),
    "mistral_v0.1": dataclasses.replace(_MISTRAL, sliding_window=9, norm_eps=1e-3),
    "mistral_v0.2": dataclasses.replace(_MISTRAL, rope=RopeConfig(theta=1e6)),
    "mistral_nemo": dataclasses.replace(_MISTRAL, rope=RopeConfig(theta=1e6), head_dim=6, num_kv_heads=1),
    "mistral_yarn": dataclasses.replace(
        _MISTRAL, rope=dataclasses.replace(YARN, truncate=False, attention_factor=1.3), head_dim=16
    ),
}


@st.composite
def model_configs(draw) -> ModelConfig:
    """Small configs over everything that a family may vary; windows are shorter than the sequences of `LENGTHS`."""
    num_kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 9))
    num_heads = num_kv_heads * group
    window = draw(st.none() | st.integers(1, min(LENGTHS) - 1))
    model_type = draw(st.sampled_from(["llama", "mistral"])) if window is None else "mistral"
    return ModelConfig(
        model_type=model_type,
        vocab_size=draw(st.integers(11, 70)),
        hidden_size=num_heads * draw(st.integers(2, 9)),  # transformers wants a multiple even where head_dim is given
        intermediate_size=draw(st.integers(2, 50)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=draw(tiny.ropes(original=st.integers(8, 48))),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        tie_embeddings=draw(st.booleans()),
        sliding_window=window,
    )


def their_config(config: ModelConfig) -> "transformers.PreTrainedConfig":
    """Ours as transformers reads it."""
    families = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    their = families[config.model_type].from_dict(hf.to_hf(config))
    their._attn_implementation = "eager"
    return their


def sharpen(module: "torch.nn.Module", seed: int = 0) -> "torch.nn.Module":
    """Draws weights that give sharp attention, and norms away from 1."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data.copy_(1.0 + 0.3 * noise if tensor.ndim == 1 else 2.0 * noise / tensor.shape[-1] ** 0.5)
    return module.eval()


def reference(config: ModelConfig, seed: int = 0) -> "transformers.PreTrainedModel":
    """A transformers model of the config with sharp weights."""
    model = transformers.AutoModelForCausalLM.from_config(their_config(config), attn_implementation="eager")
    return sharpen(model, seed)
