"""Every reader of files that others make, with valid input for it and a rule for what it accepts."""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import datasets
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from nrt_jax import checkpoints, checksums, hf, jsonl
from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.data.example import BadRow, Example
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import open_rows
from nrt_jax.errors import UserError
from nrt_jax.evaluation import generation
from nrt_jax.hf.weights import INDEX_FILE, SINGLE_FILE
from nrt_jax.models import LoRAConfig, Model, ModelConfig
from nrt_jax.training import workdir
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import from_dict, to_dict
from nrt_jax.training.metrics import read_metrics
from tests.data.common import RELEASE
from tests.fixtures_run import CHAT_TEMPLATE, examples, tokenizer
from tests.hf import tiny
from tests.hostile import Reader, edit_bytes, edit_json, edit_json_line, edit_safetensors, or_bytes

CONFIG = dataclasses.replace(tiny.LLAMA, num_layers=1, rope=tiny.LLAMA3_ROPE)
TIED = dataclasses.replace(CONFIG, tie_embeddings=True)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROWS = [dataclasses.asdict(example) for example in examples(4)]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read_weights(folder: Path, config: ModelConfig = CONFIG) -> None:
    """What is read is what the safetensors library reads."""
    found = hf.read_params(folder, config)
    theirs = {}
    for path in folder.glob("*.safetensors"):
        theirs |= safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(found["final_norm"], theirs["model.norm.weight"])
    np.testing.assert_array_equal(found["embedding"], theirs[EMBEDDING])
    shapes = jax.tree.map(lambda leaf: leaf.shape, found)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, Model(config).abstract_params())


def read_tied(folder: Path) -> None:
    """A head that is accepted is the embedding."""
    read_weights(folder, TIED)
    with safetensors.safe_open(folder / SINGLE_FILE, framework="numpy") as file:
        if HEAD in set(file.keys()):
            np.testing.assert_array_equal(file.get_tensor(HEAD), file.get_tensor(EMBEDDING))


def params(config: ModelConfig):
    """Small whole numbers; made without compiling anything."""
    shapes = Model(config).abstract_params()
    return jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape), shapes)


def write_weights(folder: Path) -> None:
    hf.write_params(folder, CONFIG, params(CONFIG))


def write_tied(folder: Path) -> None:
    """With a head of its own, as some writers store it."""
    hf.write_params(folder, TIED, params(TIED))
    tensors = safetensors.numpy.load_file(folder / SINGLE_FILE)
    safetensors.numpy.save_file(tensors | {HEAD: tensors[EMBEDDING]}, folder / SINGLE_FILE)


def write_shards(folder: Path) -> None:
    hf.write_params(folder, CONFIG, params(CONFIG), max_shard_bytes=1000)


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(hf.to_hf(CONFIG)))


def read_config(folder: Path) -> None:
    """A config that is accepted says what it said when it is written and read again, and a model can be made of it."""
    config = hf.read_config(folder)
    assert hf.from_hf(hf.to_hf(config)) == config
    assert all(0 < size < 2**31 for size in (config.vocab_size, config.hidden_size, config.num_layers))
    assert config.num_heads % config.num_kv_heads == 0


def write_adapter(folder: Path) -> None:
    adapter = hf.Adapter(LoRAConfig(rank=2, alpha=4.0), "/no/where", (3, 5))
    hf.write_adapter_config(folder, adapter, CONFIG)


def read_adapter(folder: Path) -> None:
    adapter = hf.read_adapter_config(folder)
    assert np.isfinite(np.float32(adapter.lora.alpha)) and 0 < adapter.lora.rank < 2**31
    (folder / "again").mkdir(exist_ok=True)
    hf.write_adapter_config(folder / "again", adapter, CONFIG)
    assert hf.read_adapter_config(folder / "again") == adapter


def write_tokenizer(folder: Path) -> None:
    chatty = copy.deepcopy(tokenizer())
    chatty.chat_template = CHAT_TEMPLATE
    hf.save_tokenizer(folder, chatty)
    (folder / "config.json").write_text(json.dumps(hf.to_hf(CONFIG)))


def read_tokenizer(folder: Path) -> None:
    """Ids of any text have rows in the embedding."""
    loaded = hf.load_tokenizer(folder)
    config = dataclasses.replace(CONFIG, vocab_size=600)
    hf.check_vocabulary(loaded, config)
    encoded = encode(loaded, TextConfig(template="{question}"))
    stop = generation.stop_ids(folder, loaded, config.vocab_size)
    ids = [*encoded.prompt, *encoded.answer, *encoded.trace, *stop, *generation.prompt_ids(loaded, "What? é\0")]
    assert all(0 <= i < config.vocab_size for i in ids)


def encode(loaded, text: TextConfig):
    trace_format = dataclasses.replace(RELEASE, eos=1, delimiter=2)
    example = Example("What is 4 plus é\u3042 <eos>?", "It is 7.", "4 + 3\0")
    return Encoder(loaded, trace_format, text).encode(example)


def write_template(folder: Path) -> None:
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE)


def read_template(folder: Path) -> None:
    """What is accepted renders the question."""
    try:
        made = encode(tokenizer(), TextConfig(chat_template=str(folder / "chat.jinja")))
    except BadRow:
        return
    assert "What is 4 plus" in tokenizer().decode(made.prompt)


