"""launch.merge: folders in and out, what is kept of them, and what is refused before anything is written."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from launch import cli, merge
from nrt_jax import hf, merging
from nrt_jax.errors import UserError
from nrt_jax.models import Model
from tests.hf.tiny import LLAMA, params, tokenizer

TIED = dataclasses.replace(LLAMA, tie_embeddings=True)


def write(path, seed, config=LLAMA, dtype="float32", with_tokenizer=True, **options):
    hf.save(path, Model(config), params(config, seed), tokenizer() if with_tokenizer else None, dtype=dtype, **options)
    return str(path)


def run(*args):
    config = cli.parse(merge.MergeConfig, "prog", "", args=[str(arg) for arg in args])
    merge.main(config)
    return config


def tensors(folder):
    files = sorted(path for path in map(str, folder.glob("*.safetensors")))
    return {name: tensor for file in files for name, tensor in safetensors.numpy.load_file(file).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base in one file and models in shards."""
    root = tmp_path_factory.mktemp("models")
    write(root / "base", 0, generation_config={"temperature": 0.6})
    for seed, name in enumerate("abc", start=1):
        write(root / name, seed, max_shard_bytes=3000 * seed)
    return root


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["untied", "tied"])
def test_weights_1_0_0_give_the_first_model_bit_for_bit(tmp_path, dtype, config):
    names = [write(tmp_path / name, i, config, dtype) for i, name in enumerate("abc")]
    first = tensors(tmp_path / "a")
    for method in (["linear"], ["task", "--base", names[2]]):
        run("--models", *names, "--weights", 1, 0, 0, "--method", *method, "--output", tmp_path / method[0])
        merged = tensors(tmp_path / method[0])
        assert merged.keys() == first.keys()
        for name, tensor in first.items():
            assert merged[name].dtype == tensor.dtype and merged[name].tobytes() == tensor.tobytes()
        for file in ("config.json", "tokenizer.json"):
            assert (tmp_path / method[0] / file).read_bytes() == (
                tmp_path / ("a" if method == ["linear"] else "c") / file
            ).read_bytes()


METHODS = {
    "linear": lambda base, x: merging.linear(x, (1.0, 0.2, 0.1)),
    "linear --normalize false": lambda base, x: merging.linear(x, (1.0, 0.2, 0.1), normalize=False),
    "task --lambda 0.5": lambda base, x: merging.task_arithmetic(base, x, (1.0, 0.2, 0.1), scale=0.5),
    "ties --density 0.3": lambda base, x: merging.ties(base, x, (1.0, 0.2, 0.1), density=0.3),
    "ties --density 0.3 --lambda 2 --normalize false": lambda base, x: merging.ties(
        base, x, (1.0, 0.2, 0.1), density=0.3, scale=2.0, normalize=False
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_merged_by_the_method_with_its_numbers(folders, tmp_path, method):
    models = [folders / name for name in "abc"]
    run("--base", folders / "base", "--models", *models, "--weights", 1.0, 0.2, 0.1, "--method", *method.split(),
        "--output", tmp_path / "merged", "--max-shard-size", "3KB")  # fmt: skip
    base, x = tensors(folders / "base"), [tensors(model) for model in models]
    merged = tensors(tmp_path / "merged")
    assert merged.keys() == base.keys()
    for name in base:
        np.testing.assert_array_equal(merged[name], METHODS[method](base[name], [model[name] for model in x]))
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == base.keys() and len(set(index["weight_map"].values())) > 1
    model, loaded, _ = hf.load(tmp_path / "merged")  # a folder like any other
    assert model.config == LLAMA and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))


def test_slerp_goes_from_the_first_model_to_the_second(folders, tmp_path):
    run("--models", folders / "a", folders / "b", "--method", "slerp", "--t", 0.3, "--output", tmp_path / "merged")
    a, b = tensors(folders / "a"), tensors(folders / "b")
    for name, tensor in tensors(tmp_path / "merged").items():
        np.testing.assert_array_equal(tensor, merging.slerp(a[name], b[name], 0.3))


