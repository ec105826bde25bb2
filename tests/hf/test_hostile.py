"""Model folders that lie, climb, explode or bring code: refused in one line, nothing of theirs run or followed."""

import ast
import dataclasses
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import cli
from launch.convert import ConvertConfig, main
from nrt_jax import checkpoints, hf, json_file
from nrt_jax.errors import MAX_LINE, UserError, one_line
from nrt_jax.hf.weights import INDEX_FILE, SINGLE_FILE
from nrt_jax.models import LoRAConfig, Model
from tests.hf import tiny
from tests.hostile import Target
from tests.hostile_readers import CONFIG, READERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """A model's folder."""
    hf.save(tmp_path / "model", Model(CONFIG), tiny.params(CONFIG), tiny.tokenizer())
    return tmp_path / "model"


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    base = tmp_path_factory.mktemp("targets")
    slow = ("data:", "tokenizer", "Orbax")
    chosen = [reader for reader in READERS if not reader.name.startswith(slow)]
    return [Target(reader, base / reader.name.replace(" ", "_").replace(":", "")) for reader in chosen]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_a_mutated_file_is_refused_or_read_right(targets, case):
    """A slice of tests/soak/fuzz.py."""
    for target in targets:
        target.accepts(case)


def rewrite(folder: Path, change, *, length: int | None = None, extra: bytes = b"") -> None:
    """Rewrites the header of a folder's safetensors file; `change` takes and returns it, as an object or as text."""
    data = (folder / SINGLE_FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8 : 8 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / SINGLE_FILE).write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :] + extra
    )


OTHER = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


def tensor(name=NORM, **changes):
    return lambda header: header | {name: header[name] | changes}


def shifted(by: int):
    return lambda header: tensor(data_offsets=[offset + by for offset in header[NORM]["data_offsets"]])(header)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: tensor(data_offsets=header[EMBEDDING]["data_offsets"])(header),  # overlapping
        shifted(4),
        shifted(-(2**20)),
        shifted(2**40),
        tensor(data_offsets=[0, 2**64]),
        tensor(data_offsets=[32, 0]),
        tensor(data_offsets=[0.5, 32.5]),
        tensor(shape=[-8]),
        tensor(shape=[2**62, 8]),
        tensor(shape=[2**40]),
        tensor(shape="8"),
        tensor(dtype="F64"),
        tensor(dtype="O"),
        lambda header: json.dumps(header)[:-1].encode() + b", " + json.dumps({NORM: OTHER}).encode()[1:],  # twice
        lambda header: b"[" * 100_000,
        lambda header: b'{"a":' * 100_000,
        lambda header: b"\xff\xfe" + json.dumps(header).encode(),
        lambda header: b"",
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused_by_the_name_of_its_file(folder, change):
    rewrite(folder, change)
    with pytest.raises(
        UserError, match=r"model\.safetensors: not a readable safetensors file: .*; expected a whole one"
    ):
        hf.load(folder)


@pytest.mark.parametrize("length", [0, 7, 10**6, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_header_length_that_the_file_has_not_is_refused(folder, length):
    rewrite(folder, lambda header: header, length=length)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        hf.load(folder)


def test_bytes_that_no_tensor_owns_are_refused(folder):
    rewrite(folder, lambda header: header, extra=b"hidden")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        hf.load(folder)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_hidden_layers": 10**9}, r"tensor model\.layers\.1\..*: missing"),  # not a list of 10^10 names first
        ({"num_hidden_layers": 2**31}, "num_hidden_layers: found 2147483648; expected a positive integer below"),
        ({"vocab_size": 10**9}, r"model\.embed_tokens\.weight: found shape \(13, 8\)"),
        ({"hidden_size": 10**400}, "hidden_size: found 1000.*below 2"),
        ({"head_dim": -2}, "head_dim: found -2"),
        ({"rope_theta": 10**400}, "rope_theta: found 1000"),
        ({"rms_norm_eps": 1e300}, "rms_norm_eps: found 1e.300; expected .* float32"),
        ({"rms_norm_eps": [[None]]}, r"rms_norm_eps: found \[\[None\]\]"),
        ({"max_position_embeddings": {"a": None}}, "max_position_embeddings: found {'a': None}"),
        ({"model_type": "\ud800\0\x1b[2J"}, "model_type: "),
        ({"rope_scaling": [None]}, r"rope_scaling: found \[None\]; expected an object"),
    ],
)
def test_an_absurd_config_is_refused_before_memory_is_taken(folder, changes, line):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=line) as error:
        hf.load(folder)
    assert one_line(error.value).isprintable() and len(one_line(error.value)) <= MAX_LINE + 5


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 100 levels"),
        (b'{"a":' * 101 + b"{}" + b"}" * 101, "nested deeper than 100 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": "' + b"x" * json_file.MAX_BYTES + b'"}', "larger than 16,777,216 bytes"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xed\xa0\x80"}', "utf-8"),
        (b'{"a": "\0"}', "control character"),
        (b"\0" * 100, "Expecting value"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_bombs_are_one_line(folder, content, problem, name, tmp_path, capsys):
    (folder / name).write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        cli.run(main, ConvertConfig, "", "", args=["from-hf", str(folder), str(tmp_path / "out")]) or to_hf(folder)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and f"{name}: cannot be read as JSON" in error
    assert problem in error and not (tmp_path / "out").exists()


def to_hf(folder: Path) -> None:
    """Reads generation_config.json, which from-hf only copies."""
    orbax = folder.parent / "out"
    args = ["to-hf", str(orbax), str(folder.parent / "again")]
    try:
        cli.run(main, ConvertConfig, "", "", args=args)
    finally:
        shutil.rmtree(orbax)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder):
    for name in ("config.json", SINGLE_FILE):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=rf"{name}: .*no regular file|found neither"):
            hf.load_model(folder)
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)
    hf.load_model(folder)