def write_jsonl(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def read_jsonl(folder: Path) -> None:
    """Rows are those of a parser without bounds, and can be written."""
    rows = jsonl.read(str(folder / "rows.jsonl"), field="input", adds=("completion",))
    lines = (folder / "rows.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [row.values for row in rows] == [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        row.text("question")
    jsonl.write(str(folder / "out.jsonl"), rows, field="output")
    (folder / "out.jsonl").unlink()


def read_rows(name: str):
    """Each row is an example of valid text, or a bad row that is named."""

    def read(folder: Path) -> None:
        source = open_rows(str(folder / name), DataConfig())
        assert all(isinstance(column, str) for column in source.columns())
        for i in range(len(source)):
            try:
                example = parse(source[i], DataConfig())
            except BadRow as problem:
                assert problem.reason and source.where(i)
                continue
            texts = (example.question, example.answer, example.trace or "", *(text for _, text in example.history))
            assert "".join(texts).encode() and example.question.strip()

    return read


def write_parquet(folder: Path) -> None:
    table = pa.Table.from_pylist([row | {"messages": TURNS} for row in ROWS])
    pq.write_table(table, folder / "rows.parquet", row_group_size=2)


def write_arrow(folder: Path) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([row | {"messages": TURNS} for row in ROWS]).save_to_disk(str(folder / "saved"))


def write_json(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps({"version": 1, "rows": [*ROWS, {"messages": TURNS}]}))


def write_run(folder: Path) -> None:
    config = TrainConfig(model="m", data=("rows.jsonl",), workdir="w")
    (folder / "config.json").write_text(json.dumps(to_dict(config)))


def read_run(folder: Path) -> None:
    config = from_dict(TrainConfig, workdir.read_config(folder), where="config.json")
    json.dumps(to_dict(config))


def write_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6}))


def read_generation(folder: Path) -> None:
    assert all(0 <= i < 500 for i in generation.stop_ids(folder, tokenizer(), 500))


def write_metrics(folder: Path) -> None:
    lines = [{"step": i, "time": 1.5, "loss": 0.5, "reward": None} for i in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_run_metrics(folder: Path) -> None:
    assert all(type(record["step"]) is int for record in read_metrics(folder / "metrics.jsonl"))


def write_checksums(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(name)
    checksums.write(folder)


def read_checksums(folder: Path) -> None:
    """Digests that are accepted are the files'."""
    if damage := checksums.find_damage(folder):
        raise UserError(damage)
    digests = json.loads((folder / checksums.FILE).read_text())
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digests[name] for name in digests)


ORBAX_CONFIG = ModelConfig(
    vocab_size=5, hidden_size=2, intermediate_size=2, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2
)


def write_orbax(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(hf.to_hf(ORBAX_CONFIG)))
    checkpoints.save_params(folder, params(ORBAX_CONFIG))


def read_orbax(folder: Path) -> None:
    model = Model(ORBAX_CONFIG)
    restored = checkpoints.restore_params(checkpoints.locate(folder), model)
    jax.tree.map(
        lambda leaf, wanted: np.testing.assert_equal(leaf.shape, wanted.shape), restored, model.abstract_params()
    )


READERS = (
    Reader("safetensors", write_weights, (SINGLE_FILE,), or_bytes(edit_safetensors), read_weights),
    Reader("safetensors, tied", write_tied, (SINGLE_FILE,), or_bytes(edit_safetensors), read_tied),
    Reader("safetensors index", write_shards, (INDEX_FILE,), or_bytes(edit_json), read_weights),
    Reader("config.json", write_config, ("config.json",), or_bytes(edit_json), read_config),
    Reader("adapter_config.json", write_adapter, ("adapter_config.json",), or_bytes(edit_json), read_adapter),
    Reader(
        "generation_config.json", write_generation, ("generation_config.json",), or_bytes(edit_json), read_generation
    ),
    Reader(
        "tokenizer",
        write_tokenizer,
        ("tokenizer.json", "tokenizer_config.json", "config.json"),
        or_bytes(edit_json),
        read_tokenizer,
    ),
    Reader("chat template", write_template, ("chat.jinja",), edit_bytes, read_template),
    Reader("JSONL of commands", write_jsonl, ("rows.jsonl",), or_bytes(edit_json_line), read_jsonl),
    Reader("data: JSONL", write_jsonl, ("rows.jsonl",), or_bytes(edit_json_line), read_rows("rows.jsonl")),
    Reader("data: JSON", write_json, ("rows.json",), or_bytes(edit_json), read_rows("rows.json")),
    Reader("data: Parquet", write_parquet, ("rows.parquet",), edit_bytes, read_rows("rows.parquet")),
    Reader(
        "data: Arrow folder, its JSON",
        write_arrow,
        ("saved/state.json", "saved/dataset_info.json"),
        or_bytes(edit_json),
        read_rows("saved"),
    ),
    Reader(
        "data: Arrow folder, its rows",
        write_arrow,
        ("saved/data-00000-of-00001.arrow",),
        edit_bytes,
        read_rows("saved"),
    ),
    Reader("run: config.json", write_run, ("config.json",), or_bytes(edit_json), read_run),
    Reader("run: metrics.jsonl", write_metrics, ("metrics.jsonl",), or_bytes(edit_json_line), read_run_metrics),
    Reader("run: checksums.json", write_checksums, (checksums.FILE,), or_bytes(edit_json), read_checksums),
    Reader(
        "Orbax: its JSON",
        write_orbax,
        ("params/_METADATA", "params/_CHECKPOINT_METADATA"),
        or_bytes(edit_json),
        read_orbax,
    ),
)
