"""config.json of the published checkpoints, in every layout that transformers wrote, and what is refused."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.errors import UserError
from nrt_jax.hf import from_hf, to_hf
from nrt_jax.models import ModelConfig, RopeConfig
from tests.hf import tiny

CONFIGS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs" / "models")  # the recipes' own
_LLAMA = functools.partial(
    ModelConfig,
    model_type="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    max_position_embeddings=131072,
)
_MISTRAL = functools.partial(_LLAMA, model_type="mistral", vocab_size=32000, max_position_embeddings=32768)
_LLAMA_31_ROPE = RopeConfig(
    theta=500000.0,
    type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
# File in configs/, what it means, and the number of parameters on the model's card or in its safetensors index.
PUBLISHED = {
    "Llama-2-7b-hf": (
        _LLAMA(vocab_size=32000, intermediate_size=11008, num_kv_heads=32, max_position_embeddings=4096),
        6_738_415_616,
    ),
    "Meta-Llama-3-8B": (_LLAMA(rope=RopeConfig(theta=500000.0), max_position_embeddings=8192), 8_030_261_248),
    "Llama-3.1-8B": (_LLAMA(rope=_LLAMA_31_ROPE), 8_030_261_248),
    "Llama-3.2-1B": (
        _LLAMA(
            hidden_size=2048,
            intermediate_size=8192,
            num_layers=16,
            head_dim=64,
            rope=dataclasses.replace(_LLAMA_31_ROPE, factor=32.0),
            tie_embeddings=True,
        ),
        1_235_814_400,
    ),
    "Llama-3.2-3B": (
        _LLAMA(
            hidden_size=3072,
            intermediate_size=8192,
            num_layers=28,
            num_heads=24,
            rope=dataclasses.replace(_LLAMA_31_ROPE, factor=32.0),
            tie_embeddings=True,
        ),
        3_212_749_824,
    ),
    "Llama-3.1-70B": (
        _LLAMA(hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64, rope=_LLAMA_31_ROPE),
        70_553_706_496,
    ),
    "Mistral-7B-v0.1": (_MISTRAL(sliding_window=4096), 7_241_732_096),
    "Mistral-7B-v0.2": (_MISTRAL(rope=RopeConfig(theta=1e6)), 7_241_732_096),
    "Mistral-7B-v0.3": (_MISTRAL(vocab_size=32768, rope=RopeConfig(theta=1e6)), 7_248_023_552),
    "Mistral-Nemo-Base-2407": (
        _MISTRAL(
            vocab_size=131072,
            hidden_size=5120,
            num_layers=40,
            rope=RopeConfig(theta=1e6),
            max_position_embeddings=128000,
        ),
        12_247_782_400,
    ),
}


def text_of(name):
    return next(file for folder in CONFIGS if (file := folder / f"{name}.json").exists()).read_text()


LLAMA_31_8B, LLAMA_32_1B, MISTRAL_7B = (
    json.loads(text_of(name)) for name in ("Llama-3.1-8B", "Llama-3.2-1B", "Mistral-7B-v0.1")
)
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"}


def as_published(raw):
    return raw


def in_layout_of_transformers_5(raw):
    raw = dict(raw)
    scaling, theta = raw.pop("rope_scaling", None), raw.pop("rope_theta", 10000.0)
    return raw | {"rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": theta}}


LAYOUTS = (as_published, in_layout_of_transformers_5)


def with_rope(layout, **scaling):
    """Llama 3.1 8B with another `rope_scaling`."""
    return layout(LLAMA_31_8B | {"rope_scaling": scaling})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_means_what_its_model_card_says(name, layout):
    config, num_parameters = PUBLISHED[name]
    assert from_hf(layout(json.loads(text_of(name)))) == config
    assert config.num_parameters == num_parameters


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_what_did_not_change_is_written_back_to_the_byte(name, layout):
    original = json.dumps(layout(json.loads(text_of(name))), indent=2)
    assert json.dumps(to_hf(PUBLISHED[name][0], json.loads(original)), indent=2) == original
    assert from_hf(to_hf(PUBLISHED[name][0])) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_ours_as_it_reads_the_original(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    raw = json.loads(text_of(name))
    (tmp_path / "config.json").write_text(text_of(name))
    original = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()

    def as_read(ours):
        (tmp_path / "config.json").write_text(json.dumps(ours))
        return transformers.AutoConfig.from_pretrained(tmp_path).to_dict()

    config = PUBLISHED[name][0]
    assert as_read(to_hf(config, raw)) == original
    known = {"rope_parameters"} | (to_hf(config).keys() - {"rope_theta", "rope_scaling"})
    theirs = as_read(to_hf(config))
    assert {key: theirs[key] for key in known} == {key: original[key] for key in known}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_transformers_5_writes_means_the_same(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(text_of(name))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in written
    assert from_hf(written) == from_hf(theirs.to_dict()) == PUBLISHED[name][0]


def test_everything_that_transformers_4_writes_into_a_full_config_is_read():
    every = {
        "_attn_implementation_autoset": True,
        "add_cross_attention": False,
        "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None,
        "exponential_decay_length_penalty": None,
        "is_decoder": False,
        "is_encoder_decoder": False,
        "max_length": 20,
        "num_beams": 1,
        "problem_type": None,
        "pruned_heads": {},
        "return_dict": True,
        "tie_encoder_decoder": False,
        "torchscript": False,
        "use_bfloat16": False,
    }
    for raw in (LLAMA_31_8B, MISTRAL_7B):
        assert from_hf(raw | every) == from_hf(raw)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_changed_keys_are_written_over_the_original(layout):
    raw = layout(LLAMA_32_1B)
    changed = dataclasses.replace(from_hf(raw), vocab_size=128257, rope=RopeConfig(theta=10000.0))
    written = to_hf(changed, raw)
    assert from_hf(written) == changed
    differing = {key for key in written.keys() | raw.keys() if written.get(key) != raw.get(key)}
    rotary = {"rope_parameters"} if "rope_parameters" in raw else {"rope_theta", "rope_scaling"}
    assert differing == {"vocab_size"} | rotary


@given(tiny.ropes(), tiny.ropes(), st.sampled_from(LAYOUTS))
def test_any_rotary_embedding_is_read_back_from_what_is_written(rope, other, layout):
    config = dataclasses.replace(PUBLISHED["Llama-3.1-8B"][0], rope=rope)
    raw = layout(to_hf(config))
    assert from_hf(raw) == from_hf(to_hf(config, raw)) == config
    assert to_hf(config, raw) == raw
    replaced = dataclasses.replace(config, rope=other)
    written = to_hf(replaced, raw)
    assert from_hf(written) == replaced
    assert ("rope_parameters" in written) == ("rope_parameters" in raw)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_type_has_an_older_spelling(layout):
    for scaling in (LLAMA_31_8B["rope_scaling"], YARN, {"factor": 2.0, "rope_type": "linear"}):
        older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        assert from_hf(with_rope(layout, **older)) == from_hf(with_rope(layout, **scaling))
        assert from_hf(with_rope(layout, **scaling)).rope.type == scaling["rope_type"]


def test_yarn_takes_the_defaults_of_transformers():
    rope = from_hf(with_rope(as_published, factor=4.0, rope_type="yarn")).rope
    assert rope == RopeConfig(theta=500000.0, type="yarn", factor=4.0, original_max_position_embeddings=131072)
    assert from_hf(with_rope(as_published, **YARN | {"factor": None})).rope.factor == 131072 / 32768
    assert not from_hf(with_rope(as_published, **YARN, truncate=None)).rope.truncate
    scaled = from_hf(with_rope(as_published, **YARN, mscale=2.0, mscale_all_dim=0.5)).rope
    assert scaled.attention_factor == pytest.approx(1.2772588722 / 1.0693147181)
    assert from_hf(with_rope(as_published, **YARN, mscale=2.0)).rope.attention_factor is None
    chosen = with_rope(as_published, **YARN, mscale=2.0, mscale_all_dim=0.5, attention_factor=1.5)
    assert from_hf(chosen).rope.attention_factor == 1.5


def test_a_key_outside_the_rotary_object_stands_in_for_one_inside():
    scaling = dict(LLAMA_31_8B["rope_scaling"])
    original = scaling.pop("original_max_position_embeddings")
    raw = LLAMA_31_8B | {"rope_scaling": scaling, "original_max_position_embeddings": original}
    assert from_hf(raw) == from_hf(LLAMA_31_8B)
    changed = dataclasses.replace(from_hf(raw), rope=RopeConfig(theta=1e4, type="yarn", factor=2.0))
    assert from_hf(to_hf(changed, raw)) == changed


def test_both_layouts_at_once_are_read_where_they_agree():
    both = LLAMA_31_8B | in_layout_of_transformers_5(LLAMA_31_8B)
    assert from_hf(both) == from_hf(LLAMA_31_8B)
    changed = dataclasses.replace(from_hf(both), rope=RopeConfig(theta=1e4))
    assert from_hf(to_hf(changed, both)) == changed
    assert from_hf(LLAMA_31_8B | {"rope_scaling": {}, "rope_parameters": {}}).rope == RopeConfig(theta=500000.0)


def test_absent_fields_take_the_defaults_of_transformers():
    absent = (
        "head_dim",
        "num_key_value_heads",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "tie_word_embeddings",
        "max_position_embeddings",
        "sliding_window",
        "hidden_act",
    )
    transformers = pytest.importorskip("transformers")
    for raw, family in ((LLAMA_31_8B, transformers.LlamaConfig), (MISTRAL_7B, transformers.MistralConfig)):
        few = {key: value for key, value in raw.items() if key not in absent}
        assert from_hf(few) == from_hf(family.from_dict(few).to_dict())
    assert from_hf(MISTRAL_7B | {"num_key_value_heads": None}).num_kv_heads == 32


def test_sliding_window_belongs_to_mistral_and_null_is_none():
    assert from_hf(LLAMA_31_8B | {"sliding_window": 4096}).sliding_window is None
    assert from_hf(MISTRAL_7B | {"sliding_window": None}).sliding_window is None
    without = {key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}
    assert from_hf(without).sliding_window == 4096


@pytest.mark.parametrize(
    ("raw", "neutral"),
    [
        (LLAMA_31_8B, {"pretraining_tp": 4, "attention_bias": None, "num_experts": 0, "no_rope_layers": []}),
        (LLAMA_31_8B, {"residual_multiplier": 1.0, "logits_scaling": 1, "partial_rotary_factor": 1.0}),
        (LLAMA_31_8B, {"query_pre_attn_scalar": None, "is_causal": True, "quantization_config": None}),
        (LLAMA_31_8B, {"layer_types": ["full_attention"] * 32, "use_sliding_window": False, "max_window_layers": 28}),
        (MISTRAL_7B, {"layer_types": ["sliding_attention"] * 32, "use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_a_field_that_leaves_the_maths_alone_is_accepted(raw, neutral):
    assert from_hf(raw | neutral) == from_hf(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, r"model_type: mixtral is not supported; expected llama or mistral"),
        ({"model_type": "qwen2"}, "model_type: qwen2"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "two\nlines"}, "model_type: two lines is not supported"),
        *(
            ({"architectures": [name]}, f"architectures.*{name}.*LlamaForCausalLM")
            for name in ("LlamaForSequenceClassification", "MixtralForCausalLM", "Qwen2ForCausalLM", "LlamaModel")
        ),
        ({"hidden_act": "gelu"}, "hidden_act.*gelu.*silu"),
        ({"attention_bias": True}, "attention_bias.*True"),
        ({"mlp_bias": True}, "mlp_bias.*True"),
        ({"qkv_bias": True}, "qkv_bias.*True"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq"),
        ({"compression_config": {"format": "int-quantized"}}, "compression_config"),
        ({"num_local_experts": 8}, "num_local_experts.*8"),
        ({"num_experts_per_tok": 2}, "num_experts_per_tok.*2"),
        ({"n_routed_experts": 64}, "n_routed_experts.*64"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier.*12"),
        ({"attention_multiplier": 0.0078125}, "attention_multiplier.*0.0078125"),
        ({"residual_multiplier": 0.22}, "residual_multiplier.*0.22"),
        ({"logits_scaling": 8.0}, "logits_scaling.*8"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar.*256"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping.*50"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping.*30"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers"),
        ({"is_causal": False}, "is_causal.*False"),
        ({"per_layer_config": {"0": {"num_attention_heads": 8}}}, "per_layer_config"),
        ({"use_sliding_window": True}, "use_sliding_window.*True"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 16}, "layer_types.*full_attention in every layer"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
        *(
            ({"rope_scaling": {"rope_type": kind, "factor": 4.0}}, f"rope_scaling.rope_type: {kind}.*default or linear")
            for kind in ("dynamic", "longrope", "proportional", "su", "mrope", "axial")
        ),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "type": "linear"}}, "rope_scaling.type: linear contradicts"),
        ({"rope_scaling": {"rope_type": "llama3"}}, r"rope_scaling\.low_freq_factor: missing"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor: missing"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling\.factor: missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "factor.*inf"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate.*true or false"),
        ({"rope_scaling": YARN | {"beta_fast": "32"}}, "beta_fast.*'32'"),
        ({"rope_scaling": YARN | {"mscale": -1.0, "mscale_all_dim": 1.0}}, r"mscale: found -1\.0"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta.*above 1"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor.*0.5"),
        ({"rope_scaling": YARN | {"mrope_section": [16, 24, 24]}}, "rope_scaling.mrope_section"),
        ({"rope_scaling": YARN | {"rope_theta": 1e6}}, r"rope_theta: 500000\.0 contradicts rope_scaling\.rope_theta"),
        (
            {"rope_scaling": LLAMA_31_8B["rope_scaling"] | {"high_freq_factor": 1.0}},
            "high_freq_factor: 1.0; expected more than low_freq_factor",
        ),
        ({"rope_scaling": "llama3"}, "rope_scaling.*expected an object"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_parameters.rope_type.*dynamic"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "contradicts rope_parameters"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, r"rope_parameters\.full_attention"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": False}, "use_sliding_window.*False"),
        ({"max_window_layers": 28}, "max_window_layers.*28"),
        ({"layer_types": ["full_attention"] * 32}, "layer_types.*sliding_attention in every layer"),
        ({"sliding_window": 0}, "sliding_window.*0.*positive integer"),
    ],
)
def test_a_window_that_is_not_the_same_in_all_layers_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        from_hf(MISTRAL_7B | changes)
