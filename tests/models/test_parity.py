"""Ours against transformers + torch on CPU, in float32: one folder, the same numbers, in both directions."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from nrt_jax import hf
from nrt_jax.models import Model, ModelConfig, Params, RopeConfig
from tests.hf import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LENGTH = 24
BASE = dataclasses.replace(tiny.LLAMA, vocab_size=61, hidden_size=32, intermediate_size=40, num_layers=2, head_dim=8)
CONFIGS = {
    "llama_default_rope": BASE,
    "llama3_rope_tied": dataclasses.replace(BASE, rope=tiny.LLAMA3_ROPE, tie_embeddings=True),
    "llama_head_dim_is_not_d_over_h": dataclasses.replace(BASE, head_dim=12, num_kv_heads=4, norm_eps=1e-3),
    "llama_multi_query": dataclasses.replace(BASE, num_kv_heads=1, rope=RopeConfig(theta=500.0)),
    "mistral_window": dataclasses.replace(BASE, model_type="mistral", sliding_window=5, head_dim=16),
    "mistral_no_window": dataclasses.replace(BASE, model_type="mistral", rope=RopeConfig(theta=1e6)),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One checkpoint in both libraries, and random tokens [2, LENGTH]."""

    config: ModelConfig
    theirs: transformers.PreTrainedModel
    model: Model
    params: Params
    tokenizer: transformers.PreTrainedTokenizerBase
    tokens: np.ndarray


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    config, folder = CONFIGS[request.param], tmp_path_factory.mktemp(request.param)
    theirs = reference(config)
    theirs.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, LENGTH))
    return Pair(config, theirs, *hf.load(folder), tokens)


def reference(config):
    """A transformers model with sharp attention and norms away from 1: far from initialisation."""
    families = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    model = transformers.AutoModelForCausalLM.from_config(
        families[config.model_type].from_dict(hf.to_hf(config)), attn_implementation="eager"
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        norm = tensor.ndim == 1
        tensor.data.copy_(1.0 + 0.3 * noise if norm else 2.0 * noise / tensor.shape[-1] ** 0.5)
    return model.eval()


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens):
    return model.logits(params, tokens)


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def test_config_is_read_back_from_what_transformers_writes(pair):
    assert pair.model.config == pair.config


def test_logits_equal_those_of_transformers(pair):
    theirs = their_logits(pair.theirs, pair.tokens)
    assert theirs.std() > 0.5  # otherwise an absolute tolerance would say nothing
    ours = logits(pair.model, pair.params, pair.tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_exported_folder_is_bit_exact_and_loads_in_transformers(pair, tmp_path):
    hf.save(tmp_path / "out", pair.model, pair.params, pair.tokenizer)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    before, after = pair.theirs.state_dict(), exported.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    np.testing.assert_array_equal(their_logits(exported, pair.tokens), their_logits(pair.theirs, pair.tokens))
    assert exported.config.eos_token_id == exported.generation_config.eos_token_id == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("one plus two") == pair.tokenizer.encode("one plus two")


def test_greedy_tokens_are_identical(pair):
    prompt = torch.tensor(pair.tokens[:, :4])
    with torch.no_grad():
        theirs = pair.theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_length=LENGTH,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        ).numpy()
    ours = np.zeros_like(pair.tokens)
    ours[:, :4] = pair.tokens[:, :4]
    for t in range(4, LENGTH):  # padded to one length: one compilation
        ours[:, t] = np.argmax(logits(pair.model, pair.params, ours)[:, t - 1], axis=-1)
    np.testing.assert_array_equal(ours, theirs)
