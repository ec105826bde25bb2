"""Trace formats: which tokens stand around a trace, and what ends it.

Two are known: the release writes `z <|response_start|> y* EOS` with ONE delimiter token; the paper writes
`<think> z </think> y*`. Both are a pair of texts here. The opening, if any, is put at the end of the prompt; the
closing is the delimiter between trace and answer. Each is one token, added to the tokenizer if need be.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from nrt_jax import hf
from nrt_jax.errors import UserError
from nrt_jax.models import Model, Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

#: Tokens that a tokenizer is given without being asked, because no published checkpoint has them.
STANDARD_TOKENS = ("<|response_start|>", "<think>", "</think>")


@dataclasses.dataclass(frozen=True)
class TraceFormatConfig:
    """The texts around a trace.

    Attributes:
        opening: Written before the trace, such as `<think>`; empty for none (the release).
        closing: The delimiter between trace and answer: `<|response_start|>` (the release) or `</think>` (the paper).
        add_tokens: What happens when the tokenizer lacks one of them. `standard` adds the release's delimiter and
            the paper's tags and refuses any other text, `any` adds whatever is named, `never` refuses.
    """

    opening: str = ""
    closing: str = "<|response_start|>"
    add_tokens: Literal["standard", "any", "never"] = "standard"


@dataclasses.dataclass(frozen=True)
class TraceFormat:
    """A trace format in token ids.

    Attributes:
        opening: Ids that end every prompt, () or one id.
        delimiter: Id between trace and answer.
        eos: Id that ends the answer.
        stop_ids: Ids that end a trace: the delimiter first, then EOS and every other special token.
    """

    opening: tuple[int, ...]
    delimiter: int
    eos: int
    stop_ids: tuple[int, ...]

    def split(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Splits a completion's ids [T] into the trace and the answer (without EOS).

        The answer is None where the delimiter was never written.
        """
        tokens = tokens[: np.argmax(tokens == self.eos)] if (tokens == self.eos).any() else tokens
        where = np.flatnonzero(tokens == self.delimiter)
        return (tokens[: where[0]], tokens[where[0] + 1 :]) if where.size else (tokens, None)


def resolve(
    config: TraceFormatConfig, model: Model, params: Params, tokenizer: "Tokenizer"
) -> tuple[TraceFormat, Model, Params, "Tokenizer"]:
    """Turns texts into ids, adding tokens where the config allows it.

    Returns:
        The format, and the model, params and tokenizer, grown by the added tokens.

    Raises:
        UserError: A token is missing and must not be added, there is no EOS, or it is the delimiter.
    """
    if not config.closing:
        raise UserError("trace.closing: is empty; expected the delimiter between trace and answer")
    if tokenizer.eos_token_id is None:
        raise UserError("tokenizer: has no EOS token, which ends every answer; set eos_token in tokenizer_config.json")
    vocabulary = tokenizer.get_vocab()
    for field, text in (("trace.opening", config.opening), ("trace.closing", config.closing)):
        allowed = config.add_tokens == "any" or (config.add_tokens == "standard" and text in STANDARD_TOKENS)
        if text and text not in vocabulary and not allowed:
            raise UserError(
                f"{field}: {text!r} is missing from the tokenizer; expected one of its tokens; "
                "pass --trace.add-tokens any to add it (its embedding is copied from EOS)"
            )
    texts = [text for text in (config.opening, config.closing) if text]
    if config.closing == tokenizer.eos_token:
        raise UserError(
            f"trace.closing: {config.closing!r} is the EOS token, which ends answers; expected another token"
        )
    model, params, tokenizer = hf.add_tokens(model, params, tokenizer, texts)
    ids = [hf.token_id(tokenizer, text) for text in texts]
    added = tokenizer.added_tokens_decoder.items()
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    trace_format = TraceFormat(
        opening=tuple(ids[:-1]),
        delimiter=ids[-1],
        eos=tokenizer.eos_token_id,
        stop_ids=(ids[-1], *sorted(special - {ids[-1]})),
    )
    return trace_format, model, params, tokenizer
