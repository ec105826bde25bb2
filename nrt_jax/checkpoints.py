"""One name for any checkpoint: a Hugging Face folder, a converted Orbax checkpoint, a run's folder, an adapter.

tiny     one of the models shipped in nrt_jax/assets
hf       DIR/config.json, tokenizer files, *.safetensors            made by others, and by to-hf
adapter  DIR/adapter_config.json, tokenizer files, *.safetensors    made by PEFT, and by launch.train
orbax    DIR/config.json, tokenizer files, params/                  made by from-hf
run      DIR/model/ (as above, without weights), checkpoints/STEP/  made by launch.train; also one of its steps
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from nrt_jax import checksums, hf, parallel
from nrt_jax.errors import UserError
from nrt_jax.models import Frozen, Model, Params, lora

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ASSETS = Path(__file__).resolve().parent / "assets"
_MAX_RATIO = 1000
PARAMS, DESCRIPTION, STEPS = "params", "model", "checkpoints"


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a checkpoint's parts lie.

    Attributes:
        description: Folder of config.json, generation_config.json and the tokenizer; of an adapter's own, PEFT's
            adapter_config.json.
        arrays: Folder that Orbax wrote; None where the weights are safetensors beside the description.
        in_state: The params are an entry of a whole training state there: it is a run's.
    """

    description: Path
    arrays: Path | None = None
    in_state: bool = False

    @property
    def has_adapter(self) -> bool:
        """Whether the params are an adapter's, to be merged into its base."""
        return (self.description / hf.ADAPTER_CONFIG_FILE).is_file()

    @property
    def run(self) -> Path | None:
        """The run's folder, if it is a run's checkpoint."""
        return self.description.parent if self.in_state else None

    @property
    def base(self) -> Path:
        """Folder of the base model of an adapter; without one, the description."""
        if not self.has_adapter:
            return self.description
        try:
            return hf.local_folder(hf.read_adapter_config(self.description).base)
        except UserError as error:
            where = self.description / hf.ADAPTER_CONFIG_FILE
            raise UserError(f"{where}: its base model cannot be found: {error}") from error

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer; PEFT may have written none, and then it is the base's."""
        has_own = any(self.description.glob("tokenizer*"))
        return hf.load_tokenizer(self.description if has_own else self.base)


def locate(path: str | Path) -> Location:
    """Finds out what `path` is.

    Raises:
        UserError: It is of none of these kinds; the line says what was expected.
    """
    if _is_shipped(path):
        return Location(ASSETS / path)
    folder = Path(path)
    if not folder.is_dir():
        return Location(hf.local_folder(path))
    if (folder / PARAMS).is_dir():
        return Location(folder, folder / PARAMS)
    if (folder / DESCRIPTION).is_dir():
        steps = [int(step.name) for step in (folder / STEPS).glob("*") if step.name.isdecimal()]
        if not steps:
            raise UserError(f"{path}: the run has no checkpoint yet; expected one in {folder / STEPS}")
        folder = folder / STEPS / str(max(steps))
    if folder.parent.name == STEPS and (folder / "state").is_dir():
        return Location(folder.parent.parent / DESCRIPTION, folder / "state", in_state=True)
    if not any((folder / name).is_file() for name in ("config.json", hf.ADAPTER_CONFIG_FILE)):
        raise UserError(
            f"{path}: is no checkpoint; expected a Hugging Face folder, a PEFT adapter's, an Orbax checkpoint made by "
            "launch.convert, or a run's folder"
        )
    return Location(folder)


def is_local(path: str | Path) -> bool:
    """Whether this is a folder here or a shipped model, not a hub id."""
    return _is_shipped(path) or Path(path).is_dir()


def _is_shipped(path: str | Path) -> bool:
    return str(path) in {folder.name for folder in ASSETS.iterdir()}


