"""Text to token ids, segment by segment.

Prompt, trace and answer are tokenized each on its own and their ids joined: tokenizing the joined text would let BPE
merge across a boundary and move the reference's tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nrt_jax.data.batch import Batch, Prompts, Reference
from nrt_jax.data.example import Example
from nrt_jax.data.formats import TraceFormat
from nrt_jax.data.segments import Segments
from nrt_jax.data.template import Template, TextConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example in token ids.

    Attributes:
        prompt: Ids of the prompt, opening tag included.
        answer: Ids of y*, EOS included.
        trace: Ids of the demonstration z, or None.
        example: Where they come from.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    trace: tuple[int, ...] | None
    example: Example


class Encoder:
    """Turns examples into ids with one tokenizer, template and trace format."""

    def __init__(self, tokenizer: "Tokenizer", trace_format: TraceFormat, config: TextConfig):
        """Raises UserError if the template cannot be read or rendered, or has no place for the question."""
        self.tokenizer = tokenizer
        self.format = trace_format
        self.config = config
        self._template = Template(tokenizer, config)
        self._segments = Segments(tokenizer)

    def prompt(self, question: str) -> tuple[int, ...]:
        """Ids of the prompt: BOS once, the template around the question, the opening tag."""
        return self._prompts([Example(question, "")])[0]

    def encode(self, example: Example) -> Encoded:
        """Ids of all segments of one example."""
        return self.encode_many([example])[0]

    def encode_many(self, examples: Sequence[Example]) -> list[Encoded]:
        """Ids of all segments of some examples, which a fast tokenizer takes in parallel.

        Raises:
            BadRow: The chat template refuses the turns of one of them.
        """
        prompts = self._prompts(examples)
        answers = self._segments.encode([e.answer for e in examples], [self.format.delimiter] * len(examples))
        traced = [i for i, example in enumerate(examples) if example.trace is not None]
        traces = self._segments.encode(
            [examples[i].trace for i in traced], [(prompts[i] or (None,))[-1] for i in traced]
        )
        trace_of = dict(zip(traced, map(tuple, traces), strict=True))
        return [
            Encoded(prompt=prompt, answer=(*answer, self.format.eos), trace=trace_of.get(i), example=example)
            for i, (prompt, answer, example) in enumerate(zip(prompts, answers, examples, strict=True))
        ]

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        bos = self.tokenizer.bos_token_id
        start = () if bos is None else (bos,)
        prompts = self._segments.encode_prompts([self._template.render(example) for example in examples])
        # Many chat templates write BOS themselves.
        return [(*(() if tuple(ids[:1]) == start else start), *ids, *self.format.opening) for ids in prompts]

    def over_limit(self, encoded: Encoded, max_length: int | None) -> str | None:
        """Which limit an example is over, or None.

        Args:
            encoded: The example; its trace does not count, since it can be cut.
            max_length: Most tokens of prompt, delimiter and answer together; None for no such limit.
        """
        if len(encoded.prompt) > self.config.max_prompt_length:
            return "longer than text.max_prompt_length"
        if len(encoded.answer) > self.config.max_answer_length:
            return "longer than text.max_answer_length"
        if max_length is not None and len(encoded.prompt) + 1 + len(encoded.answer) > max_length:
            return "longer than rollout.max_length, even without a trace"
        return None

    def batch(self, rows: Sequence[Encoded]) -> Batch:
        """Pads P rows to the batch's buckets."""
        prompts, prompt_mask = pad([row.prompt for row in rows])
        answers, answer_mask = pad([row.answer for row in rows])
        return Batch(
            prompts=Prompts(tokens=prompts, mask=prompt_mask),
            reference=Reference(tokens=answers, mask=answer_mask, delimiter=np.int32(self.format.delimiter)),
        )


def pad(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads rows of ids to a bucket: tokens [P, T] int32 and mask [P, T] bool."""
    length = bucket(max((len(row) for row in rows), default=0))
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask


def bucket(length: int) -> int:
    """The next of 4, 8, 12, .. 32, 40, .. 64, 96, 128, 192, 256, ..: little padding, few shapes to compile."""
    if length <= 64:
        step = 4 if length <= 32 else 8
        return max(-(-length // step), 1) * step
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power