def test_what_dare_drops_is_decided_by_the_seed_and_not_by_shards_or_runs(folders, tmp_path):
    def merged(name, *options):
        run("--base", folders / "base", "--models", folders / "a", folders / "b", "--density", 0.4,
            "--output", tmp_path / name, *options)  # fmt: skip
        return tensors(tmp_path / name)

    first = merged("first", "--method", "dare")
    again = merged("again", "--method", "dare", "--max-shard-size", "2KB")
    other = merged("other", "--method", "dare", "--seed", 1)
    elected = merged("elected", "--method", "dare_ties")
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    for different in (other, elected):
        assert any(not np.array_equal(first[name], different[name]) for name in first)
    name = "model.layers.0.mlp.up_proj.weight"
    base, a = tensors(folders / "base")[name], tensors(folders / "a")[name]
    run("--base", folders / "base", "--models", folders / "a", "--density", 0.4, "--method", "dare",
        "--output", tmp_path / "one")  # fmt: skip
    one = tensors(tmp_path / "one")[name]
    dropped = one == base
    gate = name.replace("up", "gate")  # of the same shape
    assert ((tensors(tmp_path / "one")[gate] == tensors(folders / "base")[gate]) != dropped).any()
    assert 0.3 < dropped.mean() < 0.9
    np.testing.assert_allclose(one[~dropped], (base + (a - base) / 0.4)[~dropped], rtol=1e-5, atol=1e-5)


def test_dtype_is_that_asked_for_in_tensors_and_config(folders, tmp_path):
    run("--models", folders / "a", folders / "b", "--dtype", "bfloat16", "--output", tmp_path / "merged")
    a, b = tensors(folders / "a"), tensors(folders / "b")
    for name, tensor in tensors(tmp_path / "merged").items():
        assert tensor.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensor, merging.linear([a[name], b[name]], (1, 1)).astype(ml_dtypes.bfloat16))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config.get("dtype") or config["torch_dtype"]) == "bfloat16"


def refused(tmp_path, *args):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        run(*args)
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return str(error.value)


