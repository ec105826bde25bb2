"""One pass over a source before a run: which rows are good, what is wrong with the others, and how long they are."""

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.example import BadRow, Example
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import Source
from nrt_jax.errors import UserError

#: What is wrong with a row; None if nothing is.
Check = Callable[[Encoded], BadRow | None]
#: Rows tokenized at once, in the threads of a fast tokenizer.
_CHUNK = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Sequence[Example]):
    """Good rows of a source; each is read when it is asked for.

    Attributes:
        source: All rows.
        indices: [N] int64, the good ones.
        hashes: [N] uint64, of the token ids of each.
        config: Columns.
    """

    source: Source
    indices: np.ndarray
    hashes: np.ndarray
    config: DataConfig

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return parse(self.source[int(self.indices[index])], self.config)

    def where(self, index: int) -> str:
        """How a person finds a row."""
        return f"{self.source.name}, {self.source.where(int(self.indices[index]))}"

    def take(self, start: int, stop: int) -> "Rows":
        """A part of the rows."""
        return dataclasses.replace(self, indices=self.indices[start:stop], hashes=self.hashes[start:stop])

    def fingerprint(self) -> str:
        """Number and hash of the rows: another one if any token id of any row is another, or their order is."""
        return f"{len(self)} rows {hashlib.blake2b(self.hashes.astype('<u8').tobytes(), digest_size=8).hexdigest()}"


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a pass over a source found.

    Attributes:
        rows: The good rows.
        left_out: Reason -> (number of bad rows, where the first one is).
        longest_answer: Tokens of the longest y* of a good row, EOS included.
        num_traces: Good rows that have a demonstration z that is not empty.
        num_pairs: Good rows that have a chosen and a rejected completion.
    """

    rows: Rows
    left_out: Mapping[str, tuple[int, str]]
    longest_answer: int
    num_traces: int
    num_pairs: int

    def __str__(self) -> str:
        source = self.rows.source
        line = f"data {source.name}: {len(self.rows)} of {len(source)} rows"
        return f"{line}; left out: {_listed(self.left_out)}" if self.left_out else line


def scan(
    source: Source,
    encoder: Encoder,
    config: DataConfig,
    *,
    max_length: int | None = None,
    check: Check | None = None,
) -> Scan:
    """Reads and tokenizes every row of a source once; of what it read, it keeps numbers and hashes of the good rows.

    Args:
        source: Rows.
        encoder: Whose limits hold.
        config: Columns, and what happens to bad rows.
        max_length: Most tokens of prompt, delimiter and answer together.
        check: What else may be wrong with a row, such as `Rules.problem`.

    Raises:
        UserError: No row is good or, with `bad_rows` "stop", one is bad: the error names its file, row and problem.
    """
    good, hashes, left_out, longest, num_traces, num_pairs = [], array("Q"), {}, 0, 0, 0
    for start in range(0, len(source), _CHUNK):
        for i, found in _encode(source, range(start, min(start + _CHUNK, len(source))), encoder, config):
            problem = found if isinstance(found, BadRow) else _problem(found, encoder, max_length, check)
            if problem is None:
                good.append(i)
                hashes.append(hash_ids(found))
                longest = max(longest, len(found.answer))
                num_traces += bool(found.trace)
                num_pairs += found.pair is not None
                continue
            if config.bad_rows == "stop":
                columns = _columns(source, [problem.reason])
                raise UserError(f"data: {source.name!r}, {source.where(i)}: {problem}{columns}")
            count, first = left_out.get(problem.reason, (0, source.where(i)))
            left_out[problem.reason] = (count + 1, first)
    if not good:
        raise _nothing_left(source, left_out, config)
    rows = Rows(source, np.array(good, np.int64), np.array(hashes, np.uint64), config)
    return Scan(rows, left_out, longest, num_traces, num_pairs)


def hash_ids(encoded: Encoded) -> int:
    """64 bits that are the same in every process, of all that is trained on."""
    ids = repr((encoded.prompt, encoded.answer, encoded.trace, *(encoded.pair or ()))).encode()
    return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "little")


def _encode(
    source: Source, indices: Sequence[int], encoder: Encoder, config: DataConfig
) -> list[tuple[int, Encoded | BadRow]]:
    """Each row's number with its ids, or with what is wrong with it."""
    examples, bad = {}, {}
    for i in indices:
        try:
            examples[i] = parse(source[i], config)
        except BadRow as problem:
            bad[i] = problem
    try:
        encoded = dict(zip(examples, encoder.encode_many(list(examples.values())), strict=True))
    except BadRow:  # The template refuses one of them: find out which.
        encoded = {}
        for i, example in examples.items():
            try:
                encoded[i] = encoder.encode(example)
            except BadRow as problem:
                bad[i] = problem
    return sorted((encoded | bad).items())


def _problem(found: Encoded, encoder: Encoder, max_length: int | None, check: Check | None) -> BadRow | None:
    limit = encoder.over_limit(found, max_length)
    if limit:
        return BadRow(limit)
    return check(found) if check else None


def _nothing_left(source: Source, left_out: Mapping[str, tuple[int, str]], config: DataConfig) -> UserError:
    if not len(source):
        return UserError(
            f"data: {source.name!r} is empty; expected rows with {config.question_column!r} "
            f"and {config.answer_column!r}, or {config.messages_column!r}"
        )
    columns = _columns(source, left_out)
    flags = " (name them with --dataset.question-column and --dataset.answer-column, or --dataset.messages-column)"
    return UserError(
        f"data: no example is left of the {len(source)} rows of {source.name!r}: {_listed(left_out)}"
        f"{columns + flags if columns else ''}"
    )


def _columns(source: Source, reasons: Iterable[str]) -> str:
    """For missing columns: those that the source has."""
    if not any(reason.endswith("is missing") for reason in reasons):
        return ""
    return f"; its columns are {', '.join(source.columns()) or 'none'}"


def _listed(left_out: Mapping[str, tuple[int, str]]) -> str:
    return ", ".join(f"{count} {reason} (first: {where})" for reason, (count, where) in left_out.items())