def load(
    path: str | Path, *, dtype: str = "float32", param_dtype: str | None = None
) -> tuple[Model, Params, "Tokenizer"]:
    """Loads model, params and tokenizer from a checkpoint of any kind; adapters are merged into their base.

    Args:
        path: See the module; a Hugging Face hub id works too.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the params; None for the compute dtype.

    Raises:
        UserError: The folder is no checkpoint, or its parts do not fit each other.
    """
    return load_location(locate(path), dtype=dtype, param_dtype=param_dtype or dtype)


def load_location(
    location: Location, *, dtype: str = "float32", param_dtype: str | None = None
) -> tuple[Model, Params, "Tokenizer"]:
    """`load` for a place that is known; a `param_dtype` of None keeps each leaf as it is stored."""
    model, tokenizer = load_description(location, dtype=dtype)  # before the weights: the quicker failure first
    return model, load_params(location, model, param_dtype=param_dtype), tokenizer


def load_description(location: Location, *, dtype: str = "float32") -> tuple[Model, "Tokenizer"]:
    """What `load_location` returns, without the params."""
    model = Model(hf.read_config(location.base, dtype=dtype))  # before the tokenizer, whose loader reads it too
    tokenizer = location.tokenizer()
    if location.has_adapter:
        vocab_size = max(model.config.vocab_size, hf.vocabulary_size(tokenizer))
        model = Model(dataclasses.replace(model.config, vocab_size=vocab_size))
    hf.check_vocabulary(tokenizer, model.config)
    return model, tokenizer


def load_params(
    location: Location, model: Model, *, param_dtype: str | None = None, mesh: Mesh | None = None
) -> Params:
    """The params of the model that `load_description` gave.

    With a mesh each device reads its own part of them, but for an adapter's, which are merged on one device.
    """
    if location.has_adapter:
        return _merged(location, model, param_dtype)
    shardings = mesh and parallel.shardings(model.logical_axes(), model.abstract_params(), mesh)
    if location.arrays is None:
        return hf.read_params(location.description, model.config, dtype=param_dtype, shardings=shardings)
    return restore_params(location, model, dtype=param_dtype, shardings=shardings)


def _merged(location: Location, model: Model, param_dtype: str | None) -> Params:
    """The params of an adapter's base with the adapter merged into them; `model` has the grown vocabulary."""
    adapter = hf.read_adapter_config(location.description)
    if max(adapter.row_ids, default=0) >= model.config.vocab_size:
        raise UserError(
            f"{location.description / hf.ADAPTER_CONFIG_FILE}: trainable_token_indices: {max(adapter.row_ids)} is "
            f"beyond the {model.config.vocab_size} rows of the embedding; expected the tokenizer with the added tokens"
        )
    params = hf.load_model(location.base, param_dtype=None)[1]
    for name in {"embedding", "head"} & params.keys():  # rows of added tokens come with the adapter
        table = params[name].astype(param_dtype or params[name].dtype)
        params[name] = jnp.pad(table, ((0, model.config.vocab_size - table.shape[0]), (0, 0)))
    if location.arrays is None:
        trainable = hf.read_adapter_params(location.description, adapter, model.config)
    else:
        trainable = _restore_all(location, _metadata(location), "float32")
    frozen = Frozen(params=params, row_ids=jnp.array(adapter.row_ids, jnp.int32))
    return lora.merge(lora.combine({"rows": {}} | trainable, frozen), adapter.lora, param_dtype)


def describe_run(
    folder: str | Path, model: Model, tokenizer: "Tokenizer", source: Path, adapter: hf.Adapter | None
) -> None:
    """Writes what a run's checkpoints need beside them to be a model again: config, tokenizer, and adapter_config."""
    with hf.complete_or_absent(Path(folder) / DESCRIPTION, overwrite=True) as new:
        hf.write_description(new, model, tokenizer, source=source)
        if adapter is not None:
            hf.write_adapter_config(new, adapter, model.config)


