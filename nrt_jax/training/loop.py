"""A run from start to end, on the host: batches, steps, evaluations, checkpoints, export."""

import dataclasses
import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from nrt_jax import checkpoints, hf
from nrt_jax.evaluation import Answered, answer_questions, hard_tokens, summarise
from nrt_jax.training import workdir as run_folder
from nrt_jax.training.checkpoint import Checkpointer
from nrt_jax.training.collect import collect
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import to_dict
from nrt_jax.training.learner import LearnerBatch, from_demonstrations
from nrt_jax.training.metrics import CompilationCounter, MetricsWriter
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.setup import Setup
from nrt_jax.training.state import TrainState, abstract_state, create_state
from nrt_jax.training.step import describe, sampling_config
from nrt_jax.training.update import read_lengths, update

#: What a resumed run may change: how long it goes on, how often it reports and saves, and on which devices.
MAY_CHANGE = ("workdir", "checkpoint", "evaluation.every", "evaluation.examples", "dataset.workers", "mesh")
SHOWN = (
    ("loss", "accuracy", "gradient_norm"),  # of supervised runs
    ("reward", "reward_gain", "answer_prob", "accuracy", "entropy", "trace_length", "empty_trace_share"),
)
_EVALUATION_STREAM = 2**31 - 1  # Steps count up from 0; evaluation draws from a key that no step uses.


def train(config: TrainConfig, setup: Setup, folder: Path, log: Callable[[str], None] = print) -> dict:
    """Runs or resumes `config` in `folder`.

    Args:
        config: The run; validated.
        setup: Its model and data (`setup.prepare`); its params are donated to the first update.
        folder: The run's folder, which may hold an earlier part of the same run.
        log: Takes lines meant for a person.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: The folder holds another run, or a checkpoint of it cannot be used.
    """
    started = time.time()
    # A cosine ends with the run: with more steps its earlier learning rates would have been others.
    may_change = MAY_CHANGE if config.optimizer.schedule == "cosine" else (*MAY_CHANGE, "steps")
    resumed = run_folder.prepare(folder, to_dict(config), resume_may_change=may_change)
    checkpoints.describe_run(folder, setup.model, setup.tokenizer, setup.model_folder, setup.adapter)
    optimizer = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
    before = _answers_before(config, setup, folder)
    hard = hard_tokens(before)
    _log_answers(log, "before", config, setup, before)
    shard = {"shard_index": jax.process_index(), "num_shards": jax.process_count()}

    with (
        CompilationCounter() as compiled,
        Checkpointer(folder / "checkpoints", keep=config.checkpoint.keep) as checkpointer,
        MetricsWriter(folder, total_steps=config.steps, show=SHOWN[config.objective == "nrt"]) as writer,
        setup.train.batches(config.rollout.prompts, config.seed, **shard) as batches,
    ):
        if resumed and checkpointer.latest_step() is not None:
            state, extra = checkpointer.restore(abstract_state(setup.params, optimizer))
            batches.set_state(extra["data"])
            log(f"resumed at step {int(state.step)} from {folder / 'checkpoints'}")
        else:
            state = create_state(setup.params, optimizer)
        first = int(state.step)
        writer.truncate_after(first)
        for step in range(first, config.steps):
            state, metrics = _step(config, setup, optimizer, state, next(batches), step)
            writer.write(step + 1, metrics | {"compiled_programs": compiled.count})
            if config.evaluation.every and (step + 1) % config.evaluation.every == 0:
                writer.write(step + 1, summarise(_answer(config, setup, state.params), hard))
            if step + 1 == config.steps or (config.checkpoint.every and (step + 1) % config.checkpoint.every == 0):
                writer.flush()
                checkpointer.save(step + 1, state, {"data": batches.get_state()})
    return _finish(config, setup, folder, log, state, before, started)


def _step(config, setup: Setup, optimizer, state: TrainState, batch_rows, step: int) -> tuple[TrainState, dict]:
    """One step of either objective; all randomness follows from the step's number."""
    rng = jax.random.fold_in(jax.random.key(config.seed), step)
    if config.objective == "nrt":
        learner_batch, metrics = _rollout(config, setup, state, batch_rows, rng)
    else:
        with_trace, longest = config.objective == "sft_with_trace", setup.max_length
        learner_batch = from_demonstrations(setup.encoder, batch_rows, with_trace=with_trace, max_length=longest)
        metrics = {}
    padding_shares = []
    for i, lengths in enumerate(read_lengths(learner_batch).split(config.updates_per_step)):
        state, losses = update(
            state,
            minibatch(learner_batch, i, config.updates_per_step),
            config.rollout.temperature if config.objective == "nrt" else 1.0,
            model=setup.model,
            optimizer=optimizer,
            config=config.loss,
            micro_batches=config.micro_batches,
            remat=config.remat,
            frozen=setup.frozen,
            lengths=lengths,
        )
        padding_shares.append(losses["padding_share"])
        if i == 0:  # Before any update the learner is the sampler: what differs is numerics alone.
            metrics["sampler_trainer_kl"] = losses["approximate_kl"]
    metrics["padding_share"] = sum(padding_shares) / len(padding_shares)
    return state.replace(step=state.step + 1), losses | metrics


