"""Checkpoints of a run, on Orbax: the whole training state, bit for bit, and a JSON note beside it.

    checkpoints/50/state/   params, optimizer, step, and the moving averages that a run keeps
    checkpoints/50/extra/   where the data iterator stands, the config, the code's version, the step's metrics
    checkpoints/60.damaged  a step whose files are no longer those that were written

There is no random key to save: each step's follow from the config's seed and the step's number.

Each of the two folders holds the checksums of its files, written before Orbax gives the step its name.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from nrt_jax import checksums
from nrt_jax.errors import UserError

StateT = TypeVar("StateT")

_STATE, _EXTRA = "state", "extra"


class Damaged(UserError):
    """A checkpoint whose files are not those that were written."""


class _Checksummed:
    """A handler that leaves checksums of what it wrote; Orbax calls `finalize` in the background, before the rename."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        checksums.write(directory)


class _State(_Checksummed, ocp.StandardCheckpointHandler):
    pass


class _Extra(_Checksummed, ocp.JsonCheckpointHandler):
    pass


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    registry, state, extra = ocp.handlers.DefaultCheckpointHandlerRegistry(), _State(), _Extra()
    for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
        registry.add(_STATE, args, state)
    for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
        registry.add(_EXTRA, args, extra)
    return registry


class _LastAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the last checkpoints and those with the highest scores, of equal ones the later.

    Orbax's own `BestN` reads scores when it opens the folder, and fails there on a damaged one.
    """

    def __init__(self, keep: int, best: int, scores: Mapping[int, float]):
        self._keep, self._best, self._scores = keep, best, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((step for step in steps if step in self._scores), key=lambda step: (-self._scores[step], -step))
        kept = {*steps[-self._keep :], *ranked[: self._best]}
        return [step in kept for step in steps]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Asks nobody: JAX counts the questions, and `signals.StopRequest` asks them."""
        return False


