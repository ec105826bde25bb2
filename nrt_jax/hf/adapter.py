"""LoRA adapters as PEFT's folders: adapter_config.json, adapter_model.safetensors, and the tokenizer.

The table of adapters follows from the table of weights. A matrix `theirs="(H d) D"` has outputs H d and inputs D:

    lora_A   ours "D r"     theirs "r D"          lora_B   ours "r H d"   theirs "(H d) r"
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt_jax.errors import UserError
from nrt_jax.hf.folder import complete_or_absent, read_json, write_json
from nrt_jax.hf.table import TENSORS, TensorSpec, sizes_of
from nrt_jax.hf.tokenizer import save_tokenizer
from nrt_jax.hf.weights import open_file, read_tensors, tensors_from, write_tensors
from nrt_jax.models import LoRAConfig, ModelConfig, Params
from nrt_jax.models.lora import PROJECTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ADAPTER_CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_LARGEST = 3.4e38  # of float32, in which alpha will be used
_TABLES = {"embedding": "embed_tokens", "head": "lm_head"}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What an adapter's files say of it.

    Attributes:
        lora: Rank, scale and targets.
        base: Folder or hub id of the base model.
        row_ids: Ids of added tokens, whose rows of the embedding and the head are trained too.
    """

    lora: LoRAConfig
    base: str
    row_ids: tuple[int, ...] = ()


