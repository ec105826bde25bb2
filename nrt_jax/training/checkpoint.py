"""Checkpoints of a run, on Orbax: the whole training state, bit for bit, and a JSON note beside it."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from nrt_jax.errors import UserError

StateT = TypeVar("StateT")


class Checkpointer:
    """Saves and restores a state pytree under `folder/STEP/`.

    A step appears only when it is complete: Orbax writes into a temporary folder and renames it. `save`
    returns as soon as the arrays may be donated, and writes in the background.

    Attributes:
        folder: the absolute path of the checkpoints.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
        self.folder = pathlib.Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=False),
        )

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Saves `state`, any pytree of arrays, and `extra`, JSON values such as the data iterator's state.

        A step that is saved already is left as it is: the same run makes the same state again.
        """
        if step in self._manager.all_steps():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(dict(extra or {})))
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
            UserError: no checkpoint here, an unreadable one, or one of another structure, shape or dtype.
        """
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise UserError(f"checkpoint {str(self.folder)!r}: no checkpoint{'' if step is None else f' {step}'} here")
        where = f"checkpoint {str(self.folder / str(step))!r}"
        abstract_state = jax.tree.map(_abstract, abstract_state)
        try:
            stored = self._manager.item_metadata(step).state
            _check_fits(where, stored, abstract_state)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), extra=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
        except UserError:
            raise
        except Exception as error:  # Orbax and its storage raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{where}: cannot be read ({type(error).__name__}: {reason}); use another one") from error
        return restored.state, restored.extra

    def latest_step(self) -> int | None:
        """Returns the last step that was saved, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Waits until everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the background threads."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


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
