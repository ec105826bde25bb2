"""Tokenizers, and the one operation that NRT needs on them: a delimiter that is ONE token.

They come from `transformers.AutoTokenizer`, whose import is slow and waits until it is needed. Code from a
checkpoint's folder is never run.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from nrt_jax.errors import UserError
from nrt_jax.models import Model, ModelConfig, Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def load_tokenizer(path: str | Path) -> "Tokenizer":
    """Loads a tokenizer from a local folder; code in it is never run.

    Raises:
        UserError: There is no usable tokenizer under that name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; expected a local folder with a tokenizer")
    if not any(folder.glob("tokenizer*")):
        raise UserError(f"{path}: no tokenizer found; expected tokenizer.json and tokenizer_config.json in it")
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        tokenizer.encode("")  # a model_max_length that is no number fails only here
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        unknown = getattr(model, "unk_token", None)
        if unknown is not None and model.token_to_id(unknown) is None:
            raise ValueError(f"its token for what is unknown, {unknown!r}, is not in the vocabulary")
        return tokenizer
    except BaseException as error:  # for a bad folder it may be OSError, ValueError, ImportError, KeyError, ...
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = str(error).strip().splitlines() or [repr(error)]
        raise UserError(
            f"{path}: cannot load its tokenizer: {reason[0]}; expected a whole one, copy it again"
        ) from error


def token_texts(tokenizer: "Tokenizer", ids: Sequence[int]) -> list[str]:
    """The part of the text that each token adds; joined, they are the text.

    A character that several tokens share is the last one's. What a token adds is found by decoding it behind the one
    before, since tokenizers in the layout of SentencePiece drop the space before a first word.
    """
    texts, before, start = [], 0, 0  # Tokens from `start` on are not spelt yet; they are decoded from `before` on.
    for end in range(1, len(ids) + 1):
        known, text = (tokenizer.decode(ids[before:stop], skip_special_tokens=False) for stop in (start, end))
        is_partial = text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        texts.append("" if is_partial else text[len(known) :])
        if not is_partial:
            before, start = start, end
    return texts


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library gave up on what it was given; what it raises then is no Exception."""
    return type(error).__name__ == "PanicException"


def save_tokenizer(folder: str | Path, tokenizer: "Tokenizer") -> None:
    """Writes the tokenizer's files so that transformers 4, which many tools pin, reads them too.

    Only tokenizer_config.json differs between the two, by spellings of which 5 still reads the older.
    """
    tokenizer.save_pretrained(str(folder))
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for field in ("backend", "is_local", "local_files_only"):  # how it was loaded here, of no use elsewhere
        config.pop(field, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def token_id(tokenizer: "Tokenizer", text: str) -> int:
    """The id of a text that must be exactly one token, such as the delimiter.

    Raises:
        UserError: The text is none or several tokens.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    # A word-level tokenizer maps any unknown text to the one token <unk>, which is not this text's token.
    if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and text != tokenizer.unk_token):
        raise UserError(
            f"token {text!r}: the tokenizer gives {tokenizer.convert_ids_to_tokens(ids)}; expected exactly "
            "one token: add it with nrt_jax.hf.add_tokens, or choose a text that is one token"
        )
    return ids[0]


def add_tokens(
    model: Model, params: Params, tokenizer: "Tokenizer", tokens: Sequence[str]
) -> tuple[Model, Params, "Tokenizer"]:
    """Adds special tokens, with embedding and head rows copied from those of EOS (the release's recipe).

    A delimiter ends the trace as EOS ends an answer: EOS is the best first guess of its meaning, and a policy
    that wants to stop writes either equally often. Spare rows of the embedding are used before it grows.

    Args:
        model: Its `vocab_size` grows if the embedding has no free row.
        params: The pytree; not changed.
        tokenizer: Not changed.
        tokens: Texts; those that are one token already are left as they are.

    Returns:
        (model, params, tokenizer), each the given one where nothing had to change.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    missing = [token for token in dict.fromkeys(tokens) if token not in known]
    if not missing:
        return model, params, tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError("tokenizer: has no EOS token, whose embedding row new tokens copy; set eos_token in its config")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in missing], special_tokens=True)
    ids = [token_id(tokenizer, token) for token in missing]
    if taken := set(ids) & set(known.values()):
        raise UserError(
            f"tokenizer: has gaps in its ids, so that an added token would get id {min(taken)}, which another has; "
            f"add {', '.join(map(repr, missing))} to it yourself, or choose tokens that it has"
        )
    config = model.config
    resized = dataclasses.replace(config, vocab_size=max(config.vocab_size, vocabulary_size(tokenizer)))
    params = dict(params)
    for name in {"embedding", "head"} & params.keys():
        params[name] = _copy_row(params[name], tokenizer.eos_token_id, ids, resized.vocab_size)
    return dataclasses.replace(model, config=resized), params, tokenizer


def check_vocabulary(tokenizer: "Tokenizer", config: ModelConfig) -> None:
    """Refuses a tokenizer with ids that have no embedding row: JAX would silently take another row."""
    size = vocabulary_size(tokenizer)
    if size > config.vocab_size:
        raise UserError(
            f"vocab_size: the embedding has {config.vocab_size} rows, but the tokenizer's largest id is "
            f"{size - 1}; expected the model's own tokenizer, or one extended with nrt_jax.hf.add_tokens"
        )


def vocabulary_size(tokenizer: "Tokenizer") -> int:
    """Number of embedding rows that a tokenizer needs: its largest id + 1, added tokens included."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _copy_row(rows: jax.Array, source: int, targets: Sequence[int], size: int) -> jax.Array:
    """Grows [V, D] -> [size, D], rows `targets` and all new rows equal to row `source`."""
    grown = jnp.concatenate([rows, jnp.broadcast_to(rows[source], (size - rows.shape[0], rows.shape[1]))])
    return grown.at[jnp.asarray(targets)].set(rows[source])
