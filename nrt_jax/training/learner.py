"""What every method trains on, and its log-probabilities: pure functions.

A `LearnerBatch` is a prompt, completions whose tokens are known, and for every token the terms of the loss that cover
it. NRT fills it from a rollout, supervised fine-tuning from data; `nrt_jax.training.update` learns from it.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.data.batch import Batch, Prompts
from nrt_jax.data.encode import Encoded, Encoder, pad
from nrt_jax.models import Model, Params, Remat, token_log_probs
from nrt_jax.objectives import LossMasks
from nrt_jax.rollout import Rollout, prefill


@flax.struct.dataclass(kw_only=True)
class LearnerBatch:
    """P prompts with K completions each; index 0 of a completion is the prompt's own last token.

        tokens     x_X   z_1  z_2  </think>  y_1  EOS   0
        masks       o     z    z    z (d)     y    y    .

    x_X is covered only where it is an opening tag (o), which the policy should learn to write.

    Attributes:
        prompts: P prompts.
        tokens: [P, K, T] int32.
        masks: Each [P, K, T] bool.
        old_log_probs: [P, K, T] float32, the sampler's, on the trace and the delimiter.
        advantage: [P, K] float32, or [P, K, T] where it differs within a completion.
        token_signal: [P, K, T] float32, s_i on the reference.
        reference_log_probs: [P, K, T] float32, of the frozen reference; None unless the loss has a KL term. For `dpo`
            [P, K], of whole completions.
    """

    prompts: Prompts
    tokens: jax.Array
    masks: LossMasks
    old_log_probs: jax.Array
    advantage: jax.Array
    token_signal: jax.Array
    reference_log_probs: jax.Array | None = None


def from_rollout(
    rollout: Rollout,
    batch: Batch,
    advantage: jax.Array,
    token_signal: jax.Array,
    *,
    has_opening: bool,
    hint_length: jax.Array | None = None,
) -> LearnerBatch:
    """Lays out prompt, trace, delimiter and answer of each row without gaps.

    Args:
        rollout: The sampled traces.
        batch: The prompts and references that they belong to.
        advantage: [P, K].
        token_signal: [P, K, Y], s_i of the reference's tokens.
        has_opening: The prompts end with an opening tag.
        hint_length: [P, K] int32, tokens that a row was given, not sampled, if any row was.
    """
    num_prompts, group_size, max_trace = rollout.tokens.shape
    reference, length = batch.reference, rollout.trace_length[..., None]
    index = jnp.arange(1 + max_trace + 1 + reference.tokens.shape[1]) - 1  # Of the completion; -1 is x_X.
    shape = (num_prompts, group_size, index.size)

    def place(trace, delimiter, answer):
        """Values by segment: trace [P, K, Z], delimiter [P, K], answer [P, K, Y]."""
        from_trace = jnp.broadcast_to(jnp.take(trace, index, axis=-1, mode="clip"), shape)
        where = jnp.broadcast_to(jnp.clip(index - length - 1, 0, answer.shape[-1] - 1), shape)
        from_answer = jnp.take_along_axis(answer, where, axis=-1)
        return jnp.where(index < length, from_trace, jnp.where(index == length, delimiter[..., None], from_answer))

    def per_group(x):
        return jnp.broadcast_to(x[:, None], (num_prompts, group_size, *x.shape[1:]))

    in_trace = (index >= 0) & (index < length)
    at_delimiter = index == length
    in_answer = (index > length) & (index <= length + per_group(jnp.sum(reference.mask, -1))[..., None])
    matched = rollout.matched(reference.delimiter)
    delimiter_log_prob = jnp.take_along_axis(rollout.delimiter_log_probs, length, axis=-1)[..., 0]
    last = jnp.take_along_axis(batch.prompts.tokens, jnp.maximum(rollout.prompt_length - 1, 0)[:, None], axis=1)
    tokens = place(rollout.tokens, jnp.broadcast_to(reference.delimiter, matched.shape), per_group(reference.tokens))
    values = place(rollout.log_probs, delimiter_log_prob, token_signal)  # Each term reads its own segment.
    return LearnerBatch(
        prompts=batch.prompts,
        tokens=jnp.where(in_trace | at_delimiter | in_answer, tokens, 0).at[..., 0].set(last),
        masks=LossMasks(
            trace=in_trace | at_delimiter,
            delimiter=(at_delimiter & ~matched[..., None]) | ((index < 0) & has_opening),
            reference=in_answer,
        ),
        old_log_probs=jnp.where(in_answer, 0.0, values),
        advantage=spare_hints(advantage, hint_length, index.size),
        token_signal=jnp.where(in_answer, values, 0.0),
    )


def answer_values(values: jax.Array, trace_length: jax.Array, answer_length: int) -> jax.Array:
    """The values of y*'s tokens, [P, K, Y]: the reverse of the layout.

    Args:
        values: [P, K, T], one a completion's token.
        trace_length: [P, K] int32.
        answer_length: Y.
    """
    where = trace_length[..., None] + 2 + jnp.arange(answer_length)  # After x_X, the trace and the delimiter.
    return jnp.take_along_axis(values, jnp.minimum(where, values.shape[-1] - 1), axis=-1)


def without_trace(batch: Batch) -> LearnerBatch:
    """The completions of empty traces, K = 1: delimiter and answer; to be scored, not to be learned.

    Args:
        batch: P questions with their answers.
    """
    reference, length = batch.reference, jnp.sum(batch.prompts.mask, -1, dtype=jnp.int32)
    last = jnp.take_along_axis(batch.prompts.tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)
    delimiter = jnp.broadcast_to(reference.delimiter, last.shape)
    tokens = jnp.concatenate([last, delimiter, reference.tokens], axis=1, dtype=jnp.int32)[:, None]
    covered = jnp.pad(reference.mask, ((0, 0), (2, 0)))[:, None]
    is_delimiter = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) == 1, covered.shape)
    zeros = jnp.zeros(tokens.shape)
    return LearnerBatch(
        prompts=batch.prompts,
        tokens=tokens,
        masks=LossMasks(trace=is_delimiter, delimiter=jnp.zeros_like(covered), reference=covered),
        old_log_probs=zeros,
        advantage=zeros[..., 0],
        token_signal=zeros,
    )


def spare_hints(advantage: jax.Array, hint_length: jax.Array | None, num_tokens: int) -> jax.Array:
    """max(A, 0) on the tokens of a hint and A on the others, so that a right hint is never unlearned (StepHint).

    Args:
        advantage: [P, K].
        hint_length: [P, K] int32, or None for no hints.
        num_tokens: T of the learner's batch.

    Returns:
        [P, K, T], or [P, K] without hints.
    """
    if hint_length is None:
        return advantage
    is_hint = jnp.arange(num_tokens) <= hint_length[..., None]  # Index 0 is x_X.
    return jnp.where(is_hint, jnp.maximum(advantage, 0.0)[..., None], advantage[..., None])


def from_completions(
    rollout: Rollout, prompts: Prompts, advantage: jax.Array, hint_length: jax.Array | None = None
) -> LearnerBatch:
    """What the policy sampled, trace, delimiter and answer alike, as what it is rewarded for: there is no reference.

    Args:
        rollout: The completions.
        prompts: The prompts that they belong to.
        advantage: [P, K].
        hint_length: [P, K] int32, as for `from_rollout`.
    """
    last = jnp.take_along_axis(prompts.tokens, jnp.maximum(rollout.prompt_length - 1, 0)[:, None], axis=1)

    def shift(x, first=0):
        """Values [P, K, Z] of the completion, behind that of x_X."""
        return jnp.pad(x, ((0, 0), (0, 0), (1, 0))).at[..., 0].set(first)

    mask = shift(rollout.mask, False)
    nothing = jnp.zeros_like(mask)
    return LearnerBatch(
        prompts=prompts,
        tokens=shift(rollout.tokens, last),
        masks=LossMasks(trace=mask, delimiter=nothing, reference=nothing),
        old_log_probs=shift(rollout.log_probs),
        advantage=spare_hints(advantage, hint_length, mask.shape[-1]),
        token_signal=jnp.zeros(mask.shape, jnp.float32),
    )


def from_demonstrations(
    encoder: Encoder, rows: Sequence[Encoded], *, with_trace: bool, max_length: int | None = None
) -> LearnerBatch:
    """A supervised batch, K = 1: all of trace, delimiter and answer are learned with equal weight.

    Args:
        encoder: Pads the prompts.
        rows: P examples.
        with_trace: Whether the examples' traces are put in; else the trace is empty (answer-only fine-tuning).
        max_length: Most tokens of prompt, trace, delimiter and answer together; a longer sample loses the tail of its
            trace, never of its answer. `rollout.max_trace_length` limits what is sampled, not demonstrations.
    """
    delimiter, opening = encoder.format.delimiter, len(encoder.format.opening)
    traces = [row.trace or () if with_trace else () for row in rows]
    if max_length is not None:
        room = [max(max_length - len(row.prompt) - 1 - len(row.answer), 0) for row in rows]
        traces = [trace[:most] for trace, most in zip(traces, room, strict=True)]
    tokens, mask = pad([(row.prompt[-1], *z, delimiter, *row.answer) for row, z in zip(rows, traces, strict=True)])
    tokens, mask = tokens[:, None], mask[:, None]
    mask[..., 0] = bool(opening)
    nothing = np.zeros_like(mask)
    return LearnerBatch(
        prompts=encoder.batch(rows).prompts,
        tokens=tokens,
        masks=LossMasks(trace=nothing, delimiter=nothing, reference=mask),
        old_log_probs=np.zeros(tokens.shape, np.float32),
        advantage=np.zeros(tokens.shape[:2], np.float32),
        token_signal=mask.astype(np.float32),
    )


def from_pairs(encoder: Encoder, rows: Sequence[Encoded], *, max_length: int) -> LearnerBatch:
    """A batch of preferences, K = 2: the chosen completion of each prompt, then the rejected one.

    Args:
        encoder: Pads the prompts.
        rows: P examples with pairs.
        max_length: Most tokens of a prompt and a completion; a longer one loses the tail of its trace.
    """
    completions = []
    for row in rows:
        for trace, rest in map(encoder.divide, row.pair):
            completions.append((row.prompt[-1], *trace[: max(max_length - len(row.prompt) - len(rest), 0)], *rest))
    tokens, mask = (x.reshape(len(rows), 2, -1) for x in pad(completions))
    mask[..., 0] = False
    nothing, zeros = np.zeros_like(mask), np.zeros(tokens.shape, np.float32)
    return LearnerBatch(
        prompts=encoder.batch(rows).prompts,
        tokens=tokens,
        masks=LossMasks(trace=nothing, delimiter=nothing, reference=mask),
        old_log_probs=zeros,
        advantage=zeros[..., 0],
        token_signal=zeros,
    )


def completion_log_probs(
    model: Model, params: Params, batch: LearnerBatch, *, temperature: float = 1.0, remat: Remat = "none"
) -> tuple[jax.Array, jax.Array]:
    """log pi of every completion token: the prompt runs once a group, and gradients flow through it.

    Returns:
        log_probs and entropy, [P, K, T] float32 in nats; arbitrary outside the masks.
    """
    num_prompts, group_size, length = batch.tokens.shape
    prompt_length = jnp.sum(batch.prompts.mask, -1, dtype=jnp.int32)
    prompt_hidden, prompt_cache = prefill(model, params, batch.prompts, remat=remat)
    ends = jnp.maximum(prompt_length[:, None] - jnp.array([2, 1]), 0)
    before = jnp.take_along_axis(prompt_hidden, ends[..., None], axis=1)  # They predict x_X and the first token.

    covered = batch.masks.trace | batch.masks.delimiter | batch.masks.reference
    inputs, covered = batch.tokens[..., 1:], covered[..., 1:]
    positions = jnp.where(covered, prompt_length[:, None, None] + jnp.arange(length - 1), -1)
    hidden, _ = model.apply(params, inputs, positions, (prompt_cache,), remat=remat)
    before = jnp.broadcast_to(before[:, None], (num_prompts, group_size, *before.shape[1:]))
    hidden = jnp.concatenate([before, hidden[..., :-1, :]], axis=2)
    return token_log_probs(hidden, model.head(params), batch.tokens, temperature=temperature)