def test_models_that_do_not_fit_each_other_are_refused_by_the_first_field_or_tensor(folders, tmp_path):
    a, output = folders / "a", tmp_path / "merged"
    wide = write(tmp_path / "wide", 0, dataclasses.replace(LLAMA, intermediate_size=16))
    assert "intermediate_size is 16, that of" in refused(tmp_path, "--models", a, wide, "--output", output)
    rope = write(tmp_path / "rope", 0, dataclasses.replace(LLAMA, rope=dataclasses.replace(LLAMA.rope, theta=5e5)))
    assert "config.json: rope is" in refused(tmp_path, "--models", a, rope, "--output", output)

    words = json.loads((folders / "b" / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["one"], vocabulary["two"] = vocabulary["two"], vocabulary["one"]
    other = write(tmp_path / "other", 2)
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(words))
    line = refused(tmp_path, "--models", a, other, "--output", output)
    assert f"{other}: tokenizer: token 'one' has id 5, that of {a} id 4" in line

    short = write(tmp_path / "short", 3)
    stored = safetensors.numpy.load_file(tmp_path / "short" / "model.safetensors")
    stored["model.norm.weight"] = stored["model.norm.weight"][:5]
    safetensors.numpy.save_file(stored, tmp_path / "short" / "model.safetensors")
    line = refused(tmp_path, "--models", a, short, "--output", output)
    assert line.startswith(f"{short}: tensor model.norm.weight: found shape (5,)")
    del stored["model.norm.weight"]
    safetensors.numpy.save_file(stored, tmp_path / "short" / "model.safetensors")
    line = refused(tmp_path, "--models", a, short, "--output", output)
    assert line.startswith(f"{short}: tensor model.norm.weight: missing")


def test_a_folder_without_tokenizer_is_merged_with_one_that_has_it(folders, tmp_path):
    bare = write(tmp_path / "bare", 4, with_tokenizer=False)
    run("--models", folders / "a", bare, "--output", tmp_path / "merged")
    assert hf.load(tmp_path / "merged")[2].get_vocab() == tokenizer().get_vocab()


def test_values_that_are_not_finite_leave_nothing_behind(folders, tmp_path):
    broken = write(tmp_path / "broken", 5)
    stored = safetensors.numpy.load_file(tmp_path / "broken" / "model.safetensors")
    stored["model.norm.weight"][2] = np.nan
    safetensors.numpy.save_file(stored, tmp_path / "broken" / "model.safetensors")
    line = refused(tmp_path, "--models", folders / "a", broken, "--output", tmp_path / "merged")
    assert line == "tensor model.norm.weight: merged, some of its values are not finite; expected finite models"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--weights 1", "--weights: 1 for 2 models; expected one for each model"),
        ("--weights 1 nan", "--weights: (1.0, nan); expected finite numbers"),
        ("--weights 1 -1", "--weights: the sum of (1.0, -1.0) is 0; expected another, or --normalize false"),
        ("--method ties", "--base: none for ties; expected a folder"),
        ("--method dare --base x --density 0", "--density: 0.0; expected a number above 0 and at most 1"),
        ("--method dare --base x --density nan", "--density: nan; expected a number above 0 and at most 1"),
        ("--method slerp --t 1.5", "--t: 1.5; expected a number from 0 to 1"),
        ("--method slerp --weights 1 1", "--weights: 2 for slerp; expected none: --t is its only number"),
        ("--method task --base x --lambda inf", "--lambda: inf; expected a finite number"),
        ("--seed -1", "--seed: -1; expected 0 or more"),
        ("--max-shard-size big", "--max-shard-size: bad value 'big'; expected a size such as 500MB or 5GB"),
        ("--lamda 2", "unknown field --lamda; did you mean --lambda?"),
        ("--lambda x", "--lambda: bad value 'x'; expected float"),
        ("--normalize maybe", "--normalize: bad value 'Maybe'; expected True or False or None"),
    ],
)
def test_bad_options_are_one_clear_line(folders, tmp_path, options, line):
    found = refused(
        tmp_path, "--models", folders / "a", folders / "b", "--output", tmp_path / "merged", *options.split()
    )
    assert found == line


def test_other_bad_uses_are_one_clear_line(folders, tmp_path):
    a = folders / "a"
    assert refused(tmp_path, "--models", a, "--method", "slerp", "--output", tmp_path / "x").startswith(
        "--models: 1 for"
    )
    assert "no such folder" in refused(tmp_path, "--models", tmp_path / "none", "--output", tmp_path / "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    assert "exists and is not empty" in refused(tmp_path, "--models", a, "--output", tmp_path / "mine")
    assert "is no model's folder" in refused(tmp_path, "--models", a, "--output", tmp_path / "mine", "--overwrite")
    inside = refused(tmp_path, "--models", a, folders / "b", "--output", folders / "b", "--overwrite")
    assert inside.startswith(f"--output: {folders / 'b'} is or holds what is read")


def test_overwrite_replaces_a_model(folders, tmp_path):
    for weights in ((1, 0), (0, 1)):
        run("--models", folders / "a", folders / "b", "--weights", *weights, "--output", tmp_path / "m", "--overwrite")
    merged, b = tensors(tmp_path / "m"), tensors(folders / "b")
    assert all(merged[name].tobytes() == b[name].tobytes() for name in b)


def test_normalize_is_a_flag_and_lambda_is_spelt_as_in_the_papers(folders, tmp_path):
    options = ("--method", "task", "--lambda=0.25", "--normalize", "--output", tmp_path / "m")
    config = run("--base", folders / "base", "--models", folders / "a", *options)
    assert (config.lambda_, config.normalize) == (0.25, True)
