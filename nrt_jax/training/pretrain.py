"""Making the embedded base model: a small Llama pretrained on documents `question, trace, answer`.

It is the honest miniature of a pretrained model. A first phase of mostly useful traces teaches it the skill of working
a problem out; a second phase, where useful working is rare beside empty, idle and wrong traces, teaches it not to
use that skill. What NRT then does with question-answer pairs alone is to bring the skill out.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import jax

from nrt_jax import tasks
from nrt_jax.data import formats, pipeline
from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.data.example import Example
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.hf.tokenizer_training import train_tokenizer
from nrt_jax.models import Model, ModelConfig, Params
from nrt_jax.objectives import NRTLossConfig
from nrt_jax.training.learner import from_demonstrations
from nrt_jax.training.optimizer import OptimizerConfig, make_optimizer
from nrt_jax.training.state import create_state
from nrt_jax.training.update import update


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Size of the Llama to make; see `ModelConfig`."""

    hidden_size: int = 96
    intermediate_size: int = 256
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 24
    vocab_size: int = 512


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stage of pretraining.

    Attributes:
        steps: Updates.
        learning_rate: Peak, after 50 updates of warm-up and before a cosine decay to 0.
        mixture: Weight of each kind of trace in the documents (the task's KINDS).
    """

    steps: int
    learning_rate: float
    mixture: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of an embedded base model.

    Attributes:
        output: Folder to make, in Hugging Face format.
        task: Built-in tasks that write the documents, equally many each.
        level: The difficulty of each; empty for the tasks' defaults.
        seed: Of parameters and documents.
        batch_size: Documents an update.
        architecture: Size of the model.
        trace: Trace format of the documents.
        skill: First phase: documents that mostly work the problem out.
        habit: Second phase: documents that seldom do.
    """

    output: str = ""
    task: tuple[str, ...] = ("clock",)
    level: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 64
    architecture: Architecture = Architecture()
    trace: TraceFormatConfig = TraceFormatConfig()
    skill: Phase = Phase(
        steps=600,
        learning_rate=3e-3,
        mixture={"useful": 0.8, "empty": 0.1, "filler": 0.05, "irrelevant": 0.05},
    )
    habit: Phase = Phase(
        steps=250,
        learning_rate=1e-3,
        mixture={"useful": 0.1, "empty": 0.3, "filler": 0.2, "irrelevant": 0.2, "lazy": 0.12, "sloppy": 0.08},
    )


def pretrain(config: PretrainConfig, log: Callable[[str], None] = print) -> tuple[Model, Params, object]:
    """Trains a tokenizer and a model from scratch.

    Returns:
        model, params, tokenizer.
    """
    for field in ("task", "level"):
        if isinstance(getattr(config, field), str):
            raise UserError(
                f"{field}: {getattr(config, field)!r} is a text; expected a tuple of them, such as ('clock',)"
            )
    if config.level and len(config.level) != len(config.task):
        raise UserError(
            f"level: {', '.join(config.level)} for {len(config.task)} tasks; expected one for each, or none"
        )
    tokenizer = _tokenizer(config)
    shape = dataclasses.asdict(config.architecture) | {"vocab_size": max(tokenizer.get_vocab().values()) + 1}
    model = Model(ModelConfig(**shape, tie_embeddings=True, max_position_embeddings=1024))
    params = model.init(jax.random.key(config.seed))
    trace_format, model, params, tokenizer = formats.resolve(config.trace, model, params, tokenizer)
    encoder = Encoder(tokenizer, trace_format, TextConfig())
    log(f"{', '.join(config.task)}: {len(tokenizer)} tokens, {model.config.num_parameters:,} parameters")
    for number, (name, phase) in enumerate((("skill", config.skill), ("habit", config.habit))):
        params = _run_phase(config, name, phase, config.seed + number, model, params, encoder, log)
    return model, params, tokenizer


def _run_phase(config, name, phase, seed, model, params, encoder: Encoder, log) -> Params:
    """One phase of updates with an optimizer of its own, each document used once.

    A batch holds documents of one task, which are of like length, and the tasks take turns.
    """
    if phase.steps < 1:
        raise UserError(f"{name}.steps: {phase.steps} is not positive; expected a number above 0")
    turns = -(-phase.steps // len(config.task))  # of the first task, and no other has more
    documents = _documents(config, turns * config.batch_size, seed, phase.mixture)
    rows = map(encoder.encode_many, documents)
    batches = itertools.cycle([pipeline.Batches(pipeline.shuffled(part, seed), config.batch_size) for part in rows])
    adamw = OptimizerConfig(learning_rate=phase.learning_rate, warmup_updates=50, schedule="cosine")
    optimizer = make_optimizer(adamw, phase.steps)
    state = create_state(params, optimizer)
    for step in range(phase.steps):
        batch = from_demonstrations(encoder, next(next(batches)), with_trace=True)
        state, metrics = update(state, batch, model=model, optimizer=optimizer, config=NRTLossConfig())
        if (step + 1) % 100 == 0 or step + 1 == phase.steps:
            log(f"{name} {step + 1}/{phase.steps}  loss {float(metrics['loss']):.4f}")
    return state.params


def _documents(config: PretrainConfig, n: int, seed: int, mixture: Mapping[str, float]) -> list[list[Example]]:
    """n documents of each task."""
    levels = config.level or [""] * len(config.task)
    return [
        tasks.get(name).documents(n, seed, mixture, **({"level": level} if level else {}))
        for name, level in zip(config.task, levels, strict=True)
    ]


def _tokenizer(config: PretrainConfig):
    kinds = dict.fromkeys(itertools.chain(config.skill.mixture, config.habit.mixture), 1.0)
    documents = itertools.chain.from_iterable(_documents(config, 5000 // len(config.task), config.seed, kinds))
    texts = (text for d in documents for text in (d.question + "\n", d.trace, d.answer))
    return train_tokenizer(texts, config.architecture.vocab_size)
