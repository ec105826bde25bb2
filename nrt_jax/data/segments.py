"""Segments of text to ids: what a tokenizer would give in place, of texts that are tokenized each on its own.

Byte-level tokenizers (Llama 3, Mistral Nemo) treat a text alike wherever it stands. Those in the layout of
SentencePiece (Llama 2, Mistral 7B) put a space before it: before every stretch between special tokens
(`prepend_scheme` "always" and the legacy layout) or before the first only ("first"). A segment in the middle of a
sample gets the space where, and only where, transformers would write it into the whole sample.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nrt_jax.data.template import Pieces, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_PROBE = "a"


class Segments:
    """Tokenizes segments of samples. Only templates may spell special tokens."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        self._added_ids = frozenset(self._added.values())
        self._special = special_tokens(tokenizer)
        self._bare = _without_prefix(tokenizer)
        # Whether a stretch after a special token begins as a text does.
        special = next((t.content for t in tokenizer.added_tokens_decoder.values() if t.special), None)
        self._restarts = not special or self._template_ids([special + _PROBE])[0][1:] == self._plain_ids([_PROBE])[0]

    def encode(self, texts: Sequence[str], previous: Sequence[int | None] | None = None) -> list[list[int]]:
        """Ids of texts in which nothing is a special token.

        Args:
            texts: Segments.
            previous: The id before each segment; None for one, or for all, that begin a sample.
        """
        bare = [i for i in range(len(texts)) if self._bare is not None and previous and self._goes_on(previous[i])]
        ids: list = [None] * len(texts)
        if bare:
            encoded = self._bare.encode_batch([texts[i] for i in bare], add_special_tokens=False)
            for i, encoding in zip(bare, encoded, strict=True):
                ids[i] = encoding.ids
        rest = [i for i in range(len(texts)) if ids[i] is None]
        for i, own in zip(rest, self._plain_ids([texts[i] for i in rest]), strict=True):
            ids[i] = own
        return ids

    def encode_prompts(self, prompts: Sequence[Pieces]) -> list[list[int]]:
        """Ids of prompts, which begin their samples; see `Template.render`."""
        ids: list = [None] * len(prompts)
        for meant, encode in ((True, self._template_ids), (False, self._plain_ids)):
            whole = [i for i, pieces in enumerate(prompts) if len(pieces) == 1 and pieces[0][1] == meant]
            for i, own in zip(whole, encode([prompts[i][0][0] for i in whole]), strict=True):
                ids[i] = own
        return [self._mixed(pieces) if own is None else own for own, pieces in zip(ids, prompts, strict=True)]

    def _mixed(self, pieces: Pieces) -> list[int]:
        """Ids of template and data in one: special tokens divide the text where the template spells them."""
        stretches: list[str] = [""]
        for text, meant in pieces:
            first, *rest = self._special.split(text) if meant and self._special else [text]
            stretches[-1] += first
            stretches += rest
        ids: list[int] = []
        for i, stretch in enumerate(stretches):
            if i % 2:
                ids.append(self._added[stretch])
            elif stretch:
                ids += self.encode([stretch], [ids[-1] if ids else None])[0]
        return ids

    def _goes_on(self, previous: int | None) -> bool:
        """Whether a segment after this id is not the beginning of a text to the tokenizer."""
        return previous is not None and not (previous in self._added_ids and self._restarts)

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        return self._call(texts, split_special_tokens=True)

    def _template_ids(self, texts: list[str]) -> list[list[int]]:
        return self._call(texts, split_special_tokens=False)

    def _call(self, texts: list[str], **options) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)[
            "input_ids"
        ]


def _without_prefix(tokenizer: "Tokenizer"):
    """The tokenizer's core without the space that it puts before texts; None where it puts none."""
    from tokenizers import Tokenizer as Core

    core = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if core is None else [part for part in (core.normalizer, core.pre_tokenizer) if part is not None]
    layouts = [json.loads(part.__getstate__()) for part in parts]
    if all(_bare_layout(layout) == layout for layout in layouts):
        return None
    layout = json.loads(core.to_str())
    layout |= {part: _bare_layout(layout[part]) for part in ("normalizer", "pre_tokenizer")}
    # Text that spells a special token stays text; `encode_special_tokens` would be lost on the way to a worker.
    layout["added_tokens"] = [token for token in layout["added_tokens"] if not token["special"]]
    return Core.from_str(json.dumps(layout | {"truncation": None, "padding": None, "post_processor": None}))


def _bare_layout(layout: Any) -> Any:
    """A normalizer or pre-tokenizer, as tokenizer.json has it, that adds no prefix."""
    if isinstance(layout, list):
        return [_bare_layout(item) for item in layout if not _is_prepend(item)]
    if not isinstance(layout, dict):
        return layout
    if _is_prepend(layout):
        return None
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: changes.get(key, _bare_layout(value)) for key, value in layout.items()}


def _is_prepend(layout: Any) -> bool:
    return isinstance(layout, dict) and layout.get("type") == "Prepend"
