import dataclasses

import pytest

from nrt_jax.errors import UserError
from nrt_jax.hf import from_hf, to_hf
from nrt_jax.models import ModelConfig, RopeConfig

LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_32_1B = LLAMA_31_8B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": LLAMA_31_8B["rope_scaling"] | {"factor": 32.0},
    "tie_word_embeddings": True,
    "transformers_version": "4.45.0.dev0",
}
MISTRAL_7B_V01 = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
PUBLISHED = {
    "Llama-3.1-8B": (
        LLAMA_31_8B,
        ModelConfig(
            model_type="llama",
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            rope=RopeConfig(
                theta=500000.0,
                type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
            norm_eps=1e-5,
            max_position_embeddings=131072,
        ),
    ),
    "Llama-3.2-1B": (
        LLAMA_32_1B,
        ModelConfig(
            model_type="llama",
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_layers=16,
            num_heads=32,
            num_kv_heads=8,
            head_dim=64,
            rope=RopeConfig(
                theta=500000.0,
                type="llama3",
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
            norm_eps=1e-5,
            tie_embeddings=True,
            max_position_embeddings=131072,
        ),
    ),
    "Mistral-7B-v0.1": (
        MISTRAL_7B_V01,
        ModelConfig(
            model_type="mistral",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            norm_eps=1e-5,
            sliding_window=4096,
            max_position_embeddings=32768,
        ),
    ),
}


def in_layout_of_transformers_5(raw):
    raw = dict(raw)
    scaling, theta = raw.pop("rope_scaling", None), raw.pop("rope_theta")
    return raw | {"rope_parameters": {"rope_type": "default"} | (scaling or {}) | {"rope_theta": theta}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_means_what_its_model_card_says(name):
    raw, config = PUBLISHED[name]
    assert from_hf(raw) == config
    assert from_hf(in_layout_of_transformers_5(raw)) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_written_config_has_equal_meaning_with_and_without_the_original(name):
    raw, config = PUBLISHED[name]
    assert from_hf(to_hf(config)) == config
    assert to_hf(config, raw) == raw
    assert to_hf(config, in_layout_of_transformers_5(raw)) == in_layout_of_transformers_5(raw)


@pytest.mark.parametrize("layout", [dict, in_layout_of_transformers_5])
def test_only_changed_keys_are_written_over_the_original(layout):
    raw = layout(LLAMA_32_1B)
    changed = dataclasses.replace(from_hf(raw), vocab_size=128257, rope=RopeConfig(theta=10000.0))
    written = to_hf(changed, raw)
    assert from_hf(written) == changed
    differing = {key for key in written.keys() | raw.keys() if written.get(key) != raw.get(key)}
    rotary = {"rope_parameters"} if "rope_parameters" in raw else {"rope_theta", "rope_scaling"}
    assert differing == {"vocab_size"} | rotary


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same_meaning(name):
    transformers = pytest.importorskip("transformers")
    raw, config = PUBLISHED[name]
    families = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    theirs = families[config.model_type].from_dict(to_hf(config))
    assert from_hf(theirs.to_dict()) == config
    assert theirs.rope_parameters == families[config.model_type].from_dict(raw).rope_parameters


def test_absent_fields_take_the_defaults_of_transformers():
    absent = (
        "head_dim",
        "num_key_value_heads",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    config = from_hf({key: value for key, value in LLAMA_31_8B.items() if key not in absent})
    assert (config.head_dim, config.num_kv_heads, config.norm_eps) == (128, 32, 1e-6)
    assert config.rope == RopeConfig(theta=10000.0)
    assert not config.tie_embeddings


def test_sliding_window_belongs_to_mistral_and_null_is_none():
    assert from_hf(LLAMA_31_8B | {"sliding_window": 4096}).sliding_window is None
    assert from_hf(MISTRAL_7B_V01 | {"sliding_window": None}).sliding_window is None
    without = {key: value for key, value in MISTRAL_7B_V01.items() if key != "sliding_window"}
    assert from_hf(without).sliding_window == 4096


def test_rope_type_has_an_older_spelling():
    scaling = dict(LLAMA_31_8B["rope_scaling"])
    scaling["type"] = scaling.pop("rope_type")
    assert from_hf(LLAMA_31_8B | {"rope_scaling": scaling}) == from_hf(LLAMA_31_8B)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"model_type.*'lama'.*did you mean 'llama'"),
        ({"model_type": None}, "model_type"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures.*LlamaForSequenceClassification",
        ),
        ({"hidden_act": "gelu"}, "hidden_act.*gelu.*silu"),
        ({"attention_bias": True}, "attention_bias.*True"),
        ({"mlp_bias": True}, "mlp_bias.*True"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq"),
        ({"num_local_experts": 8}, "num_local_experts.*8"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling.rope_type.*yarn.*default or llama3",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.rope_type.*linear"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor: missing"),
        ({"rope_scaling": "llama3"}, "rope_scaling.*expected an object"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}},
            "rope_parameters.rope_type.*dynamic",
        ),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"hidden_size": "4096"}, "hidden_size.*'4096'.*positive integer"),
        ({"vocab_size": -1}, "vocab_size.*-1.*positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers.*True.*positive integer"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps.*'small'.*positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings.*'no'.*true or false"),
        ({"num_key_value_heads": 5}, "num_key_value_heads.*5"),
        ({"hidden_size": 4100}, "hidden_size.*4100.*head_dim"),
        ({"head_dim": 63}, "head_dim.*63.*even"),
    ],
)
def test_what_is_unsupported_is_refused_by_name_of_the_field(changes, message):
    with pytest.raises(UserError, match=message) as error:
        from_hf(LLAMA_31_8B | changes)
    assert "\n" not in str(error.value)
