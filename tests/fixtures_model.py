"""A tiny random model and prompts of unequal length, shared so that its programs compile once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.data import Batch, Prompts, Reference
from nrt_jax.models import Model, ModelConfig
from nrt_jax.rollout import SamplingConfig

DELIMITER, EOS, VOCAB = 5, 6, 48
X, Z, Y = 8, 10, 4


@functools.cache
def tiny_model(sliding_window: int | None = None):
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        sliding_window=sliding_window,
        model_type="mistral" if sliding_window else "llama",
    )
    model = Model(config)
    params = model.init(jax.random.key(0))
    # Sharper than at initialisation, where every distribution is nearly uniform and errors would hide.
    return model, jax.tree.map(lambda x: 2.0 * x if x.ndim > 1 else x, params)


def random_batch(seed: int, prompt_lengths=(8, 3, 5), answer_lengths=(4, 2, 1)) -> Batch:
    rng = np.random.default_rng(seed)
    num = len(prompt_lengths)
    prompt_mask = np.arange(X) < np.array(prompt_lengths)[:, None]
    answer_mask = np.arange(Y) < np.array(answer_lengths)[:, None]
    return Batch(
        prompts=Prompts(tokens=np.where(prompt_mask, rng.integers(8, VOCAB, (num, X)), 0), mask=prompt_mask),
        reference=Reference(
            tokens=np.where(answer_mask, rng.integers(8, VOCAB, (num, Y)), 0),
            mask=answer_mask,
            delimiter=np.int32(DELIMITER),
        ),
    )


def sampling(group_size: int = 3, chunk_size: int = 4, temperature: float = 1.0, max_new_tokens: int = Z):
    return SamplingConfig(
        stop_ids=jnp.array([DELIMITER, EOS, 1, 2, 3]),  # Five of 48: traces of many lengths.
        temperature=jnp.float32(temperature),
        max_new_tokens=max_new_tokens,
        group_size=group_size,
        chunk_size=chunk_size,
    )


def full_log_probs(model, params, ids):
    """log p(ids[t] | ids[:t]) for t >= 1, [T - 1, V], by one plain forward of the whole sequence."""
    padded = np.zeros((1, X + Z + 1 + Y + 1), np.int32)  # One length, one program.
    padded[0, : len(ids)] = ids
    return np.asarray(_log_softmax(model, params, padded))[0, : len(ids) - 1]


@functools.partial(jax.jit, static_argnums=0)
def _log_softmax(model, params, tokens):
    return jax.nn.log_softmax(model.logits(params, tokens))