def in_cache(folder: Path, cache: Path) -> Path:
    """The folder as the hub's client keeps it: a snapshot of links to blobs."""
    snapshot = cache / "models--org--name" / "snapshots" / "abc"
    blobs = cache / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"{i:040x}")
    return snapshot


def test_links_of_a_hubs_cache_are_followed_and_links_to_elsewhere_are_not_copied(folder, tmp_path):
    snapshot = in_cache(folder, tmp_path / "hub")
    hf.load(snapshot)
    (tmp_path / "copy").mkdir()
    hf.copy_description(snapshot, tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").read_bytes() == (folder / "config.json").read_bytes()

    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (folder / "tokenizer.model").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(
        UserError, match=r"tokenizer\.model: is a link to .*id_rsa, outside of its folder; expected a file"
    ):
        hf.copy_description(folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / "tokenizer.model").exists()


def test_an_index_names_files_of_its_folder_only(folder, tmp_path):
    shutil.copyfile(folder / SINGLE_FILE, tmp_path / "outside.safetensors")
    (folder / SINGLE_FILE).unlink()
    for name in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "a\0.safetensors",
        "..",
        "nowhere.safetensors",
    ):
        (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {NORM: name}}))
        with pytest.raises(UserError, match=r"expected a file name in this folder|not a readable safetensors file"):
            hf.load_model(folder)


PLANTED = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
class Tokenizer: pass
class Model: pass
class Config: pass
"""


def test_code_beside_a_model_is_never_imported(folder, tmp_path):
    mark = tmp_path / "mark"
    for name in ("planted", "tokenization_planted", "modeling_planted", "configuration_planted"):
        (folder / f"{name}.py").write_text(PLANTED.format(mark=str(mark)))
    auto = {"AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"], "AutoConfig": "planted.Config"}
    auto |= {"AutoModelForCausalLM": "planted.Model"}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"auto_map": auto, "trust_remote_code": True}))
    before = set(sys.modules)
    for tokenizer_class in (None, "Tokenizer", "PlantedTokenizer"):
        content = json.loads((folder / "tokenizer_config.json").read_text())
        content |= {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        try:
            checkpoints.load(folder)
        except UserError as error:
            assert "cannot load its tokenizer" in str(error)
    assert not mark.exists()
    assert not [name for name in set(sys.modules) - before if "planted" in name]


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return (Path(self.mark).touch, ())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.pkl"])
def test_pickles_are_named_and_never_loaded(folder, tmp_path, name):
    import pickle

    (folder / SINGLE_FILE).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(
        UserError, match=r"expected a checkpoint in safetensors \(pytorch_model.bin is pickle, which is never"
    ):
        hf.load(folder)
    assert not (tmp_path / "mark").exists()


def test_a_pickled_adapter_is_named_and_never_loaded(folder, tmp_path):
    import pickle

    adapter = hf.Adapter(LoRAConfig(rank=2, alpha=4.0), str(folder))
    (tmp_path / "adapter").mkdir()
    hf.write_adapter_config(tmp_path / "adapter", adapter, CONFIG)
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(UserError, match=r"found adapter_model\.bin, which is pickle and never read"):
        checkpoints.load(tmp_path / "adapter")
    assert not (tmp_path / "mark").exists()


def test_no_module_unpickles_evaluates_or_trusts_remote_code():
    """Parquet, Arrow, safetensors, JSON and Orbax are what is read; Python files are a user's own configs."""
    banned_modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
    for path in [*(ROOT / "nrt_jax").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                )
                assert banned_modules.isdisjoint(name.split(".")[0] for name in names), path
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec"), path
                is_safe = {k.arg: ast.unparse(k.value) for k in node.keywords}.get("allow_pickle") == "False"
                assert is_safe or name not in ("np.load", "numpy.load"), path
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("trust_remote_code", "False") == "False", path
                assert not name.endswith("Tokenizer.from_pretrained") or "trust_remote_code" in keywords, path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"r": 10**9}, r"found shape .*expects \(1000000000, 8\)"),
        ({"r": 10**400}, "r, lora_alpha: found 1000"),
        ({"lora_alpha": float("nan")}, "r, lora_alpha: found 2, nan"),
        ({"lora_alpha": 10**400}, "r, lora_alpha: found 2, 1000"),
        ({"lora_alpha": True}, "r, lora_alpha: found 2, True"),
        ({"trainable_token_indices": {"embed_tokens": [3, 3]}}, "expected the same list of different ids"),
        ({"trainable_token_indices": {"embed_tokens": [2**40]}}, "trainable_token_indices"),
        ({"base_model_name_or_path": "a\0b"}, "base model cannot be found"),
        ({"base_model_name_or_path": "\ud800"}, "base model cannot be found"),
    ],
)  # fmt: skip
def test_an_absurd_adapter_is_refused(folder, tmp_path, changes, line):
    lora = LoRAConfig(rank=2, alpha=4.0)
    hf.save_adapter(tmp_path / "a", hf.Adapter(lora, str(folder)), CONFIG, adapter_params(), tiny.tokenizer())
    checkpoints.load(tmp_path / "a")
    path = tmp_path / "a" / hf.ADAPTER_CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=line) as error:
        checkpoints.load(tmp_path / "a")
    assert one_line(error.value).isprintable()


