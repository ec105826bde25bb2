"""What given traces are worth: log c_i of the reference answer after them, and every reward that NRT knows.

The numbers are those that training rewards, because they come from the same scorer, on the caches of a rollout whose
traces were given instead of sampled.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.data.batch import Batch, Prompts, Reference
from nrt_jax.data.encode import Encoded, pad
from nrt_jax.evaluation.batching import batches
from nrt_jax.models import Model, Params
from nrt_jax.rewards import AGGREGATIONS, aggregate, score_reference
from nrt_jax.rollout import Rollout, prefill


@dataclasses.dataclass(frozen=True)
class Score:
    """What one trace does for its answer.

    Attributes:
        token_log_probs: log c_i of y* after the trace, EOS included, in nats.
        base_token_log_probs: log c_i,base of y* after the empty trace, in nats.
        rewards: R by mode, for every one of `AGGREGATIONS`.
    """

    token_log_probs: list[float]
    base_token_log_probs: list[float]
    rewards: dict[str, float]


def score(
    model: Model, params: Params, rows: Sequence[Encoded], *, delimiter: int, temperature: float, batch_size: int
) -> Iterator[dict[int, Score]]:
    """Scores the trace of every row.

    Args:
        model: The policy.
        params: Its parameters.
        rows: With traces.
        delimiter: Id of the token between trace and answer.
        temperature: Divides the logits.
        batch_size: Rows scored at once.

    Yields:
        The scores of one batch, by index of the row.
    """
    keys = [tuple(_room(len(ids)) for ids in (row.trace, row.prompt, row.answer)) for row in rows]
    for part in batches(keys, batch_size):
        prompts, traces, answers = (
            _pad([getattr(rows[i], name) for i in part]) for name in ("prompt", "trace", "answer")
        )
        batch = Batch(
            prompts=Prompts(tokens=prompts[0], mask=prompts[1]),
            reference=Reference(tokens=answers[0], mask=answers[1], delimiter=np.int32(delimiter)),
        )
        log_probs, base, rewards = jax.device_get(_score(model, params, batch, *traces, jnp.float32(temperature)))
        yield {
            i: Score(
                token_log_probs=log_probs[j][answers[1][j]].tolist(),
                base_token_log_probs=base[j][answers[1][j]].tolist(),
                rewards={mode: float(values[j]) for mode, values in rewards.items()},
            )
            for j, i in enumerate(part)
        }


def _room(length: int) -> int:
    """The next power of two from 8 on.

    Coarser than training's buckets: three lengths meet here, and each combination of them is a program.
    """
    return max(8, 1 << (length - 1).bit_length())


def _pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads P rows of ids: tokens [P, T] int32 and mask [P, T] bool."""
    tokens, mask = pad(rows)
    more = ((0, 0), (0, _room(max(map(len, rows))) - mask.shape[1]))
    return np.pad(tokens, more), np.pad(mask, more)


def rollout_of(model: Model, params: Params, prompts: Prompts, traces: jax.Array, mask: jax.Array) -> Rollout:
    """The rollout that sampling these traces would have left, one trace a prompt, none of them ended by a stop token.

    Args:
        model: The policy.
        params: Its parameters.
        prompts: P prompts.
        traces: [P, Z] int32, right-padded.
        mask: [P, Z] bool, True on the traces.

    Returns:
        Its log_probs, entropy and delimiter_log_probs are NaN: nothing was sampled.
    """
    length = jnp.sum(prompts.mask, -1, dtype=jnp.int32)
    _, prompt_cache = prefill(model, params, prompts)
    positions = jnp.where(mask, length[:, None] + jnp.arange(mask.shape[1]), -1)
    _, trace_cache = model.apply(params, traces[:, None], positions[:, None], (prompt_cache,))
    unknown = jnp.full((mask.shape[0], 1, mask.shape[1] + 1), jnp.nan)
    return Rollout(
        tokens=traces[:, None],
        mask=mask[:, None],
        log_probs=unknown[..., 1:],
        entropy=unknown[..., 1:],
        delimiter_log_probs=unknown,
        finished=jnp.zeros((mask.shape[0], 1), bool),
        prompt_length=length,
        prompt_cache=prompt_cache,
        trace_cache=trace_cache,
    )


@functools.partial(jax.jit, static_argnums=0)
def _score(model, params, batch, traces, trace_mask, temperature):
    """log c and log c_base [P, Y], and R [P] by mode."""
    rollout = rollout_of(model, params, batch.prompts, traces, trace_mask)
    log_probs, base = score_reference(model, params, rollout, batch.reference, temperature)
    log_probs, mask = log_probs[:, 0], batch.reference.mask
    rewards = {mode: aggregate(mode, log_probs, mask, base).trace for mode in AGGREGATIONS}
    return log_probs, base, rewards
