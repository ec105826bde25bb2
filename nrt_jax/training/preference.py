"""The reference of direct preference optimisation: what the policy says of every pair before it has learned anything.

log pi_ref of the chosen and of the rejected completion are two numbers a row. They are computed once, before the first
step, and lie in the run's folder; there is never a second policy beside the one that learns:

    reference.npz    keys [N] uint64, ascending: hashes of the rows' token ids    log_probs [N, 2] float32

Held-out pairs are among the rows, so that the loss and its margin can be measured on them (`evaluate_pairs`).
A row finds its numbers by its tokens: neither the shuffle nor a resumed run can mix them up. Where the file is lost,
they are computed again, from the params that the run started from.
"""

import dataclasses
import io
import itertools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.load import Data
from nrt_jax.data.scan import hash_ids
from nrt_jax.objectives.dpo import pair_terms
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.learner import LearnerBatch, from_pairs
from nrt_jax.training.reference import Policy, score_completions

REFERENCE_FILE = "reference.npz"
#: Rows that are read, tokenized and sorted by length at once.
_WINDOW = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class PairReference:
    """log pi_ref of the completions of all training rows, and of the held-out rows that have some.

    Attributes:
        keys: [N] uint64, ascending.
        log_probs: [N, 2] float32, of whole completions, EOS included, in nats: the chosen one's, the rejected one's.
    """

    keys: np.ndarray
    log_probs: np.ndarray

    def where(self, rows: Sequence[Encoded]) -> np.ndarray:
        """[P] int, the places of some rows."""
        return np.searchsorted(self.keys, np.array([hash_ids(row) for row in rows], np.uint64))

    def batch(self, encoder: Encoder, rows: Sequence[Encoded], max_length: int) -> LearnerBatch:
        """The learner's batch of some training rows; arguments as of `from_pairs`."""
        return from_pairs(encoder, rows, max_length=max_length).replace(
            reference_log_probs=self.log_probs[self.where(rows)]
        )

    def save(self, path: Path) -> None:
        """Writes a file that is complete or not there."""
        buffer = io.BytesIO()
        np.savez(buffer, keys=self.keys, log_probs=self.log_probs)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)