def adapter_params():
    import jax

    from nrt_jax.models import lora

    model = Model(CONFIG, lora=LoRAConfig(rank=2, alpha=4.0))
    return lora.split(model, tiny.params(CONFIG), [], jax.random.key(0))[0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda vocab: vocab | {"far": 13}, r"vocab_size: the embedding has 13 rows, .* largest id is 13"),
        (lambda vocab: vocab | {"far": 2**32 - 1}, "largest id is 4294967295"),
        (lambda vocab: vocab | {"far": -1}, "cannot load its tokenizer"),
        (lambda vocab: vocab | {"far": 2**70}, "cannot load its tokenizer"),
    ],
)
def test_a_tokenizer_that_disagrees_with_the_vocabulary_is_refused(folder, change, line):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = change(content["model"]["vocab"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=line):
        hf.load(folder)


def test_an_unknown_token_that_is_not_in_the_vocabulary_is_refused(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["unk_token"] = "nowhere"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot load its tokenizer: .*unknown, 'nowhere', is not in"):
        hf.load_tokenizer(folder)


def test_a_special_token_outside_the_embedding_is_refused(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"additional_special_tokens": [f"<{i}>" for i in range(9)]})
    )
    with pytest.raises(UserError, match="vocab_size: the embedding has 13 rows"):
        hf.load(folder)


def test_what_is_printed_of_an_error_is_one_bounded_line_without_terminal_codes():
    line = one_line(UserError("name: \x1b[2J\n\0\ud800 " + "x" * 10**6 + " expected a y"))
    assert line.startswith(r"name: \x1b[2J \x00\ud800 xxx") and line.endswith("x expected a y")
    assert len(line) <= MAX_LINE + 5 and line.isprintable() and line.isascii()
    assert one_line(UserError("größer  als\n\nπ")) == "größer als π"


def test_an_orbax_checkpoint_cannot_claim_more_than_its_files_hold(tmp_path):
    """Zarr fills with zeros what is not there: a few bytes would become any amount of memory."""
    import orbax.checkpoint as ocp

    huge = dataclasses.replace(CONFIG, vocab_size=2**28)
    (tmp_path / "config.json").write_text(json.dumps(hf.to_hf(huge)))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "params", args=ocp.args.PyTreeSave(tiny.params(CONFIG)))
    for path in (tmp_path / "params").rglob(".zarray"):
        content = json.loads(path.read_text())
        content["shape"] = [2**28 if size == 13 else size for size in content["shape"]]
        path.write_text(json.dumps(content))
    location = checkpoints.locate(tmp_path)
    with pytest.raises(UserError, match=r"params: its arrays claim [\d,]+ bytes, but its files have"):
        checkpoints.restore_params(location, Model(huge))
