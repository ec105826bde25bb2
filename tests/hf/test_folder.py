import fnmatch
import json

import huggingface_hub
import jax
import numpy as np
import pytest

from nrt_jax import hf
from nrt_jax.errors import UserError
from nrt_jax.hf import folder as folder_module
from nrt_jax.models import Model
from tests.hf import tiny

MODEL = Model(tiny.LLAMA)


@pytest.fixture
def saved(tmp_path):
    hf.save(tmp_path / "model", MODEL, tiny.params(tiny.LLAMA), tiny.tokenizer())
    return tmp_path / "model"


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_load_gives_back_what_save_was_given(saved):
    model, params, tokenizer = hf.load(saved)
    assert model == MODEL
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params(tiny.LLAMA))
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert tokenizer.encode("one plus two") == tiny.tokenizer().encode("one plus two")
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1  # all as readable as config.json
    assert hf.load_model(saved, dtype="bfloat16")[0].config.dtype == "bfloat16"


def test_config_files_carry_the_ids_and_the_dtype(tmp_path):
    generation = {"temperature": 0.7, "do_sample": True}
    hf.save(
        tmp_path / "x",
        MODEL,
        tiny.params(tiny.LLAMA),
        tiny.tokenizer(),
        dtype="bfloat16",
        generation_config=generation,
    )
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config.items() >= (ids | {"torch_dtype": "bfloat16", "model_type": "llama"}).items()
    assert json.loads((tmp_path / "x" / "generation_config.json").read_text()) == ids | generation


def test_source_folder_keeps_its_own_keys(saved, tmp_path):
    edit_json(saved / "config.json", eos_token_id=[2, 8], a_key_of_theirs={"x": 1}, head_dim=6)
    edit_json(saved / "generation_config.json", top_p=0.9, eos_token_id=[2, 8])
    model, params, tokenizer = hf.load(saved)
    model, params, tokenizer = hf.add_tokens(model, params, tokenizer, [f"<|{i}|>" for i in range(5)])
    hf.save(tmp_path / "again", model, params, tokenizer, source=saved)
    before, after = (json.loads((p / "config.json").read_text()) for p in (saved, tmp_path / "again"))
    assert after == before | {"vocab_size": 14}
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["top_p"] == 0.9
    assert len(hf.load(tmp_path / "again")[2]) == 14


def test_eos_of_the_tokenizer_joins_a_list_that_lacks_it(saved, tmp_path):
    for name in ("config.json", "generation_config.json"):
        edit_json(saved / name, eos_token_id=[7, 8])
    model, params, tokenizer = hf.load(saved)
    hf.save(tmp_path / "again", model, params, tokenizer, source=saved)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text())["eos_token_id"] == [7, 8, 2]


def test_an_existing_folder_is_replaced_only_when_told_to(saved):
    (saved / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        hf.save(saved, MODEL, tiny.params(tiny.LLAMA), tiny.tokenizer())
    assert (saved / "note.txt").exists()
    hf.save(saved, MODEL, tiny.params(tiny.LLAMA, seed=1), tiny.tokenizer(), overwrite=True)
    assert not (saved / "note.txt").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    np.testing.assert_array_equal(hf.load(saved)[1]["embedding"], tiny.params(tiny.LLAMA, seed=1)["embedding"])
    with pytest.raises(UserError, match="is a file"):
        hf.save(saved / "config.json", MODEL, tiny.params(tiny.LLAMA), overwrite=True)


def test_a_write_that_fails_leaves_no_half_folder(saved, monkeypatch):
    def full(folder, *args, **kwargs):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(folder_module, "write_params", full)
    for path in (saved.parent / "new", saved):
        with pytest.raises(UserError, match=r"cannot be written: No space left on device; nothing was changed"):
            hf.save(path, MODEL, tiny.params(tiny.LLAMA), tiny.tokenizer(), overwrite=True)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    hf.load(saved)


def test_a_folder_that_is_not_a_model_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        hf.load(tmp_path / "nowhere")
    edit_json(saved / "config.json", num_hidden_layers=4)
    with pytest.raises(UserError, match=r"tensor model\.layers\.3\..*missing"):
        hf.load(saved)
    edit_json(saved / "config.json", vocab_size=5)
    with pytest.raises(UserError, match=r"vocab_size.*5 rows"):
        hf.load(saved)
    for content, message in (("{", "cannot be read as JSON"), ("[]", "expected a JSON object")):
        (saved / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            hf.load_model(saved)
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        hf.load_model(saved)


def test_a_hub_id_is_downloaded_without_pickles_or_code(saved, monkeypatch):
    asked = {}

    def download(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model, params, _ = hf.load("someone/some-model")
    assert (model, asked["name"]) == (MODEL, "someone/some-model")
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params(tiny.LLAMA))

    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    assert all(wanted(path.name) for path in saved.iterdir())
    assert wanted("model-00001-of-00004.safetensors") and wanted("model.safetensors.index.json")
    assert wanted("tokenizer.model") and wanted("chat_template.jinja")
    assert not any(map(wanted, ("pytorch_model.bin", "modeling_x.py", "original/consolidated.00.pth", "README.md")))


def test_only_what_can_be_a_hub_id_is_looked_up_there(tmp_path, monkeypatch):
    def download(name, **_):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=r"someone/some-model: no such folder.*\(the hub: We couldn't connect\)$"):
        hf.load("someone/some-model")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for path in (tmp_path / "nowhere", "./no/where", "a/b/c", "nowhere"):
        with pytest.raises(UserError, match="no such folder"):
            hf.load(path)
