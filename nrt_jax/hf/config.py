"""config.json <-> ModelConfig.

A field that changes the maths and that our transformer does not have is refused by name here, before any
tensor is read: a checkpoint that loads is a checkpoint that computes what its authors meant. Both layouts of
the rotary fields are read: transformers 4's `rope_theta` and `rope_scaling`, which nearly all published
checkpoints have, and transformers 5's `rope_parameters`.
"""

import math
from collections.abc import Mapping
from typing import Any

from nrt_jax.errors import UserError
from nrt_jax.models import ModelConfig, RopeConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}

# Fields that change the maths of some relative of Llama, with the values that leave it as ours is. Absent is one.
_FALSE, _ZERO, _ONE, _ABSENT = (False, None), (0, None), (1.0, None), (None,)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    **dict.fromkeys(("attention_bias", "mlp_bias", "bias", "use_bias", "qkv_bias"), _FALSE),
    **dict.fromkeys(("quantization_config", "compression_config"), _ABSENT),
    # Mixtures of experts.
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"), _ZERO),
    # Constants inside the block and at the logits: Granite, Gemma, MiniCPM, Cohere.
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"), _ONE),
    **dict.fromkeys(("scale_emb", "scale_depth"), _ONE),
    **dict.fromkeys(("attention_multiplier", "query_pre_attn_scalar"), _ABSENT),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"), _ABSENT),
    **dict.fromkeys(("qk_norm", "use_qk_norm", "qk_layernorm"), _FALSE),
    # Other masks and other positions: encoders made of decoders, Llama 4, SmolLM3, Falcon.
    "is_causal": (True, None),
    **dict.fromkeys(("use_bidirectional_attention", "alibi", "attn_temperature_tuning"), _FALSE),
    **dict.fromkeys(("attention_chunk_size", "no_rope_layer_interval"), _ZERO),
    **dict.fromkeys(("no_rope_layers", "mlp_only_layers"), ([], None)),
    "rope_interleaved": _FALSE,
    "partial_rotary_factor": _ONE,
    # Layers that differ from each other.
    **dict.fromkeys(("per_layer_config", "block_configs"), ({}, [], None)),
}
_NEUTRAL_IN_ROPE: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": _ONE,
    **dict.fromkeys(("mrope_section", "llama_4_scaling_beta"), _ABSENT),
}

# transformers' defaults for what may be absent. A Mistral without the key has a window; with null, none.
_MISTRAL_WINDOW = 4096
_MISTRAL_KV_HEADS = 8
_MAX_POSITIONS = {"llama": 2048, "mistral": 131072}

_LARGEST = 3.4e38  # of float32, in which it will be used

# Keys of each type of rotary embedding, named as in RopeConfig.
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "attention_factor",
    ),
}
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")


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
        raise _unsupported("model_type", model_type, tuple(ARCHITECTURES))
    if raw.get("architectures") not in (None, [], [ARCHITECTURES[model_type]]):
        raise _unsupported("architectures", raw["architectures"], ([ARCHITECTURES[model_type]],))
    _check_neutral(raw, _NEUTRAL)

    hidden, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    few = model_type == "mistral" and "num_key_value_heads" not in raw
    kv_heads = _integer(raw, "num_key_value_heads", _MISTRAL_KV_HEADS if few else heads)
    if heads % kv_heads:
        raise UserError(f"config.json: num_key_value_heads: {kv_heads}; expected a divisor of {heads} query heads")
    if raw.get("head_dim") is None and hidden % heads:
        raise UserError(f"config.json: hidden_size: {hidden}; expected a multiple of {heads} heads, or a head_dim")
    head_dim = _integer(raw, "head_dim", hidden // heads)
    if head_dim % 2:
        raise UserError(f"config.json: head_dim: {head_dim}; rotary position embedding needs an even number")
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
        sliding_window=_window(raw, model_type),
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
        return _fields(config) | _rope_fields(config.rope, rope_parameters=False)
    source = from_hf(original)
    before = _fields(source)
    written = dict(original) | {key: value for key, value in _fields(config).items() if value != before.get(key)}
    if config.rope != source.rope:
        written = {key: value for key, value in written.items() if key not in _ROPE_KEYS}
        written |= _rope_fields(config.rope, rope_parameters=bool(original.get("rope_parameters")))
    return written


def _fields(config: ModelConfig) -> dict[str, Any]:
    """All keys but those of the rotary embedding."""
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
    }
    if config.model_type == "mistral":
        return fields | {"sliding_window": config.sliding_window}
    return fields | {"attention_bias": False, "mlp_bias": False}


def _rope_fields(rope: RopeConfig, rope_parameters: bool) -> dict[str, Any]:
    scaling = {field: getattr(rope, field) for field in _ROPE_FIELDS[rope.type] if getattr(rope, field) is not None}
    scaling["rope_type"] = rope.type
    if rope_parameters:
        return {"rope_parameters": scaling | {"rope_theta": rope.theta}}
    return {"rope_theta": rope.theta, "rope_scaling": None if rope.type == "default" else scaling}


