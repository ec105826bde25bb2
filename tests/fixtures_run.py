"""What tests of whole runs share: sums as questions, a small BPE tokenizer, a tiny random model's folder, records."""

import functools
import json
import pathlib

import jax

from nrt_jax import hf
from nrt_jax.data import Example
from nrt_jax.hf.tokenizer_training import train_tokenizer
from nrt_jax.models import Model, ModelConfig
from nrt_jax.training.metrics import read_metrics

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


def records(folder) -> list[dict]:
    """The metrics of each step, without what belongs to the process."""
    of_process = ("time", "compiled_programs")
    return [{k: v for k, v in r.items() if k not in of_process} for r in read_metrics(folder / "metrics.jsonl")]
