"""Whole models against transformers + torch on CPU, in float32: one folder, the same numbers, in both directions."""

import dataclasses
import functools
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax import hf
from nrt_jax.data import Prompts
from nrt_jax.models import Model, ModelConfig, Params
from nrt_jax.rollout import SamplingConfig, sample
from tests.hf import tiny
from tests.models.reference import FAMILIES, LENGTHS, TOLERANCE, model_configs, reference, torch, transformers

LENGTH = 24
PROMPT_LENGTHS = (3, 11, 6)
NEW_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Pair:
    """One checkpoint in both libraries, and random tokens [3, LENGTH]."""

    config: ModelConfig
    theirs: "transformers.PreTrainedModel"
    model: Model
    params: Params
    tokens: np.ndarray


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    config, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    theirs = reference(config)
    theirs.save_pretrained(folder)
    tokens = np.random.default_rng(4).integers(0, config.vocab_size, (3, LENGTH))
    return Pair(config, theirs, *hf.load_model(folder), tokens)


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


@settings(max_examples=15)
@given(model_configs(), st.sampled_from(LENGTHS), st.integers(0, 2**20))
def test_logits_of_any_config_equal_those_of_transformers(config, length, seed):
    theirs = reference(config, seed)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, params = hf.load_model(folder)
    assert model.config == config
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, length))
    np.testing.assert_allclose(logits(model, params, tokens), their_logits(theirs, tokens), rtol=0, atol=TOLERANCE)


def test_64_greedy_tokens_of_the_sampler_are_identical(pair):
    """The sampler has a cache for the prompt and a growing one for the trace; theirs has one row without padding.

    The prompts are shorter and longer than the window of 9, whose edge moves through both caches.
    """
    mask = np.arange(max(PROMPT_LENGTHS)) < np.array(PROMPT_LENGTHS)[:, None]
    prompts = Prompts(tokens=jnp.array(np.where(mask, pair.tokens[:, : mask.shape[1]], 0)), mask=jnp.array(mask))
    config = SamplingConfig(
        stop_ids=jnp.array([-1]),  # no token: all rows run to the limit, as theirs do
        temperature=jnp.float32(0),
        max_new_tokens=NEW_TOKENS,
        group_size=2,
        chunk_size=40,
    )
    ours = np.asarray(sample(pair.model, pair.params, prompts, jax.random.key(0), config).tokens)
    for row, length in enumerate(PROMPT_LENGTHS):
        theirs = greedy(pair.theirs, pair.tokens[row, :length])
        # A near-tie would make the comparison one of roundings; where it happens, another seed is to be chosen.
        top = np.sort(their_logits(pair.theirs, theirs[None])[0, length - 1 : -1], axis=-1)
        assert np.min(top[:, -1] - top[:, -2]) > 2 * TOLERANCE
        assert len(set(theirs[length:])) > 8
        for k in range(config.group_size):
            np.testing.assert_array_equal(ours[row, k], theirs[length:])


def greedy(model, prompt):
    """The prompt [T] and the `NEW_TOKENS` that transformers appends to it."""
    prompt = torch.tensor(prompt)[None]
    with torch.no_grad():
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0].numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exported_folder_is_bit_exact_and_loads_in_transformers(family, dtype, tmp_path):
    theirs = reference(FAMILIES[family]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "in")
    tiny.tokenizer().save_pretrained(tmp_path / "in")
    model, params, tokenizer = hf.load(tmp_path / "in")
    hf.save(tmp_path / "out", model, params, tokenizer, dtype=dtype, source=tmp_path / "in")

    before, after = (safetensors.torch.load_file(tmp_path / x / "model.safetensors") for x in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype == getattr(torch, dtype) for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (json.loads((tmp_path / x / "config.json").read_text()) for x in ("in", "out"))
    assert after == before | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

    original, exported = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / x, dtype=torch.float32) for x in ("in", "out")
    )
    tokens = np.random.default_rng(0).integers(0, 61, (2, LENGTH))
    np.testing.assert_array_equal(their_logits(exported, tokens), their_logits(original, tokens))


def test_folder_without_an_original_loads_in_transformers(tmp_path):
    """Also in the tokenizer and the special ids, which plain `generate` reads."""
    theirs = reference(FAMILIES["llama_3.1"])
    theirs.save_pretrained(tmp_path / "in")
    model, params = hf.load_model(tmp_path / "in")
    hf.save(tmp_path / "out", model, params, tiny.tokenizer())
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens = np.random.default_rng(0).integers(0, 61, (2, LENGTH))
    np.testing.assert_array_equal(their_logits(exported, tokens), their_logits(theirs, tokens))
    assert exported.config.eos_token_id == exported.generation_config.eos_token_id == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("one plus two") == tiny.tokenizer().encode("one plus two")
