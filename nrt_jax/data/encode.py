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
        pair: Ids of the chosen and the rejected completion, EOS included, or None.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    trace: tuple[int, ...] | None
    example: Example
    pair: tuple[tuple[int, ...], tuple[int, ...]] | None = None


class Encoder:
    """Turns examples into ids with one tokenizer, template and trace format."""

    def __init__(self, tokenizer: "Tokenizer", trace_format: TraceFormat, config: TextConfig):
        """Raises UserError if the template cannot be read or rendered, or has no place for the question."""
        self.tokenizer = tokenizer
        self.format = trace_format
        self.config = config
        self._template = Template(tokenizer, config)
        self._segments = Segments(tokenizer)
        self._opening, (self._delimiter,) = (
            [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
            for ids in (trace_format.opening, (trace_format.delimiter,))
        )

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
        pairs = self._pairs(prompts, examples)
        examples = [self._divided(example) for example in examples]
        answers = self._segments.encode([e.answer for e in examples], [self.format.delimiter] * len(examples))
        traced = [i for i, example in enumerate(examples) if example.trace is not None]
        traces = self._segments.encode(
            [examples[i].trace for i in traced], [(prompts[i] or (None,))[-1] for i in traced]
        )
        trace_of = dict(zip(traced, map(tuple, traces), strict=True))
        return [
            Encoded(
                prompt=prompt,
                answer=(*answer, self.format.eos),
                trace=trace_of.get(i),
                example=example,
                pair=pairs.get(i),
            )
            for i, (prompt, answer, example) in enumerate(zip(prompts, answers, examples, strict=True))
        ]

    def _divided(self, example: Example) -> Example:
        """With trace and answer of the chosen completion, where that is the answer."""
        if example.pair is None or example.answer != example.pair[0]:
            return example
        trace, answer = self._parts(example.answer)
        return dataclasses.replace(example, trace=trace, answer=answer)

    def _parts(self, completion: str) -> tuple[str | None, str]:
        """Trace and answer of a completion; the trace is None where there is no delimiter."""
        for opening in self._opening:  # The prompt ends with it.
            completion = completion.removeprefix(opening)
        trace, delimiter, answer = completion.partition(self._delimiter)
        return (trace, answer) if delimiter else (None, completion)

    def _pairs(self, prompts: Sequence[tuple[int, ...]], examples: Sequence[Example]) -> dict[int, tuple]:
        """By index of the example, the ids of its two completions: the first delimiter in a text is meant as one."""
        where = [(i, k) for i, example in enumerate(examples) if example.pair is not None for k in (0, 1)]
        parts = [self._parts(examples[i].pair[k]) for i, k in where]
        before = [(prompts[i] or (None,))[-1] for i, _ in where]
        traces = self._segments.encode([trace or "" for trace, _ in parts], before)
        starts = [i if trace is None else self.format.delimiter for i, (trace, _) in zip(before, parts, strict=True)]
        answers = self._segments.encode([answer for _, answer in parts], starts)
        whole = [
            (*(() if trace is None else (*ids, self.format.delimiter)), *answer, self.format.eos)
            for (trace, _), ids, answer in zip(parts, traces, answers, strict=True)
        ]
        return {i: (whole[2 * n], whole[2 * n + 1]) for n, (i, _) in enumerate(where[::2])}

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        bos = self.tokenizer.bos_token_id
        start = () if bos is None else (bos,)
        prompts = self._segments.encode_prompts([self._template.render(example) for example in examples])
        # Many chat templates write BOS themselves.
        return [(*(() if tuple(ids[:1]) == start else start), *ids, *self.format.opening) for ids in prompts]

    def divide(self, completion: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a completion up to its delimiter, its trace, which may be cut, and from there on."""
        start = completion.index(self.format.delimiter) if self.format.delimiter in completion else 0
        return completion[:start], completion[start:]

    def over_limit(self, encoded: Encoded, max_length: int | None) -> str | None:
        """Which limit an example is over, or None.

        Args:
            encoded: The example; its traces do not count, since they can be cut.
            max_length: Most tokens of prompt, delimiter and answer together; None for no such limit.
        """
        if len(encoded.prompt) > self.config.max_prompt_length:
            return "longer than text.max_prompt_length"
        tails = [self.divide(ids)[1] for ids in encoded.pair or ()]
        longest = max(len(encoded.answer), *(len(ids) - (ids[0] == self.format.delimiter) for ids in tails), 0)
        if longest > self.config.max_answer_length:
            return "longer than text.max_answer_length"
        if max_length is not None and len(encoded.prompt) + 1 + longest > max_length:
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
