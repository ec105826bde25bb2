"""A bounded sample of what a run writes: some groups of some steps, with what each trace did to each answer token.

The arrays are those of the step, fetched once its updates are dispatched: the device is at work meanwhile.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.encode import Encoded
from nrt_jax.hf.tokenizer import token_texts
from nrt_jax.training.config import ReportConfig
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.metrics import truncate_records
from nrt_jax.training.step import Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

TRACES_FILE = "traces.jsonl"


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was sampled in a step, on the host, in every process of the run.

    Attributes:
        step: Steps done when it was learned from.
        tokens: [P, K, T] int32, completions in the learner's layout.
        length: [P, K] int32, tokens of the trace; without intrinsic reward, of all that was written.
        outcome: Rewards, advantages, log c_i and log c_i,base.
    """

    step: int
    tokens: np.ndarray
    length: np.ndarray
    outcome: Outcome

    def histograms(self) -> dict[str, np.ndarray]:
        """Values of all traces and answer tokens of the step, by name."""
        o = self.outcome
        values = {"reward": o.reward, "trace_length": o.trace_length.astype(np.float32)}
        if o.log_probs is not None:
            gain = np.exp(o.log_probs) - np.exp(o.base_log_probs)[:, None]
            values["token_gain"] = gain[np.broadcast_to(o.answer_mask[:, None], gain.shape)]
        return {f"{name}_histogram": value[np.isfinite(value)] for name, value in values.items()}


def is_due(config: ReportConfig, step: int) -> bool:
    """Whether traces are kept of a step, counted from 1."""
    return config.every > 0 and (step == 1 or step % config.every == 0)


def fetch_sample(step: int, learner_batch: LearnerBatch, outcome: Outcome) -> Sample:
    """The numbers of a step; all processes of the run take part."""
    written = outcome.trace_length if outcome.log_probs is not None else learner_batch.masks.trace.sum(-1)
    outcome = outcome.replace(rewards={}, reward_std=None)
    tokens, length, outcome = parallel.fetch_alike((learner_batch.tokens, written, outcome))
    return Sample(step, tokens, length, outcome)


def describe_group(tokenizer: "Tokenizer", row: Encoded, sample: Sample, index: int) -> dict[str, Any]:
    """One group as JSON values.

    Args:
        tokenizer: Of the run.
        row: The question and its reference answer.
        sample: Of the step.
        index: Of the group in it.

    Returns:
        step, question, reference and traces, the highest advantage first, then reward: each with text, tokens (their
        number), reward, advantage, and finished. With an intrinsic reward also reward_empty_trace, reference_tokens
        (the texts of y*'s tokens, EOS last), base_log_probs, and for each trace log_probs. A number that is not finite
        is null.
    """
    o, num = sample.outcome, len(row.answer)
    group = {"step": sample.step, "question": row.example.question, "reference": row.example.answer}
    traces = []
    for k in np.lexsort((-o.reward[index], -o.advantage[index])).tolist():
        ids = sample.tokens[index, k, 1 : 1 + sample.length[index, k]].tolist()
        trace = {
            "text": tokenizer.decode(ids, skip_special_tokens=False),
            "tokens": len(ids),
            "reward": _number(o.reward[index, k]),
            "advantage": _number(o.advantage[index, k]),
            "finished": bool(o.finished[index, k]),
        }
        if o.log_probs is not None:
            trace["log_probs"] = _numbers(o.log_probs[index, k, :num])
        traces.append(trace)
    if o.log_probs is not None:
        group["reward_empty_trace"] = _number(o.baseline[index])
        group["reference_tokens"] = token_texts(tokenizer, row.answer)
        group["base_log_probs"] = _numbers(o.base_log_probs[index, :num])
    return group | {"traces": traces}


def as_text(group: Mapping[str, Any]) -> str:
    """A group for TensorBoard, which reads Markdown: as it stands, whatever is in it."""
    lines = [f"question: {group['question']}", f"reference: {group['reference']}"]
    for trace in group["traces"]:
        lines.append(f"advantage {trace['advantage']}, reward {trace['reward']}: {trace['text'] or '(empty)'}")
    return "\n".join(f"    {line}" for text in lines for line in text.splitlines())


class TraceFile:
    """`traces.jsonl`: one group a line, those of a step together."""

    def __init__(self, folder: pathlib.Path, tokenizer: "Tokenizer", num_groups: int, step: int):
        """Goes on after `step`: what was written of later ones is dropped."""
        self._path, self._tokenizer, self._num_groups = folder / TRACES_FILE, tokenizer, num_groups
        if jax.process_index() == 0:
            truncate_records(self._path, step)

    def write(self, rows: Sequence[Encoded], sample: Sample) -> list[dict[str, Any]]:
        """Writes the first groups of a step in the first process, and returns them.

        Args:
            rows: Questions of this process; those of the first one are the first of the step.
            sample: Of all processes' questions.
        """
        if jax.process_index():
            return []
        groups = [describe_group(self._tokenizer, row, sample, i) for i, row in enumerate(rows[: self._num_groups])]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(group, allow_nan=False) + "\n" for group in groups)
        return groups


def _number(value: float) -> float | None:
    """Six digits, as JSON."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]
