import dataclasses
import json
import math
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.errors import UserError
from nrt_jax.hf import weights
from nrt_jax.hf.table import TENSORS, tensors_of
from nrt_jax.hf.weights import INDEX_FILE, SINGLE_FILE, read_params, write_params
from nrt_jax.models import Model
from tests.hf import tiny

CONFIG = tiny.LLAMA
TIED = {"tie_embeddings": True}


def replaced(**changes):
    return dataclasses.replace(CONFIG, **changes)


@pytest.fixture
def folder(tmp_path):
    write_params(tmp_path, CONFIG, tiny.params(CONFIG))
    return tmp_path


def edit(folder, **tensors):
    """Rewrites the checkpoint with some tensors replaced, or dropped where None."""
    old = safetensors.numpy.load_file(folder / SINGLE_FILE)
    new = {name: array for name, array in (old | tensors).items() if array is not None}
    safetensors.numpy.save_file(new, folder / SINGLE_FILE)


@given(st.sampled_from(TENSORS), st.data())
def test_each_line_of_the_table_is_a_bijection(spec, data):
    sizes = {letter: data.draw(st.integers(1, 5), label=letter) for letter in "VDFHGdL"}
    theirs = np.arange(math.prod(spec.shape(sizes))).reshape(spec.shape(sizes))
    ours = spec.to_ours(theirs, sizes)
    assert ours.shape == spec.our_shape(sizes)[spec.per_layer :]
    np.testing.assert_array_equal(spec.to_theirs(ours, sizes), theirs)


@pytest.mark.parametrize("changes", [{}, TIED])
def test_table_covers_the_params_tree_exactly(changes):
    config = replaced(**changes)
    leaves = jax.tree_util.tree_leaves_with_path(Model(config).abstract_params())
    expected = {tuple(key.key for key in path) for path, _ in leaves}
    assert {spec.path for spec in tensors_of(config)} == expected


@pytest.mark.parametrize("changes", [{}, TIED])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 2000, 1])
def test_round_trip_is_bit_exact_single_and_sharded(tmp_path, changes, max_shard_bytes):
    config = replaced(**changes)
    params = tiny.params(config)
    write_params(tmp_path, config, params, max_shard_bytes=max_shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (tmp_path / INDEX_FILE).exists() == (len(files) > 1) == (max_shard_bytes < 10**9)
    if len(files) > 1:
        index = json.loads((tmp_path / INDEX_FILE).read_text())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert index["metadata"]["total_size"] == 4 * config.num_parameters
    restored = read_params(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(restored)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_into_float32_and_written_back_bit_exactly(tmp_path, dtype):
    write_params(tmp_path, CONFIG, tiny.params(CONFIG), dtype=dtype)
    stored = safetensors.numpy.load_file(tmp_path / SINGLE_FILE)
    params = read_params(tmp_path, CONFIG)
    jax.tree.map(
        lambda read, written: np.testing.assert_array_equal(read, written.astype(dtype).astype("float32")),
        params,
        tiny.params(CONFIG),
    )
    (tmp_path / "again").mkdir()
    write_params(tmp_path / "again", CONFIG, params, dtype=dtype)
    again = safetensors.numpy.load_file(tmp_path / "again" / SINGLE_FILE)
    assert {array.dtype for array in again.values()} == {np.dtype(getattr(ml_dtypes, dtype, dtype))}
    assert {name: a.tobytes() for name, a in again.items()} == {name: a.tobytes() for name, a in stored.items()}


@given(
    st.sampled_from([(2, 2, 2), (4, 1, 2), (1, 1, 8), (8, 1, 1)]), st.integers(0, 2), st.sampled_from(["float32", None])
)
def test_each_device_gets_its_shard_whatever_the_layout(shape, axis, dtype):
    """Eight devices, each leaf cut along one axis (its layers too)."""
    config, params = replaced(num_layers=8, vocab_size=16), tiny.params(replaced(num_layers=8, vocab_size=16))
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ("a", "b", "c"))

    def sharding(leaf):
        spec = [None] * leaf.ndim
        for i, name in enumerate("abc"):  # where the size divides
            where = (axis + i) % leaf.ndim
            if spec[where] is None and leaf.shape[where] % mesh.shape[name] == 0:
                spec[where] = name
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    shardings = jax.tree.map(sharding, params)
    with tempfile.TemporaryDirectory() as folder:
        write_params(folder, config, params, dtype="bfloat16")
        read = read_params(folder, config, dtype=dtype, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, read) == shardings
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(dtype or jnp.bfloat16), params)
    jax.tree.map(np.testing.assert_array_equal, read, rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype(dtype or jnp.bfloat16)}


def test_a_leaf_of_mixed_dtypes_is_widened_and_all_others_stay_as_stored(folder):
    half = np.ones((8,), np.float16)
    edit(folder, **{"model.norm.weight": half, "model.layers.1.input_layernorm.weight": half})
    params = read_params(folder, CONFIG, dtype=None)
    assert params["final_norm"].dtype == jnp.float16
    assert params["layers"]["attention_norm"].dtype == params["layers"]["q"].dtype == jnp.float32
    np.testing.assert_array_equal(params["layers"]["attention_norm"][1], half)