def read(path: Path, keys: np.ndarray) -> PairReference | None:
    """What `PairReference.save` wrote for rows of these keys; None where it is absent, damaged or of other rows."""
    try:
        with np.load(path, allow_pickle=False) as stored:  # A zip file, whose checksums are verified.
            found = PairReference(stored["keys"], stored["log_probs"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    is_whole = np.array_equal(found.keys, keys) and found.log_probs.shape == (len(keys), 2)
    return found if is_whole and found.log_probs.dtype == np.float32 else None


def row_keys(data: Data) -> np.ndarray:
    """[N] uint64, ascending, of all training rows and held-out pairs; equal rows have one."""
    held_out = np.array([hash_ids(row) for row in held_out_pairs(data)], np.uint64)
    return np.unique(np.concatenate([*(part.hashes for part in data.parts), held_out]))


def held_out_pairs(data: Data) -> list[Encoded]:
    """The held-out rows that have a chosen and a rejected completion."""
    return [row for row in data.held_out if row.pair is not None]


def pair_reference(
    config: TrainConfig,
    policy: Policy,
    data: Data,
    max_length: int,
    folder: Path,
    log: Callable[[str], None],
    before_batch: Callable[[], None] = lambda: None,
) -> PairReference:
    """The reference of a run: read from its folder or, at its start, computed and written there.

    Args:
        config: The run; a batch is as large as a part of its mini-batches.
        policy: The policy before training.
        data: The run's rows.
        max_length: As for `from_pairs`.
        folder: The run's; of several processes, all see it.
        log: Takes a line.
        before_batch: Called before each batch is scored, equally often in all processes; ends the run by raising.
    """
    path, keys = folder / REFERENCE_FILE, row_keys(data)
    if parallel.first(lambda: read(path, keys) is not None):
        return read(path, keys)
    log(f"computing the reference's log-probabilities of {len(keys)} pairs, once")
    log_probs = np.full((len(keys), 2), np.nan, np.float32)
    found = PairReference(keys, log_probs)
    for window in _windows(data):
        for part, values in score_pairs(policy, data.encoder, window, max_length, _size(config), before_batch):
            log_probs[found.where(part)] = values
    parallel.first(found.save, path)
    return found


def _windows(data: Data) -> Iterator[list[Encoded]]:
    examples = itertools.chain.from_iterable(data.parts)
    while window := data.encoder.encode_many(list(itertools.islice(examples, _WINDOW))):
        yield window
    yield held_out_pairs(data)


def _size(config: TrainConfig) -> int:
    """Rows scored at once: as many as a part of the mini-batches, which fits."""
    return config.rollout.prompts // config.updates_per_step // config.micro_batches


def evaluate_pairs(
    config: TrainConfig,
    policy: Policy,
    reference: PairReference,
    data: Data,
    max_length: int,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The loss and the metrics of `dpo_loss`, means over the held-out pairs; nothing where no held-out row has a pair.

    Args:
        config: The run.
        policy: The one that learns.
        reference: Of the run.
        data: Of the run.
        max_length: As for `from_pairs`.
        before_batch: As for `pair_reference`.
    """
    found: dict[str, list[float]] = {}
    scored = score_pairs(policy, data.encoder, held_out_pairs(data), max_length, _size(config), before_batch)
    for part, log_probs in scored:
        lengths = from_pairs(data.encoder, part, max_length=max_length).masks.reference.sum(-1)
        terms = pair_terms(log_probs, lengths, reference.log_probs[reference.where(part)], config.dpo)
        for name, values in jax.device_get(terms).items():
            found.setdefault(name, []).extend(values.tolist())
    return {name: float(np.mean(values)) for name, values in found.items()}


def score_pairs(
    policy: Policy,
    encoder: Encoder,
    rows: Sequence[Encoded],
    max_length: int,
    batch_size: int,
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[Encoded], np.ndarray]]:
    """log pi of both completions of each row, in batches of rows of alike lengths.

    Args:
        policy: Who is asked.
        encoder: As for `from_pairs`.
        rows: With pairs.
        max_length: As for `from_pairs`.
        batch_size: Rows scored at once; on a mesh a multiple of the devices that share the prompts.
        before_batch: As for `pair_reference`.

    Yields:
        Some rows, and [p, 2] float32 for them.
    """
    rooms = [(_room(1 + max(map(len, row.pair))), _room(len(row.prompt))) for row in rows]
    order = sorted(range(len(rows)), key=rooms.__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        before_batch()
        part = [rows[i] for i in order[start : start + batch_size]]
        padded = part + part[-1:] * (batch_size - len(part))
        batch = _widened(from_pairs(encoder, padded, max_length=max_length))
        log_probs = score_completions(policy, parallel.put(batch, parallel.beside(policy.params)), 1.0)
        sums = jax.device_get(_sum(log_probs, batch.masks.reference))
        yield part, sums[: len(part)]


def _room(length: int) -> int:
    """The next power of two from 8 on: coarser than training, since here each pair of lengths is a program."""
    return max(8, 1 << (length - 1).bit_length())


def _widened(batch: LearnerBatch) -> LearnerBatch:
    """Prompts and completions padded to their rooms."""
    x, t = (_room(tokens.shape[-1]) - tokens.shape[-1] for tokens in (batch.prompts.tokens, batch.tokens))
    prompts = jax.tree.map(lambda a: np.pad(a, ((0, 0), (0, x))), batch.prompts)
    batch = jax.tree.map(lambda a: np.pad(a, ((0, 0), (0, 0), (0, t))) if a.ndim == 3 else a, batch)
    return batch.replace(prompts=prompts)


@jax.jit
def _sum(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """As `dpo_loss` sums them, so that the rewards before any update are 0 or close to it."""
    return jnp.sum(log_probs, -1, where=mask)
