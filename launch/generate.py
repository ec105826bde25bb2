"""Complete prompts with a checkpoint.

python -m launch.generate --checkpoint DIR --input prompts.jsonl --output out.jsonl --max-new-tokens 256 --temperature 0

A row of the input is {"prompt": text} or {"prompt_ids": [ids]}; the output adds "completion", "token_ids", "log_probs"
and "finish_reason" to it.
"""

import dataclasses
import math
import sys
import time
from typing import Literal

from launch import cli
from nrt_jax import checkpoints, jsonl
from nrt_jax.errors import UserError
from nrt_jax.evaluation import generation
from nrt_jax.rollout import Truncation, cache_dtype, check_truncation

ADDS = ("completion", "token_ids", "log_probs", "finish_reason")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Completions of prompts.

    Attributes:
        checkpoint: Folder of a model in Hugging Face format, an Orbax checkpoint, a run's folder, or a PEFT adapter's.
        input: JSONL file. A row has `prompt`, raw text (special tokens spelt in it are meant, BOS is put before it), or
            `prompt_ids`, token ids used as they are.
        output: JSONL file to write: the input's rows with `completion`, `token_ids`, `log_probs` and `finish_reason`.
        max_new_tokens: Most tokens of a completion.
        temperature: Divides the logits; 0 is greedy.
        top_k: Only the k likeliest tokens may be drawn; 0 is off.
        top_p: Of those, only the fewest whose probabilities add up to top_p; 1 is off.
        min_p: Only tokens at least min_p times as likely as the likeliest; 0 is off.
        seed: Of the sampling. A row's completion depends on it, its prompt and its line, not on the other rows.
        batch_size: Prompts decoded at once; when one is done, the next takes its place.
        dtype: Compute dtype of the model.
        cache_dtype: Of the keys and values that decoding reads; `auto` is bfloat16 on accelerators, and on a CPU
            `dtype`.
    """

    checkpoint: str
    input: str
    output: str
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    batch_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"

    def validate(self) -> None:
        """Raises UserError for values that cannot work."""
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} cannot work; expected a number above 0")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature: {self.temperature} cannot work; expected 0 (greedy) or a number above it")
        check_truncation(self.top_k, self.top_p, self.min_p)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: {self.seed} cannot work; expected a number from 0 to below 2**32")


def main(config: GenerateConfig) -> None:
    """Reads, samples, writes."""
    config.validate()
    rows = jsonl.read(config.input, field="input", adds=ADDS)
    prompts = [_prompt(row) for row in rows]
    jsonl.check_writable(config.output, field="output")
    model, params, tokenizer = checkpoints.load(config.checkpoint, dtype=config.dtype)
    stop_ids = generation.stop_ids(checkpoints.locate(config.checkpoint).base, tokenizer, model.config.vocab_size)
    prompts = [generation.prompt_ids(tokenizer, p) if isinstance(p, str) else p for p in prompts]
    for row, ids in zip(rows, prompts, strict=True):
        _check_ids(row, ids, model.config, config.max_new_tokens)

    started, done, tokens = time.monotonic(), {}, 0
    for completions in generation.complete(
        model,
        params,
        prompts,
        [row.line - 1 for row in rows],
        stop_ids=stop_ids,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        truncation=Truncation.of(config.top_k, config.top_p, config.min_p),
        cache_dtype=cache_dtype(config.cache_dtype),
        seed=config.seed,
        batch_size=config.batch_size,
    ):
        done |= completions
        tokens += sum(len(completion.token_ids) for completion in completions.values())
        rate = tokens / (time.monotonic() - started)
        print(f"{len(done)} of {len(rows)} rows, {rate:.0f} tokens/s", file=sys.stderr)
    completed = [_with_completion(row, done[i], tokenizer) for i, row in enumerate(rows)]
    jsonl.write(config.output, completed, field="output")
    stopped = sum(completion.finish_reason == "stop" for completion in done.values())
    print(
        f"completed {len(rows)} prompts with {tokens} tokens in {time.monotonic() - started:.1f} s, {stopped} of them "
        f"to a stop token; written to {config.output}"
    )


def _prompt(row: jsonl.Row) -> str | list[int]:
    """The row's prompt, in one form or the other."""
    given = [name for name in ("prompt", "prompt_ids") if row.values.get(name) is not None]
    if len(given) != 1:
        found = "both 'prompt' and 'prompt_ids'" if given else "neither 'prompt' nor 'prompt_ids'"
        raise UserError(f"{row.where}: has {found}; expected one of them, text or a list of token ids")
    if given == ["prompt"]:
        return row.text("prompt", may_be_empty=True)
    ids = row.values["prompt_ids"]
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise UserError(f"{row.where}: 'prompt_ids' is {ids!r:.40}; expected a non-empty list of integers")
    return ids


def _check_ids(row: jsonl.Row, ids: list[int], model_config, max_new_tokens: int) -> None:
    """Raises UserError if the model cannot take this prompt and as many tokens after it."""
    if not ids:
        raise UserError(f"{row.where}: 'prompt' is empty and the tokenizer has no BOS; expected at least one token")
    for i in ids:
        if not 0 <= i < model_config.vocab_size:
            raise UserError(
                f"{row.where}: 'prompt_ids' holds {i}; expected ids from 0 to {model_config.vocab_size - 1}"
            )
    longest = model_config.max_position_embeddings
    if len(ids) + max_new_tokens > longest:
        raise UserError(
            f"{row.where}: {len(ids)} prompt tokens and max_new_tokens {max_new_tokens} are "
            f"{len(ids) + max_new_tokens}; expected at most {longest}, the model's max_position_embeddings; "
            "shorten the prompt or lower --max-new-tokens"
        )


def _with_completion(row: jsonl.Row, completion: generation.Completion, tokenizer) -> jsonl.Row:
    added = {"completion": completion.text(tokenizer)} | dataclasses.asdict(completion)
    return dataclasses.replace(row, values=row.values | added)


if __name__ == "__main__":
    cli.run(main, GenerateConfig, "python -m launch.generate", __doc__)