def _rollout(config, setup: Setup, state: TrainState, rows, rng) -> tuple[LearnerBatch, dict]:
    learner_batch, outcome = collect(
        setup.model,
        setup.copies(state.params),
        setup.encoder.batch(rows),
        rng,
        sampling_config(config.rollout, setup.trace_format),
        reward_config=config.reward,
        advantage_config=config.advantage,
        loss_config=config.loss,
        max_length=setup.max_length,
        has_opening=bool(setup.trace_format.opening),
    )
    return learner_batch, describe(outcome)


@functools.partial(jax.jit, static_argnums=2)
def minibatch(batch: LearnerBatch, index: int, count: int) -> LearnerBatch:
    """Part `index` of `count` equal parts of a batch's prompts."""
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])[index], batch)


def _answer(config: TrainConfig, setup: Setup, params) -> list[Answered]:
    rng = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION_STREAM)
    params = setup.copies(params) if setup.layout else setup.policy(params)
    return answer_questions(setup.model, params, setup.encoder, setup.held_out, rng, config.evaluation, setup.limits)


def _answers_before(config: TrainConfig, setup: Setup, folder: Path) -> list[Answered]:
    """The untrained policy's answers; a resumed run reads those that it wrote first."""
    path = folder / "answers_before.jsonl"
    if path.exists():
        return read_answers(path)
    answered = _answer(config, setup, setup.params)
    write_answers(path, answered)
    return answered


def _finish(config, setup: Setup, folder: Path, log, state: TrainState, before, started: float) -> dict:
    """Evaluates, exports and sums up."""
    after, hard = _answer(config, setup, state.params), hard_tokens(before)
    write_answers(folder / "answers_after.jsonl", after)
    _log_answers(log, "after", config, setup, after)
    _export(config, setup, folder, state.params)
    figures = {}
    for when, answered in (("before", before), ("after", after)):
        figures |= {f"{name}_{when}": value for name, value in summarise(answered, hard).items()}
    summary = figures | {
        "steps": int(state.step),
        "questions": len(after),
        "parameters": setup.model.config.num_parameters,
        "seconds": time.time() - started,
        "peak_memory_bytes": peak_memory_bytes(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    run_folder.write_json(folder / "summary.json", summary)
    return summary


def _export(config: TrainConfig, setup: Setup, folder: Path, params) -> None:
    """Writes hf/, the whole policy, and with adapters adapter/, for PEFT."""
    if setup.adapter is None:
        policy = params
    else:
        hf.save_adapter(folder / "adapter", setup.adapter, setup.model.config, params, setup.tokenizer, overwrite=True)
        policy = checkpoints.load(folder / "adapter", param_dtype="float32")[1]  # exact: the base may run in bfloat16
    hf.save(
        folder / "hf",
        setup.model,
        policy,
        setup.tokenizer,
        dtype=config.checkpoint.export_dtype,
        source=setup.model_folder,
        overwrite=True,
    )


def peak_memory_bytes() -> int:
    """Most host memory that this process held; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _log_answers(log, when: str, config: TrainConfig, setup: Setup, answered: list[Answered]) -> None:
    summary = summarise(answered)
    log(
        f"\n{when} training, on {len(answered)} held-out questions: accuracy {summary['accuracy']:.3f}, "
        f"mean p(answer) {summary['answer_prob']:.3f}, empty traces {summary['empty_trace_share']:.2f}"
    )
    for item in answered[: config.evaluation.examples]:
        log(f"  question  {item.question}\n  trace     {item.trace or '(empty)'}")
        log(f"  answer    {item.answer}  [{'right' if item.correct else 'wrong'}]\n")


def write_answers(path: Path, answered: list[Answered]) -> None:
    """One answered question a line."""
    lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in answered]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def read_answers(path: Path) -> list[Answered]:
    """Reads what `write_answers` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    tuples = ("token_log_probs", "base_token_log_probs")
    return [Answered(**row | {name: tuple(row[name]) for name in tuples}) for row in rows]
