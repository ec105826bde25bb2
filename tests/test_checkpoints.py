"""Any checkpoint under one name, and conversion there and back."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from launch import cli
from launch.convert import ConvertConfig, main
from nrt_jax import checkpoints, hf
from nrt_jax.errors import UserError
from nrt_jax.models import Model
from tests.hf import tiny

MODEL = Model(tiny.LLAMA)


def convert(*args):
    cli.run(main, ConvertConfig, "python -m launch.convert", main.__doc__, args=[str(arg) for arg in args])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A sharded bfloat16 folder with keys that we do not know, as others publish them."""
    folder = tmp_path_factory.mktemp("published") / "hf"
    params = tiny.params(tiny.LLAMA)
    hf.save(folder, MODEL, params, tiny.tokenizer(), dtype="bfloat16", max_shard_bytes=2000)
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "4.43.0", "a_key_of_theirs": [1, {"x": None}], "eos_token_id": [2, 8]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(b"\x00sentencepiece")
    (folder / "modeling_x.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(scope="module")
def orbax(source):
    convert("from-hf", source, source.parent / "orbax")
    return source.parent / "orbax"


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


def test_from_hf_then_to_hf_keeps_every_tensor_every_key_and_every_file(source, orbax, tmp_path):
    convert("to-hf", orbax, tmp_path / "again", "--max-shard-size", "3kB")
    before, after = tensors(source), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape)
        assert tensor.tobytes() == after[name].tobytes()
    files = sorted(path.name for path in source.iterdir() if path.suffix not in (".safetensors", ".py"))
    assert files == sorted(p.name for p in (tmp_path / "again").iterdir() if p.suffix != ".safetensors")
    for name in files:
        if name.endswith(".json") and not name.endswith("index.json"):
            assert json.loads((source / name).read_text()) == json.loads((tmp_path / "again" / name).read_text())
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == b"\x00sentencepiece"


def test_a_chosen_dtype_is_written_and_named(orbax, tmp_path):
    convert("to-hf", orbax, tmp_path / "x", "--dtype", "float32")
    assert {tensor.dtype for tensor in tensors(tmp_path / "x").values()} == {np.dtype("float32")}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["torch_dtype"] == "float32"
    convert("from-hf", tmp_path / "x", tmp_path / "half", "--dtype", "float16")
    convert("to-hf", tmp_path / "half", tmp_path / "y")
    assert {tensor.dtype for tensor in tensors(tmp_path / "y").values()} == {np.dtype("float16")}


@pytest.mark.parametrize(("dtype", "param_dtype"), [("float32", None), ("bfloat16", None), ("bfloat16", "float32")])
def test_an_orbax_checkpoint_loads_as_the_folder_that_it_came_from(source, orbax, dtype, param_dtype):
    model, params, tokenizer = checkpoints.load(orbax, dtype=dtype, param_dtype=param_dtype)
    expected_model, expected, _ = checkpoints.load(source, dtype=dtype, param_dtype=param_dtype)
    assert model == expected_model
    assert model.config.dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(param_dtype or dtype)}
    assert tokenizer.encode("one plus two") == tiny.tokenizer().encode("one plus two")


