"""Completions of raw prompts: nothing of NRT in them, only the policy and its stop tokens."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import json_file
from nrt_jax.data.batch import Prompts
from nrt_jax.data.encode import bucket, pad
from nrt_jax.errors import UserError
from nrt_jax.models import Model, Params
from nrt_jax.rollout import SamplingConfig, Truncation, engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the policy wrote after one prompt.

    Attributes:
        token_ids: Every sampled token, the stop token included.
        log_probs: Of each of them under softmax(logits / temperature), or softmax(logits) if greedy, in nats.
        finish_reason: `stop`, it ended with a stop token, or `length`, it reached the limit.
    """

    token_ids: list[int]
    log_probs: list[float]
    finish_reason: Literal["stop", "length"]

    def text(self, tokenizer: "Tokenizer") -> str:
        """The completion without its stop token; other special tokens are spelt out."""
        ids = self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def prompt_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a raw prompt: special tokens spelt in it are meant, and BOS stands before it once."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def stop_ids(folder: str | Path, tokenizer: "Tokenizer", vocab_size: int) -> tuple[int, ...]:
    """Ids that end a completion: the tokenizer's EOS and those that the checkpoint's JSON files name.

    A chat model's generation_config.json lists several.

    Args:
        folder: Of the checkpoint.
        tokenizer: Its own.
        vocab_size: V, rows of its embedding.

    Raises:
        UserError: A file cannot be read, or its `eos_token_id` is no id below `vocab_size`.
    """
    ids = [tokenizer.eos_token_id]
    for path in (Path(folder) / "generation_config.json", Path(folder) / "config.json"):
        ids += _eos_ids(path, vocab_size) if path.exists() else []
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _eos_ids(path: Path, vocab_size: int) -> list[int | None]:
    try:
        content = json_file.read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    value = content.get("eos_token_id") if isinstance(content, dict) else None
    ids = value if isinstance(value, list) else [value]
    if not all(i is None or (type(i) is int and 0 <= i < vocab_size) for i in ids):
        raise UserError(
            f"{path}: eos_token_id: {value!r}; expected a token id from 0 to {vocab_size - 1}, or a list of them"
        )
    return ids


def complete(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    truncation: Truncation,
    cache_dtype: str | None = None,
    seed: int,
    batch_size: int,
    chunk_size: int = 128,
    is_over: Callable[[np.ndarray], bool] | None = None,
) -> Iterator[dict[int, Completion]]:
    """Completes every prompt.

    Row i draws with fold_in(key(seed), rows[i]): its completion does not depend on the prompts that it shares a batch
    with, up to the rounding of floats.

    Args:
        model: The policy.
        params: Its parameters.
        prompts: Ids of each prompt, at least one.
        rows: A number for each prompt.
        stop_ids: Tokens that end a completion, perhaps none.
        max_new_tokens: Most tokens of a completion.
        temperature: Divides the logits; 0 is greedy.
        truncation: Which tokens may be drawn.
        cache_dtype: Of keys and values, as in `SamplingConfig`.
        seed: Of the sampling.
        batch_size: Prompts decoded at once; when one is done, the next takes its seat.
        chunk_size: Steps between two looks at which completions are done.
        is_over: Ends completions that it finds over at such a look, as in `engine.stream`.

    Yields:
        Some completions, by index of the prompt.
    """
    config = SamplingConfig(
        stop_ids=jnp.array(stop_ids or (-1,), jnp.int32),  # -1 is never sampled
        temperature=jnp.float32(temperature),
        truncation=truncation,
        max_new_tokens=max_new_tokens,
        cache_dtype=cache_dtype,
        max_rows=batch_size,
        chunk_size=chunk_size,
    )
    rng = jax.random.key(seed)
    buckets = [bucket(len(prompt)) for prompt in prompts]
    for size in sorted(set(buckets), reverse=True):  # What does not fit into memory fails at once.
        part = [i for i, prompts_bucket in enumerate(buckets) if prompts_bucket == size]
        tokens, mask = pad([prompts[i] for i in part])
        keys = _row_keys(rng, np.array([rows[i] for i in part], np.uint32))
        for done in engine.stream(model, params, Prompts(tokens=tokens, mask=mask), keys, config, is_over):
            sampled = jax.device_get(_without_caches(done.rollout))
            yield {part[i]: _completion(*(x[row] for x in sampled)) for row, i in enumerate(done.prompts)}


def _completion(tokens, length, log_probs, finished) -> Completion:
    return Completion(tokens[:length].tolist(), log_probs[:length].tolist(), "stop" if finished else "length")


@jax.jit
def _row_keys(rng, rows):
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(rows)[:, None]


@jax.jit
def _without_caches(rollout):
    """Tokens [P, Z], their number [P], log_probs [P, Z] and finished [P] of one completion a prompt."""
    return rollout.tokens[:, 0], jnp.sum(rollout.mask[:, 0], -1), rollout.log_probs[:, 0], rollout.finished[:, 0]