def save_params(folder: str | Path, params: Params) -> None:
    """Writes params into `folder`, which holds their description, with Orbax.

    Not compressed: weights do not compress, and trying takes a copy of several leaves (benchmarks/convert_memory.py).
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        checkpointer.save(Path(folder).absolute() / PARAMS, args=ocp.args.PyTreeSave(params))


def restore_params(
    location: Location, model: Model, *, dtype: str | None = None, shardings: Params | None = None
) -> Params:
    """Restores params that Orbax wrote.

    Args:
        location: Of `locate`.
        model: What the arrays must fit.
        dtype: Of the params; None keeps each as it is stored.
        shardings: Of each leaf; None puts all on the first local device.

    Raises:
        UserError: The arrays cannot be read or are another model's.
    """
    stored = _metadata(location)
    _check_shapes(location, stored, model.abstract_params())
    return _restore_all(location, stored, dtype, shardings)


def open_params(location: Location, model: Model) -> Params:
    """The params as `StoredLeaf`s, which are read one at a time: for work on checkpoints larger than memory.

    Raises:
        UserError: As `restore_params`.
    """
    stored = _metadata(location)
    _check_shapes(location, stored, model.abstract_params())

    @functools.lru_cache(maxsize=1)
    def read(path: tuple[str, ...]) -> np.ndarray:
        how = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(path):
            how = {key: how}
        return functools.reduce(lambda tree, key: tree[key], path, _restore(location, how))

    def leaf(path, metadata):
        keys = tuple(entry.key for entry in path)
        return StoredLeaf(tuple(metadata.shape), metadata.dtype, functools.partial(read, keys))

    return jax.tree_util.tree_map_with_path(leaf, stored)


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """An array on disk that is read as a whole when indexed, and forgotten when another one is.

    Attributes:
        shape: Of the array.
        dtype: Of the array.
        read: Returns it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read()[index]


def _restore_all(location: Location, stored: Any, dtype: str | None, shardings: Params | None = None) -> Params:
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), stored)

    def how(leaf, sharding):
        return ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype or leaf.dtype)

    return _restore(location, jax.tree.map(how, stored, shardings))


def _restore(location: Location, restore_args: Any) -> Any:
    """Restores those leaves of the params for which there are restore_args."""
    wanted = {PARAMS: restore_args} if location.in_state else restore_args
    item = jax.tree.map(lambda _: 0, wanted)
    args = ocp.args.PyTreeRestore(item=item, restore_args=wanted, partial_restore=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            restored = checkpointer.restore(location.arrays.absolute(), args=args)
        except Exception as error:
            raise _unreadable(location, error) from error
    return restored[PARAMS] if location.in_state else restored


def _metadata(location: Location) -> Any:
    """Shape and dtype of each leaf of the params; a run's files must be those that were written."""
    if location.in_state and (damage := checksums.find_damage(location.arrays)):
        raise UserError(f"{location.arrays}: is damaged ({damage}); use another checkpoint of the run")
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(location.arrays.absolute()).item_metadata.tree
            stored = stored[PARAMS] if location.in_state else stored
            claimed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(stored))
        except Exception as error:
            raise _unreadable(location, error) from error
    _check_size(location, claimed)
    return stored


def _check_size(location: Location, claimed: int) -> None:
    """Refuses a description of arrays that the files cannot hold: Orbax fills with zeros what is not there.

    Weights hardly compress; what claims to have shrunk a thousandfold is not there.
    """
    on_disk = sum(path.stat().st_size for path in location.arrays.rglob("*") if path.is_file())
    if claimed > _MAX_RATIO * on_disk:
        raise UserError(
            f"{location.arrays}: its arrays claim {claimed:,} bytes, but its files have {on_disk:,}; expected a whole "
            "Orbax checkpoint, copy it again"
        )


def _unreadable(location: Location, error: Exception) -> UserError:
    """Orbax and its storage raise many kinds of exceptions; all mean that the files are not what they should be."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{location.arrays}: not a readable Orbax checkpoint: {reason}; use another one")


def _check_shapes(location: Location, stored: Any, wanted: Any) -> None:
    """Raises UserError naming the first array that is absent, unexpected or misfits the config."""
    found, expected = (
        {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (stored, wanted))
    )
    for name in expected | found:
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{location.arrays}: params {name}: found {found.get(name, 'nothing')}; "
                f"{location.description / 'config.json'} expects {expected.get(name, 'nothing')}"
            )