def test_written_files_are_what_the_safetensors_library_reads(tmp_path):
    params = tiny.params(CONFIG)
    write_params(tmp_path, CONFIG, params, dtype="bfloat16")
    with safetensors.safe_open(tmp_path / SINGLE_FILE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == 3 + 9 * CONFIG.num_layers
        norm = file.get_tensor("model.norm.weight")
    np.testing.assert_array_equal(norm, np.asarray(params["final_norm"]).astype(jnp.bfloat16))
    header = int.from_bytes((tmp_path / SINGLE_FILE).read_bytes()[:8], "little")
    assert (8 + header) % 8 == 0  # aligned, as the library writes it


def test_params_of_another_shape_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"embedding: shape \(13, 8\).*\(14, 8\)"):
        write_params(tmp_path, replaced(vocab_size=14), tiny.params(CONFIG))
    assert not list(tmp_path.iterdir())


def test_redundant_tensors_of_old_checkpoints_are_ignored(tmp_path):
    config = replaced(**TIED)
    write_params(tmp_path, config, tiny.params(config))
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    embedding = np.asarray(tiny.params(config)["embedding"])
    edit(tmp_path, **inv_freq, **{"lm_head.weight": embedding})
    assert "head" not in read_params(tmp_path, config)


def test_a_head_of_its_own_under_a_config_that_ties_it_is_refused(tmp_path):
    """transformers 5 would use it, 4 would not, and an export would lose it."""
    config = replaced(**TIED)
    write_params(tmp_path, config, tiny.params(config))
    head = np.asarray(tiny.params(config)["embedding"]).copy()
    head[-1, -1] += 1
    edit(tmp_path, **{"lm_head.weight": head})
    with pytest.raises(UserError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight"):
        read_params(tmp_path, config)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"model.embed_tokens.weight": None}, r"model\.embed_tokens\.weight: missing from the checkpoint"),
        ({"lm_head.weight": np.array(1, np.float32)}, r"lm_head\.weight: differs"),
        ({"model.embed_tokens.weight": np.array(1, np.float32)}, r"model\.embed_tokens\.weight: found shape \(\)"),
        ({"lm_head.weight": np.ones((13, 8), np.int32)}, r"lm_head\.weight: differs"),
    ],
)
def test_a_tied_checkpoint_of_other_tensors_is_refused_by_name(tmp_path, tensors, line):
    config = replaced(**TIED)
    write_params(tmp_path, config, tiny.params(config))
    edit(tmp_path, **{"lm_head.weight": np.asarray(tiny.params(config)["embedding"])} | tensors)
    with pytest.raises(UserError, match=line):
        read_params(tmp_path, config)


def test_what_overflows_float16_is_refused_by_name(tmp_path):
    params = tiny.params(CONFIG)
    write_params(tmp_path, CONFIG, params, dtype="float16")
    params["final_norm"] = params["final_norm"].at[0].set(1e5)
    with pytest.raises(UserError, match=r"model\.norm\.weight: 1e\+05 is too large for float16"):
        write_params(tmp_path, CONFIG, params, dtype="float16")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.1.self_attn.q_proj.weight": np.zeros((8, 24), np.float32)}, r"\(8, 24\).*\(24, 8\)"),
        ({"model.layers.2.mlp.up_proj.weight": None}, r"missing.*\(12, 8\)"),
        ({"lm_head.weight": None}, r"missing.*\(13, 8\)"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)}, r"\(24,\).*no such tensor"),
        ({"model.layers.3.mlp.up_proj.weight": np.zeros((12, 8), np.float32)}, r"\(12, 8\).*no such tensor"),
        ({"model.norm.weight": np.zeros(8, np.int8)}, "I8.*BF16"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_found_and_expected(folder, tensors, message, monkeypatch):
    edit(folder, **tensors)
    monkeypatch.setattr(weights, "_read_leaf", lambda *_: pytest.fail("data was read before the check was done"))
    with pytest.raises(UserError, match=message) as error:
        read_params(folder, CONFIG)
    assert next(iter(tensors)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.safetensors", "a\\..\\b.safetensors", "x.bin", 3])
def test_index_cannot_name_a_file_outside_its_folder(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    write_params(tmp_path, CONFIG, tiny.params(CONFIG))
    (inside / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match="expected a file name in this folder"):
        read_params(inside, CONFIG)


def test_index_that_lies_or_is_broken_is_refused(tmp_path):
    write_params(tmp_path, CONFIG, tiny.params(CONFIG), max_shard_bytes=2000)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        read_params(tmp_path, CONFIG)
    for broken in ("{", "[]", '{"weight_map": []}', "{}", '{"weight_map": {"a": {}}}'):
        (tmp_path / INDEX_FILE).write_text(broken)
        with pytest.raises(UserError, match="not a safetensors index"):
            read_params(tmp_path, CONFIG)


def test_folder_without_readable_safetensors_is_refused(folder):
    data = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_params(folder, CONFIG)
    (folder / SINGLE_FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"neither .* nor .*pickle"):
        read_params(folder, CONFIG)


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"dtype.*'float8'"):
        write_params(tmp_path, CONFIG, tiny.params(CONFIG), dtype="float8")