def save_adapter(
    path: str | Path,
    adapter: Adapter,
    config: ModelConfig,
    trainable: Params,
    tokenizer: "Tokenizer",
    *,
    overwrite: bool = False,
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained(base_model, folder)` loads.

    Where tokens were added beyond the base's vocabulary, call `base_model.resize_token_embeddings(len(tokenizer))`
    first, with the tokenizer of this folder; their rows are in it.

    Args:
        path: The folder to make; it must be absent or empty unless `overwrite`.
        adapter: Its description.
        config: Of the model.
        trainable: `lora` and `rows`, of `nrt_jax.models.lora.split`.
        tokenizer: With the added tokens.
        overwrite: Replace an existing folder, once the new one is complete.
    """
    specs, sizes = adapter_tensors(adapter, config), _sizes(adapter, config)
    with complete_or_absent(path, overwrite) as folder:
        write_adapter_config(folder, adapter, config)
        write_tensors(folder / WEIGHTS_FILE, tensors_from(trainable, specs, sizes, "float32"))
        save_tokenizer(folder, tokenizer)


def write_adapter_config(folder: str | Path, adapter: Adapter, config: ModelConfig) -> None:
    """Writes PEFT's adapter_config.json."""
    tables = [name for path, name in _TABLES.items() if path != "head" or not config.tie_embeddings]
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.lora.rank,
        "lora_alpha": adapter.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [_module(spec) for spec in _targets(adapter.lora.targets)],
        "trainable_token_indices": dict.fromkeys(tables, adapter.row_ids) if adapter.row_ids else None,
        "inference_mode": True,
    }
    write_json(Path(folder) / ADAPTER_CONFIG_FILE, content)


def read_adapter_params(path: str | Path, adapter: Adapter, config: ModelConfig) -> Params:
    """Reads the trainable params of an adapter's folder.

    Raises:
        UserError: They do not fit the adapter's description or the model.
    """
    folder = Path(path)
    if not (folder / WEIGHTS_FILE).exists() and (folder / _PICKLE_FILE).exists():
        raise UserError(
            f"{folder}: found {_PICKLE_FILE}, which is pickle and never read; expected {WEIGHTS_FILE}, by PEFT"
        )
    with contextlib.ExitStack() as stack:
        checkpoint = open_file(folder / WEIGHTS_FILE, stack)
        specs, sizes = adapter_tensors(adapter, config), _sizes(adapter, config)
        return {"rows": {}} | read_tensors(checkpoint, specs, sizes, dtype="float32")


def read_adapter_config(path: str | Path) -> Adapter:
    """Reads adapter_config.json.

    Raises:
        UserError: It asks for what our adapters cannot do; the line names the field.
    """
    where = Path(path) / ADAPTER_CONFIG_FILE
    raw = read_json(where)
    for field, value in raw.items():
        if value and field not in (*_FOLLOWED, *_HARMLESS) and value not in _NEUTRAL.get(field, ()):
            expected = " or ".join(map(str, _NEUTRAL.get(field, ("none",))))
            raise UserError(f"{where}: {field}: {value} is not supported; expected {expected}")
    by_module = {_module(spec): spec.path[-1] for spec in _targets(PROJECTIONS)}
    targets, rank, alpha = raw.get("target_modules"), raw.get("r"), raw.get("lora_alpha")
    if not isinstance(targets, list) or not targets or not all(target in list(by_module) for target in targets):
        known = ", ".join(by_module)
        raise UserError(f"{where}: target_modules: {targets} is not supported; expected a list of {known}")
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and -_LARGEST < alpha < _LARGEST
    if type(rank) is not int or not 1 <= rank < 2**31 or not is_number:
        raise UserError(
            f"{where}: r, lora_alpha: found {rank!r}, {alpha!r}; expected a positive integer below 2**31 and a number "
            "that float32 can hold"
        )
    rows = raw.get("trainable_token_indices") or {}
    if (
        not isinstance(rows, dict)
        or not set(rows) <= set(_TABLES.values())
        or not all(isinstance(ids, list) for ids in rows.values())
        or len({*map(str, rows.values())}) > 1
        or not all(type(i) is int and 0 <= i < 2**31 for ids in rows.values() for i in ids)
        or any(len(set(ids)) < len(ids) for ids in rows.values())
    ):
        raise UserError(
            f"{where}: trainable_token_indices: {rows} is not supported; "
            f"expected the same list of different ids for {' and '.join(_TABLES.values())}"
        )
    names = tuple(name for module, name in by_module.items() if module in targets)
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{where}: base_model_name_or_path: found {base!r}; expected the folder of the base model")
    return Adapter(LoRAConfig(rank, float(alpha), names), base, tuple(next(iter(rows.values()), ())))


# Fields of adapter_config.json that our adapters follow, or that change nothing in a trained one. Any other field that
# is set asks for something else: DoRA, rank patterns, layers of its own, aLoRA, ...
_FOLLOWED = ("r", "lora_alpha", "target_modules", "trainable_token_indices", "base_model_name_or_path")
_HARMLESS = (
    "auto_mapping",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),  # PiSSA and its kin change the base too
}


def adapter_tensors(adapter: Adapter, config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The table of an adapter's tensors."""
    specs = []
    for spec in _targets(adapter.lora.targets):
        outputs, inputs = (" ".join(letters) for letters in spec.axes())
        name = "base_model.model." + spec.name.removesuffix("weight")
        path = ("lora", spec.path[-1])
        specs.append(TensorSpec((*path, "a"), f"{name}lora_A.weight", f"{inputs} r", f"r ({inputs})"))
        specs.append(TensorSpec((*path, "b"), f"{name}lora_B.weight", f"r {outputs}", f"({outputs}) r"))
    for spec in TENSORS:
        if adapter.row_ids and spec.path[0] in _TABLES and not (spec.path == ("head",) and config.tie_embeddings):
            name = "base_model.model." + spec.name.replace("weight", "token_adapter.trainable_tokens_delta")
            specs.append(TensorSpec(("rows", *spec.path), name, "n D", "n D"))
    return tuple(specs)


def _targets(names: Sequence[str]) -> list[TensorSpec]:
    """The lines of the table for these matrices of a layer."""
    return [spec for spec in TENSORS if spec.per_layer and spec.path[-1] in names]


def _module(spec: TensorSpec) -> str:
    """What PEFT calls a matrix: q_proj."""
    return spec.name.split(".")[-2]


def _sizes(adapter: Adapter, config: ModelConfig) -> dict[str, int]:
    return sizes_of(config) | {"r": adapter.lora.rank, "n": len(adapter.row_ids)}