class Checkpointer:
    """Saves and restores a state pytree under `folder/STEP/`.

    A step appears only when it is complete: Orbax writes into a temporary folder and renames it. `save`
    returns as soon as the arrays may be donated, and writes in the background; older steps go once it is complete.

    Attributes:
        folder: the absolute path of the checkpoints.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2, best: int = 0):
        """Opens the folder, which may be absent, for one run.

        Args:
            folder: of the checkpoints; what a crash left half written there is removed.
            keep: how many of the last checkpoints stay.
            best: how many of those with the highest scores stay too.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._scores = dict(_scores(self.folder))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(keep, best, self._scores),
            create=False,
            cleanup_tmp_directories=True,
        )
        self._manager = _Manager(self.folder, handler_registry=_handlers(), options=options)

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any] | None = None, *, score: float | None = None
    ) -> None:
        """Saves `state`, any pytree of arrays, and `extra`, JSON values such as the data iterator's state.

        A step that is saved already is left as it is: the same run makes the same state again.

        Args:
            step: its name.
            state: arrays.
            extra: the note.
            score: higher is better; a checkpoint without one is never among the best.

        Raises:
            UserError: it, or the one before, cannot be written; earlier ones are whole.
        """
        if step in self._manager.all_steps():
            return
        note = dict(extra or {}) | ({} if score is None else {"score": score})
        items = ocp.args.Composite(state=ocp.args.StandardSave(_fields(state)), extra=ocp.args.JsonSave(note))
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager.wait_until_finished()
            if score is not None:
                self._scores[step] = score
            self._manager.save(step, args=items, force=True)

    def restore(self, abstract_state: StateT, *, step: int | None = None) -> tuple[StateT, dict[str, Any]]:
        """Restores the latest step, or `step`.

        Args:
            abstract_state: the pytree to fill, of `jax.ShapeDtypeStruct` (`jax.eval_shape`) or arrays. A leaf
                with a sharding is restored in it, another one on the first local device.
            step: which checkpoint; the latest when None.

        Returns:
            The state, equal bit for bit to the one saved, and the JSON note.

        Raises:
            Damaged: its files are not those that were written.
            UserError: no checkpoint here, an unreadable one, or one of another structure, shape or dtype.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise UserError(f"checkpoint {str(self.folder)!r}: no checkpoint{'' if step is None else f' {step}'} here")
        where = f"checkpoint {str(self.folder / str(step))!r}"
        if damage := self._find_damage(step):
            raise Damaged(f"{where}: is damaged ({damage}); use another one")
        wanted = jax.tree.map(_abstract, _fields(abstract_state))
        try:
            stored = self._manager.item_metadata(step).state
            _check_fits(where, stored, wanted)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), extra=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
        except UserError:
            raise
        except Exception as error:  # Orbax and its storage raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{where}: cannot be read ({type(error).__name__}: {reason}); use another one") from error
        if dataclasses.is_dataclass(abstract_state):
            return dataclasses.replace(abstract_state, **restored.state), restored.extra
        return restored.state, restored.extra

    def restore_last_good(
        self, abstract_state: StateT, log: Callable[[str], None]
    ) -> tuple[StateT, dict[str, Any]] | None:
        """Restores the latest step that is not damaged, and renames later ones to `STEP.damaged`.

        Args:
            abstract_state: as for `restore`.
            log: takes a line on each damaged step.

        Returns:
            As `restore`; None if there is no checkpoint at all.

        Raises:
            UserError: every checkpoint is damaged, or the latest good one does not fit.
        """
        damaged: list[Damaged] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self.restore(abstract_state, step=step)
            except Damaged as error:
                damaged.append(error)
                continue
            for error in damaged:
                log(f"{str(error).removesuffix('; use another one')}; set aside, step {step} is used instead")
            self._set_aside(after=step)
            return restored
        if damaged:
            reason = str(damaged[0]).removesuffix("; use another one")
            raise UserError(f"{reason}, and no earlier one is whole; start again with another --workdir")
        return None

    def latest_step(self) -> int | None:
        """Returns the last step that was saved, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits until everything that was saved is on disk; raises UserError if it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the background threads; raises UserError as `wait` does."""
        with self._writing():
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax and its storage raise when a checkpoint cannot be written into a UserError."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            reason = os.strerror(errno.ENOSPC) if os.strerror(errno.ENOSPC) in reason else reason[-200:]
            raise UserError(
                f"checkpoint {str(self.folder)!r}: cannot be written ({type(error).__name__}: {reason}); earlier ones "
                "are whole: make room, and the same command goes on from the last"
            ) from error

    def _find_damage(self, step: int) -> str | None:
        """What is wrong with a step's files; in a run of several processes the first one looks, for all."""
        damage = None
        if jax.process_index() == 0:
            found = (checksums.find_damage(self.folder / str(step) / item) for item in (_STATE, _EXTRA))
            damage = next(filter(None, found), None)
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.bool_(damage is not None)):
            damage = damage or "as the first process found"
        return damage

    def _set_aside(self, after: int) -> None:
        for step in [step for step in self._manager.all_steps() if step > after]:
            if jax.process_index() == 0:
                path, name = self.folder / str(step), f"{step}.damaged"
                while path.with_name(name).exists():  # Damaged twice, for each time that it was made.
                    name += "_again"
                path.rename(path.with_name(name))
            self._scores.pop(step, None)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()


def _scores(folder: pathlib.Path) -> Iterator[tuple[int, float]]:
    """The score of each checkpoint that has one; one that cannot be read has none."""
    for path in folder.glob(f"*/{_EXTRA}/metadata"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            yield int(path.parts[-3]), float(json.loads(path.read_text(encoding="utf-8"))["score"])


def _fields(state: Any) -> Any:
    """A dataclass as a dict without the fields that are None: one that a run does not have leaves no trace on disk."""
    if not dataclasses.is_dataclass(state):
        return state
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in values.items() if value is not None}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_fits(where: str, stored: Any, wanted: Any) -> None:
    """Raises UserError naming the first array that is absent, unexpected, or of another shape or dtype."""
    if stored is None:
        raise UserError(f"{where}: its description cannot be read; it is damaged, use another one")
    stored, wanted = _arrays(stored), _arrays(wanted)
    for name in wanted | stored:
        found, expected = stored.get(name, "nothing"), wanted.get(name, "nothing")
        if found != expected:
            raise UserError(
                f"{where}: {name} is {found} there, but the config makes it {expected}; "
                "use the config that the checkpoint was made with"
            )


def _arrays(tree: Any) -> dict[str, str]:
    """Describes each array by its dotted path: `params.layers.q` -> `float32[2, 64, 4, 16]`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
