"""Text to token ids, segment by segment.

Prompt, trace and answer are tokenized each on its own and their ids joined: tokenizing the joined text would let BPE
merge across a boundary and move the reference's tokens.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nrt_jax.data.batch import Batch, Prompts, Reference
from nrt_jax.data.example import Example
from nrt_jax.data.formats import TraceFormat
from nrt_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How questions and answers become tokens.

    Attributes:
        template: Text of the prompt with `{question}` in it; empty for the tokenizer's chat template or, if it has
            none (a base model), for PLAIN_TEMPLATE. BOS is put before it if the tokenizer has one.
        max_prompt_length: Questions longer than this many tokens, template included, are left out and counted.
        max_answer_length: Likewise for answers, EOS included.
    """

    template: str = ""
    max_prompt_length: int = 1024
    max_answer_length: int = 1024


PLAIN_TEMPLATE = "{question}\n"
_PLACE = "\N{OBJECT REPLACEMENT CHARACTER}question\N{OBJECT REPLACEMENT CHARACTER}"


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
        """Raises UserError if the template has no place for the question."""
        if config.template and "{question}" not in config.template:
            raise UserError(f"text.template: {config.template!r} has no {{question}}; expected e.g. {PLAIN_TEMPLATE!r}")
        self.tokenizer = tokenizer
        self._special_texts = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.format = trace_format
        self.config = config

    def ids(self, text: str) -> list[int]:
        """Ids of one segment of data. Text that spells a special token (`<eos>` in an answer) stays text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def prompt(self, question: str) -> tuple[int, ...]:
        """Ids of the prompt: BOS once, the template around the question, the opening tag."""
        if not (self.config.template or self.tokenizer.chat_template):
            ids = self.ids(PLAIN_TEMPLATE.replace("{question}", question))
        elif any(text in question for text in self._special_texts):
            before, after = self._render(_PLACE).split(_PLACE)
            ids = [*self._template_ids(before), *self.ids(question), *self._template_ids(after)]
        else:
            ids = self._template_ids(self._render(question))
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:  # Many chat templates write BOS themselves.
            ids = [bos, *ids]
        return (*ids, *self.format.opening)

    def _render(self, question: str) -> str:
        """The template, or else the tokenizer's chat template, with the question in it."""
        if self.config.template:
            return self.config.template.replace("{question}", question)
        messages = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _template_ids(self, text: str) -> list[int]:
        """Ids of a template's text, in which special tokens are meant."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode(self, example: Example) -> Encoded:
        """Ids of all segments of one example."""
        return Encoded(
            prompt=self.prompt(example.question),
            answer=(*self.ids(example.answer), self.format.eos),
            trace=None if example.trace is None else tuple(self.ids(example.trace)),
            example=example,
        )

    def encode_all(
        self, examples: Iterable[Example], *, max_length: int | None = None, name: str = "data"
    ) -> tuple[list[Encoded], dict[str, int]]:
        """Encodes examples and leaves out those over the limits.

        Args:
            examples: What to encode.
            max_length: Most tokens of prompt, delimiter and answer together; None for no such limit.
            name: What the examples are called in an error.

        Returns:
            The encoded examples, and how many were left out for which reason.

        Raises:
            UserError: None is left.
        """
        kept, left_out = [], {}
        for example in examples:
            encoded = self.encode(example)
            reason = self._over_limit(encoded, max_length)
            if reason:
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                kept.append(encoded)
        if not kept:
            why = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it has no rows"
            raise UserError(f"{name}: no example is left ({why}); expected at least one row within the limits")
        return kept, left_out

    def _over_limit(self, encoded: Encoded, max_length: int | None) -> str | None:
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