def _window(raw: Mapping[str, Any], model_type: str) -> int | None:
    """The sliding window, which is Mistral's and the same in all layers."""
    window = None
    if model_type == "mistral" and raw.get("sliding_window", _MISTRAL_WINDOW) is not None:
        window = _integer(raw, "sliding_window", _MISTRAL_WINDOW)
    _check_neutral(raw, {"use_sliding_window": (window is not None, None)})
    if window is not None:
        _check_neutral(raw, {"max_window_layers": _ZERO})
    kind = "full_attention" if window is None else "sliding_attention"
    layer_types = raw.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or set(map(str, layer_types)) - {kind}):
        raise _unsupported("layer_types", layer_types, (f"{kind} in every layer", None))
    return window


def _rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    """The rotary embedding, from whichever layout there is."""
    layouts = [field for field in ("rope_parameters", "rope_scaling") if raw.get(field) not in (None, {})]
    found = [_rope_of_layout(raw, field, max_positions) for field in layouts]
    if not found:
        return RopeConfig(theta=_number(raw, "rope_theta", 10000.0))
    if found[0] != found[-1]:
        raise UserError("config.json: rope_scaling contradicts rope_parameters; remove the one that is not meant")
    return found[0]


def _rope_of_layout(raw: Mapping[str, Any], field: str, max_positions: int) -> RopeConfig:
    scaling = raw[field]
    if not isinstance(scaling, Mapping):
        raise UserError(f"config.json: {field}: found {scaling!r}; expected an object or null")
    for key, value in scaling.items():
        if isinstance(value, Mapping):
            raise _unsupported(f"{field}.{key}", value, ("one rotary embedding for all layers",))
    _check_neutral(scaling, _NEUTRAL_IN_ROPE, field)
    kind = scaling.get("rope_type", scaling.get("type", "default"))  # `type` is the older spelling
    if scaling.get("type", kind) != kind:
        raise UserError(f"config.json: {field}.type: {scaling['type']} contradicts {field}.rope_type, {kind}")
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
        raise _unsupported(f"{field}.rope_type", kind, tuple(_ROPE_FIELDS))
    scaling = _with_outer(raw, scaling, field)
    theta = _number(scaling, "rope_theta", 10000.0, field)
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type=kind, factor=_number(scaling, "factor", None, field))
    original = _integer(scaling, "original_max_position_embeddings", max_positions, field)
    if kind == "yarn":
        return _yarn(scaling, field, theta, original, max_positions)
    low, high = (_number(scaling, f"{name}_freq_factor", None, field) for name in ("low", "high"))
    if not low < high:
        raise UserError(f"config.json: {field}.high_freq_factor: {high}; expected more than low_freq_factor, {low}")
    return RopeConfig(
        theta=theta,
        type=kind,
        factor=_number(scaling, "factor", None, field),
        original_max_position_embeddings=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _with_outer(raw: Mapping[str, Any], scaling: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """The rotary object with the keys that may stand outside it. transformers 4 and 5 differ where both exist."""
    for key in ("rope_theta", "original_max_position_embeddings"):
        outer, inner = raw.get(key), scaling.get(key)
        if None not in (outer, inner) and outer != inner:
            raise UserError(f"config.json: {key}: {outer} contradicts {field}.{key}, {inner}; expected one of them")
        if inner is None:
            scaling = {**scaling, key: outer}
    return scaling


def _yarn(scaling: Mapping[str, Any], field: str, theta: float, original: int, max_positions: int) -> RopeConfig:
    if theta <= 1:
        raise UserError(f"config.json: {field}.rope_theta: {theta}; yarn needs a number above 1")
    # As in transformers 5, null asks for the ratio of the two context lengths.
    ratio = max_positions / original if "factor" in scaling else None
    factor, attention_factor = _number(scaling, "factor", ratio, field), None
    if scaling.get("attention_factor") is not None:
        attention_factor = _number(scaling, "attention_factor", None, field)
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):
        above, below = (
            0.1 * _number(scaling, name, None, field) * math.log(max(factor, 1.0)) + 1.0
            for name in ("mscale", "mscale_all_dim")
        )
        attention_factor = above / below
    return RopeConfig(
        theta=theta,
        type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=_number(scaling, "beta_fast", 32.0, field),
        beta_slow=_number(scaling, "beta_slow", 1.0, field),
        truncate=_boolean(scaling, "truncate", "truncate" not in scaling, field),  # null is false there
        attention_factor=attention_factor,
    )


def _check_neutral(raw: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], parent: str | None = None) -> None:
    for field, values in neutral.items():
        if field in raw and raw[field] not in values:
            raise _unsupported(f"{parent}.{field}" if parent else field, raw[field], values)


def _unsupported(field: str, value: Any, supported: tuple[Any, ...]) -> UserError:
    found = " ".join(str(value).split())
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
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise UserError(f"{name}: found {value!r}; expected a positive integer below 2**31")
    return value


def _number(raw: Mapping[str, Any], field: str, default: float | None, parent: str | None = None) -> float:
    name, value = _value(raw, field, default, parent)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise UserError(f"{name}: found {value!r}; expected a positive number that float32 can hold")
    return float(value)


def _boolean(raw: Mapping[str, Any], field: str, default: bool, parent: str | None = None) -> bool:
    name, value = _value(raw, field, default, parent)
    if not isinstance(value, bool):
        raise UserError(f"{name}: found {value!r}; expected true or false")
    return value
