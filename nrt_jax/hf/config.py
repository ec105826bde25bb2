"""config.json <-> ModelConfig.

A field that changes the maths and that our transformer does not have is refused by name here, before any
tensor is read: a checkpoint that loads is a checkpoint that computes what its authors meant. Both layouts of
the rotary fields are read: transformers 4's `rope_theta` and `rope_scaling`, which nearly all published
checkpoints have, and transformers 5's `rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from nrt_jax.errors import UserError, unknown_name
from nrt_jax.models import ModelConfig, RopeConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}

# Fields that can change the maths, with the values that leave it as ours is. Absent is one of them.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1.0, None),
    "num_local_experts": (0, None),
    "num_experts": (0, None),
    "n_routed_experts": (0, None),
}
# transformers' defaults for what may be absent. A Mistral without the key has a window; with null, none.
_MISTRAL_WINDOW = 4096
_MAX_POSITIONS = {"llama": 2048, "mistral": 131072}
_LLAMA3_FIELDS = ("factor", "low_freq_factor", "high_freq_factor")


def from_hf(raw: Mapping[str, Any], *, dtype: str = "float32") -> ModelConfig:
    """Reads the content of a config.json.

    Args:
        raw: The parsed JSON object. Keys that do not change the maths are ignored.
        dtype: The compute dtype of the result; the file's own dtype says only how the weights are stored.

    Raises:
        UserError: A field is missing, ill-typed, or asks for what is not supported; the line names it.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise unknown_name("config.json: model_type", str(model_type), ARCHITECTURES)
    if raw.get("architectures") not in (None, [], [ARCHITECTURES[model_type]]):
        raise _unsupported("architectures", raw["architectures"], ([ARCHITECTURES[model_type]],))
    for field, neutral in _NEUTRAL.items():
        if field in raw and raw[field] not in neutral:
            raise _unsupported(field, raw[field], neutral)

    hidden, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    kv_heads = _integer(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise UserError(f"config.json: num_key_value_heads: {kv_heads}; expected a divisor of {heads} query heads")
    if raw.get("head_dim") is None and hidden % heads:
        raise UserError(f"config.json: hidden_size: {hidden}; expected a multiple of {heads} heads, or a head_dim")
    head_dim = _integer(raw, "head_dim", hidden // heads)
    if head_dim % 2:
        raise UserError(f"config.json: head_dim: {head_dim}; rotary position embedding needs an even number")
    window = None
    if model_type == "mistral" and raw.get("sliding_window", _MISTRAL_WINDOW) is not None:
        window = _integer(raw, "sliding_window", _MISTRAL_WINDOW)
    max_positions = _integer(raw, "max_position_embeddings", _MAX_POSITIONS[model_type])
    return ModelConfig(
        model_type=model_type,
        vocab_size=_integer(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_integer(raw, "intermediate_size"),
        num_layers=_integer(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=_rope(raw, max_positions),
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        tie_embeddings=_boolean(raw, "tie_word_embeddings", False),
        sliding_window=window,
        max_position_embeddings=max_positions,
        dtype=dtype,
    )


def to_hf(config: ModelConfig, original: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes the content of a config.json.

    Args:
        config: What to describe.
        original: The config.json that the model came from. Only keys whose meaning changed are written over,
            in its own layout; all others, known to us or not, stay as they are.

    Returns:
        A JSON object. Without an original it is in the layout of transformers 4, which 5 reads too.
    """
    if original is None:
        return _fields(config, rope_parameters=False)
    layout = original.get("rope_parameters") is not None
    before, after = _fields(from_hf(original), layout), _fields(config, layout)
    return dict(original) | {key: value for key, value in after.items() if value != before.get(key)}


def _fields(config: ModelConfig, rope_parameters: bool) -> dict[str, Any]:
    rope, scaling = config.rope, None
    if rope.type == "llama3":
        scaling = {field: getattr(rope, field) for field in (*_LLAMA3_FIELDS, "original_max_position_embeddings")}
        scaling["rope_type"] = "llama3"
    if rope_parameters:
        rotary = {"rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": rope.theta}}
    else:
        rotary = {"rope_theta": rope.theta, "rope_scaling": scaling}
    fields = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
        **rotary,
    }
    if config.model_type == "mistral":
        return fields | {"sliding_window": config.sliding_window}
    return fields | {"attention_bias": False, "mlp_bias": False}


def _rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    field = "rope_parameters" if raw.get("rope_parameters") is not None else "rope_scaling"
    scaling = raw.get(field)
    if scaling is None:
        scaling = {}
    if not isinstance(scaling, Mapping):
        raise UserError(f"config.json: {field}: found {scaling!r}; expected an object or null")
    if scaling.get("partial_rotary_factor") not in (None, 1.0):
        raise _unsupported(f"{field}.partial_rotary_factor", scaling["partial_rotary_factor"], (1.0,))
    theta = _number(scaling, "rope_theta", _number(raw, "rope_theta", 10000.0), field)
    kind = scaling.get("rope_type", scaling.get("type", "default"))  # `type` is the older spelling
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise _unsupported(f"{field}.rope_type", kind, ("default", "llama3"))
    return RopeConfig(
        theta=theta,
        type="llama3",
        original_max_position_embeddings=_integer(scaling, "original_max_position_embeddings", max_positions, field),
        **{name: _number(scaling, name, None, field) for name in _LLAMA3_FIELDS},
    )


def _unsupported(field: str, value: Any, supported: tuple[Any, ...]) -> UserError:
    found = str(value)
    found = found if len(found) <= 80 else found[:77] + "..."
    expected = " or ".join("absent" if value is None else str(value) for value in supported)
    return UserError(f"config.json: {field}: {found} is not supported; expected {expected}")


def _value(raw: Mapping[str, Any], field: str, default: Any, parent: str | None) -> tuple[str, Any]:
    name = f"config.json: {parent}.{field}" if parent else f"config.json: {field}"
    value = default if raw.get(field) is None else raw[field]
    if value is None:
        raise UserError(f"{name}: missing")
    return name, value


def _integer(raw: Mapping[str, Any], field: str, default: int | None = None, parent: str | None = None) -> int:
    name, value = _value(raw, field, default, parent)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}: found {value!r}; expected a positive integer")
    return value


def _number(raw: Mapping[str, Any], field: str, default: float | None, parent: str | None = None) -> float:
    name, value = _value(raw, field, default, parent)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{name}: found {value!r}; expected a positive number")
    return float(value)


def _boolean(raw: Mapping[str, Any], field: str, default: bool) -> bool:
    name, value = _value(raw, field, default, None)
    if not isinstance(value, bool):
        raise UserError(f"{name}: found {value!r}; expected true or false")
    return value
