"""What tests of whole runs share: sums as questions, a small tokenizer, a tiny random model, a config, records."""

import functools
import json
import pathlib

import jax
from tensorboardX.proto.event_pb2 import Event

from nrt_jax import checkpoints, hf
from nrt_jax.data import Example
from nrt_jax.data.rows import DataConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.hf.tokenizer_training import train_tokenizer
from nrt_jax.models import Model, ModelConfig
from nrt_jax.training.config import CheckpointConfig, ReportConfig, RolloutConfig, TrainConfig
from nrt_jax.training.metrics import read_metrics
from nrt_jax.training.optimizer import OptimizerConfig
from nrt_jax.training.workdir import CONFIG_FILE

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def examples(num: int, start: int = 0) -> list[Example]:
    """Sums with their working as traces: no two alike."""
    return [Example(f"What is {i} plus 3?", f"It is {i + 3}.", f"{i} + 3 = {i + 3}") for i in range(start, start + num)]


@functools.cache
def tokenizer():
    """Byte-level BPE in which every word of `examples`, and every number below 100, is one token."""
    texts = [text for e in examples(24) for text in (e.question, e.answer, e.trace)]
    return train_tokenizer([*texts, *map(str, range(100))], vocab_size=400)


def write_rows(path: pathlib.Path, rows: list[Example]) -> pathlib.Path:
    """A JSONL file of question, answer and trace."""
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    return path


def write_model(folder: pathlib.Path) -> pathlib.Path:
    """A random Llama of one layer, in Hugging Face format."""
    config = ModelConfig(
        model_type="llama",
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
    )
    model = Model(config)
    hf.save(folder, model, model.init(jax.random.key(0)), tokenizer())
    return folder


def write_run(folder: pathlib.Path, monkeypatch, **sections: dict) -> str:
    """A run's folder with that model, and sections of its config; nothing else is a checkpoint while the test runs."""
    description = write_model(folder / checkpoints.DESCRIPTION)
    (folder / CONFIG_FILE).write_text(json.dumps(sections))
    monkeypatch.setattr(checkpoints, "locate", lambda path: checkpoints.Location(description, in_state=True))
    return str(folder)


def write_config(folder: pathlib.Path) -> TrainConfig:
    """A run of three steps, whose model and data are written into `folder`."""
    held_out = write_rows(folder / "test.jsonl", examples(5, start=50))
    return TrainConfig(
        model=str(write_model(folder / "model")),
        data=(str(write_rows(folder / "train.jsonl", examples(12))),),
        steps=3,
        updates_per_step=1,
        dataset=DataConfig(held_out=str(held_out)),
        rollout=RolloutConfig(prompts=4, group_size=2, max_trace_length=8),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(questions=4, batch_size=4, every=2, examples=1),
        checkpoint=CheckpointConfig(every=1),
        report=ReportConfig(every=4),
    )


def curves(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: files by name, and each new start hides what earlier files say from its step on."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        for event in events(file.read_bytes()):
            if event.HasField("session_log"):
                found = {tag: {s: v for s, v in curve.items() if s < event.step} for tag, curve in found.items()}
            for value in event.summary.value:
                if not value.HasField("simple_value"):  # Histograms and texts of samples.
                    continue
                curve = found.setdefault(value.tag, {})
                assert event.step not in curve, f"{value.tag} of step {event.step} is there twice"
                curve[event.step] = value.simple_value
    return found


def events(data: bytes):
    """Reads a TensorBoard file, perhaps cut short: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    while len(data) >= 16 and len(data) >= 16 + (length := int.from_bytes(data[:8], "little")):
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def records(folder) -> list[dict]:
    """The metrics of each step, without what belongs to the process."""
    of_process = ("time", "compiled_programs")
    return [{k: v for k, v in r.items() if k not in of_process} for r in read_metrics(folder / "metrics.jsonl")]