def test_conversion_never_touches_an_existing_folder_unless_told_to(source, orbax, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    for args in (("from-hf", source), ("to-hf", orbax)):
        with pytest.raises(SystemExit) as stop:
            convert(*args, tmp_path / "mine")
        assert stop.value.code == 2
        assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine" / "note.txt").read_text() == "mine"
    with pytest.raises(SystemExit):  # what is no model's folder is never replaced
        convert("from-hf", source, tmp_path / "mine", "--overwrite")
    assert "is no model's folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "note.txt").read_text() == "mine"
    convert("from-hf", source, tmp_path / "other")
    convert("from-hf", source, tmp_path / "other", "--dtype", "float32", "--overwrite")
    assert checkpoints.open_params(checkpoints.locate(tmp_path / "other"), MODEL)["embedding"].dtype == np.float32


def test_conversion_never_replaces_what_it_reads(source, orbax, tmp_path, capsys):
    own = shutil.copytree(source, tmp_path / "all" / "hf")
    shutil.copytree(orbax, tmp_path / "all" / "orbax")
    (tmp_path / "all" / "config.json").write_text('{"model_type": "llama"}')  # looks like a model's folder
    for args in (("from-hf", own, own), ("to-hf", tmp_path / "all" / "orbax", tmp_path / "all")):
        with pytest.raises(SystemExit):
            convert(*args, "--overwrite")
        assert "is or holds what is read" in capsys.readouterr().err
    assert tensors(own).keys() == tensors(source).keys()
    assert (tmp_path / "all" / "orbax" / "params").is_dir()


@pytest.mark.parametrize("where", ["a_file/x", "a_file"])
def test_a_place_that_cannot_be_written_is_one_line(source, tmp_path, capsys, where):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(SystemExit) as stop:
        convert("from-hf", source, tmp_path / where)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and str(tmp_path / "a_file") in error


def test_a_link_to_a_folder_keeps_pointing_there(source, tmp_path):
    convert("from-hf", source, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert("from-hf", source, tmp_path / "link", "--overwrite")
    assert (tmp_path / "link").is_symlink()
    checkpoints.load(tmp_path / "real")


def test_config_json_names_the_dtype_that_the_tensors_have(source, orbax, tmp_path):
    """A run's params are float32 whatever its base's: under bfloat16, transformers would round them when it loads."""
    convert("from-hf", source, tmp_path / "wide", "--dtype", "float32")
    convert("to-hf", tmp_path / "wide", tmp_path / "out")
    for folder in ("wide", "out"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["torch_dtype"] == "float32"
    model, params, tokenizer = checkpoints.load(source)
    hf.save(tmp_path / "saved", model, params, tokenizer, dtype=None, source=source)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "float32"


def test_shipped_models_go_by_their_names_and_a_run_without_checkpoints_by_that(tmp_path):
    assert checkpoints.locate("tiny").description.is_dir()
    assert checkpoints.load("tiny")[0].config.num_parameters < 1e6
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="the run has no checkpoint yet"):
        checkpoints.load(tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncate", "metadata", "other model"])
def test_a_damaged_checkpoint_is_one_line_and_leaves_nothing(orbax, tmp_path, capsys, damage):
    broken = shutil.copytree(orbax, tmp_path / "broken")
    if damage == "truncate":
        for path in (broken / "params").rglob("*"):
            if path.is_file() and path.stat().st_size > 500 and "d" in path.parts:
                path.write_bytes(path.read_bytes()[:100])
    elif damage == "metadata":
        (broken / "params" / "_METADATA").write_text("{")
    else:
        config = json.loads((broken / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 16}))
    with pytest.raises(SystemExit) as stop:
        convert("to-hf", broken, tmp_path / "out")
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n"), error.startswith("error: ")) == (2, 1, True)
    assert str(broken / "params") in error
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_what_is_no_checkpoint_is_refused_in_words(source, tmp_path, capsys):
    with pytest.raises(UserError, match="is no checkpoint; expected a Hugging Face folder, a PEFT adapter's, an Orbax"):
        checkpoints.load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        checkpoints.load(tmp_path / "nowhere")
    for args, message in (
        (("to-hf", source, tmp_path / "x"), "is in Hugging Face format already"),
        (("to-hf", source), "DESTINATION: missing"),
        (("too-hf", source, "x"), "DIRECTION: bad value 'too-hf'"),
        (("to-hf", source, "x", "--max-shard-size", "5 apples"), "--max-shard-size: bad value '5 apples'"),
        (("to-hf", source, "x", "y"), "unexpected argument 'y'"),
    ):
        with pytest.raises(SystemExit):
            convert(*args)
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("1GiB", 2**30), ("2.5kb", 2500), ("7", 7), ("3 GB", 3_000_000_000)]
)
def test_sizes_are_read_as_the_field_writes_them(text, size):
    from launch.convert import num_bytes

    assert num_bytes(text) == size


def test_bfloat16_is_stored_as_itself(source, orbax):
    stored = checkpoints.open_params(checkpoints.locate(orbax), MODEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(stored["layers"]["q"][1], hf.read_params(source, MODEL.config)["layers"]["q"][1])
