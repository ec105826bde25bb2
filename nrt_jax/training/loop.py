"""A run from start to end, on the host: batches, steps, evaluations, checkpoints, export."""

import contextlib
import dataclasses
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from nrt_jax import checkpoints, hf, parallel
from nrt_jax.errors import Stopped, UserError
from nrt_jax.evaluation import Answered, answer_questions, hard_tokens, summarise
from nrt_jax.report import REPORT_FILE, write_report
from nrt_jax.training import environment, traces, wandb_run
from nrt_jax.training import workdir as run_folder
from nrt_jax.training.alarms import AlarmFile
from nrt_jax.training.checkpoint import Checkpointer
from nrt_jax.training.collect import collect
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import to_dict
from nrt_jax.training.guard import SkippedUpdates
from nrt_jax.training.hinted import Chains
from nrt_jax.training.learner import LearnerBatch, from_demonstrations
from nrt_jax.training.metrics import CompilationCounter, MetricsWriter
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.preference import evaluate_pairs, held_out_pairs, pair_reference
from nrt_jax.training.reference import Policy, follow
from nrt_jax.training.scorer import Scorer
from nrt_jax.training.setup import Setup
from nrt_jax.training.signals import StopRequest
from nrt_jax.training.state import TrainState, abstract_state, create_state
from nrt_jax.training.step import Outcome, describe, sampling_config
from nrt_jax.training.update import read_lengths, update

#: What a resumed run may change: how long it goes on, how often it reports and saves, on which devices, and in which
#: parts it computes, which changes nothing but rounding.
MAY_CHANGE = (
    "workdir",
    "checkpoint",
    "max_skipped",
    "evaluation.every",
    "evaluation.examples",
    "dataset.workers",
    "mesh",
    "distributed",
    "report",
    "micro_batches",
    "remat",
    "attention",
    "rollout.devices",
    "rollout.max_rows",
    "rollout.chunk_size",
    "evaluation.batch_size",
    "judge.batch_size",
    "judge.devices",
    "judge.tensor",
)
_SUPERVISED = ("loss", "accuracy", "gradient_norm")
#: The metrics of the progress line.
SHOWN = {
    "nrt": ("reward", "reward_gain", "answer_prob", "accuracy", "entropy", "trace_length", "empty_trace_share"),
    "sft": _SUPERVISED,
    "sft_with_trace": _SUPERVISED,
    "dpo": (*_SUPERVISED, "reward_margin", "preference_accuracy", "held_out_preference_accuracy"),
}
_EVALUATION_STREAM = 2**31 - 1  # Steps count up from 0; evaluation draws from a key that no step uses.


def train(config: TrainConfig, setup: Setup, folder: Path, log: Callable[[str], None] = print) -> dict:
    """Runs or resumes `config` in `folder`; of several processes, which share the folder, the first one writes.

    Args:
        config: The run; validated.
        setup: Its model and data (`setup.prepare`); its params are donated to the first update.
        folder: The run's folder, which may hold an earlier part of the same run.
        log: Takes lines meant for a person.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: The folder holds another run or cannot be written, no checkpoint of it is good, or updates had to be
            skipped for too long.
        Stopped: A signal asked for it; all that was done is saved.
    """
    started = time.time()
    # A cosine ends with the run: with more steps its earlier learning rates would have been others.
    may_change = MAY_CHANGE if config.optimizer.schedule == "cosine" else (*MAY_CHANGE, "steps")
    with contextlib.ExitStack() as held, run_folder.disk_errors(folder), StopRequest() as stop:
        parallel.first(held.enter_context, run_folder.owned(folder))
        resumed = parallel.first(run_folder.prepare, folder, to_dict(config), resume_may_change=may_change)
        config = config.resolve(setup.limits.answer)  # The folder keeps what was asked for.
        description = (setup.model, setup.tokenizer, setup.model_folder, setup.adapter)
        parallel.first(checkpoints.describe_run, folder, *description)
        before = _answers_before(config, setup, folder, stop)
        _log_answers(log, "before", config, setup, before)
        if config.objective == "dpo":
            initial = Policy(setup.model, setup.params, setup.frozen)
            found = pair_reference(config, initial, setup.train, setup.max_length, folder, log, stop.check)
            setup = dataclasses.replace(setup, pair_reference=found)
            if not held_out_pairs(setup.train):
                log("no held-out row has a pair: preferences are not measured, the best checkpoints are by accuracy")
        state = _steps(config, setup, folder, log, resumed, hard_tokens(before), stop)
        return _finish(config, setup, folder, log, state, before, started, stop)


def _steps(config: TrainConfig, setup: Setup, folder: Path, log, resumed: bool, hard, stop: StopRequest) -> TrainState:
    """All steps that are not done yet: the last state, which is saved."""
    optimizer = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
    shard = {"shard_index": jax.process_index(), "num_shards": jax.process_count()}
    keep, best, every = config.checkpoint.keep, config.checkpoint.best, config.checkpoint.every
    with (
        CompilationCounter() as compiled,
        Checkpointer(folder / "checkpoints", keep=keep, best=best) as checkpointer,
        MetricsWriter(folder, total_steps=config.steps, show=SHOWN[config.objective]) as writer,
        setup.train.batches(config.rollout.prompts, config.seed, **shard) as batches,
    ):
        state, extra = _restore(config, setup, optimizer, checkpointer, batches, log) if resumed else (None, {})
        state = state or create_state(setup.params, optimizer, **state_parts(config))
        first = int(state.step)
        start = parallel.first(environment.append, folder, first)
        if config.report.wandb and jax.process_index() == 0:
            writer.wandb = wandb_run.open_run(config.report.wandb, folder, to_dict(config), start["time"])
        earlier = writer.resume(first, extra.get("metrics"))
        trace_file = traces.TraceFile(folder, setup.tokenizer, config.report.groups, first)
        alarms = AlarmFile(folder, log, earlier)
        guard = SkippedUpdates(folder, config.max_skipped, functools.partial(_rows_of, config, setup), earlier)
        evaluated = first == 0 or "accuracy" in extra.get("metrics", {})
        for step in range(first, config.steps + 1):  # Steps that are done.
            if step > first:
                rows = next(batches)
                state, metrics, sample = _step(config, setup, optimizer, state, rows, step - 1)
                writer.write(step, metrics | {"compiled_programs": compiled.count})
                if sample:
                    texts = map(traces.as_text, trace_file.write(rows, sample))
                    writer.write_sample(step, sample.histograms(), {f"traces/{i}": t for i, t in enumerate(texts)})
                alarms.check(writer.last)
                guard.check(writer.last)
                evaluated = False
            if config.evaluation.every and step % config.evaluation.every == 0 and not evaluated:
                with contextlib.suppress(Stopped):  # The run that goes on evaluates.
                    found = summarise(_answer(config, setup, state.params, stop), hard)
                    # A step's own numbers keep their names.
                    found = {n if "accuracy" in n else f"held_out_{n}": x for n, x in found.items()}
                    preferences = _preferences(config, setup, state.params, stop)
                    writer.write(step, found | {f"held_out_{n}": x for n, x in preferences.items()})
            stopping = stop.is_asked()
            if stopping or step == config.steps or (every and step % every == 0):
                writer.flush(sync=True)
                alarms.check(writer.last)
                guard.check(writer.last)
                if step > first:
                    extra = {"data": batches.get_state(), "metrics": writer.last} | _origin(config)
                    checkpointer.save(step, state, extra, score=_score(writer.last))
            if stopping:
                raise Stopped(f"stopped by {stop.name} after step {step} of {config.steps}, saved in {folder}")
    return state


def _restore(
    config: TrainConfig, setup: Setup, optimizer, checkpointer: Checkpointer, batches, log
) -> tuple[TrainState | None, dict]:
    """The last good checkpoint's state and note; None and an empty one if there is none."""
    abstract = abstract_state(setup.params, optimizer, **state_parts(config))
    restored = checkpointer.restore_last_good(abstract, log)
    if restored is None:
        return None, {}
    state, extra = restored
    batches.set_state(extra["data"])
    log(f"resumed at step {int(state.step)} from {checkpointer.folder}")
    now, then = run_folder.code_version(), extra.get("code")
    if now != then:
        log(f"note: written by nrt_jax {then}, goes on with {now}: bit for bit only if both compute the same")
    return state, extra


def _origin(config: TrainConfig) -> dict:
    """What a checkpoint says of where it comes from."""
    return {"config": to_dict(config), "code": run_folder.code_version()}


def _rows_of(config: TrainConfig, setup: Setup, step: int) -> list[str]:
    return setup.train.where(step, config.rollout.prompts, config.seed)


def _step(
    config, setup: Setup, optimizer, state: TrainState, batch_rows, step: int
) -> tuple[TrainState, dict, traces.Sample | None]:
    """One step of any objective; all randomness follows from the step's number."""
    rng, outcome, metrics = jax.random.fold_in(jax.random.key(config.seed), step), None, {}
    if config.objective == "nrt":
        state, learner_batch, outcome, metrics = _rollout(config, setup, state, batch_rows, rng)
    elif config.objective == "dpo":
        learner_batch = setup.pair_reference.batch(setup.encoder, batch_rows, setup.max_length)
        learner_batch = parallel.gather_rows(learner_batch)
    else:
        with_trace, longest = config.objective == "sft_with_trace", setup.max_length
        learner_batch = parallel.gather_rows(
            from_demonstrations(setup.encoder, batch_rows, with_trace=with_trace, max_length=longest)
        )
    padding_shares, skipped = [], []
    for i, lengths in enumerate(read_lengths(learner_batch).split(config.updates_per_step)):
        state, losses = update(
            state,
            minibatch(learner_batch, i, config.updates_per_step),
            config.rollout.temperature if config.objective == "nrt" else 1.0,
            model=setup.model,
            optimizer=optimizer,
            config=config.dpo if config.objective == "dpo" else config.loss,
            micro_batches=config.micro_batches,
            remat=config.remat,
            frozen=setup.frozen,
            lengths=lengths,
        )
        padding_shares.append(losses["padding_share"])
        skipped.append(losses["skipped_updates"])
        if i == 0 and config.objective != "dpo":
            # Before any update the learner is the sampler: what differs is numerics alone.
            metrics["sampler_trainer_kl"] = losses["approximate_kl"]
    metrics["padding_share"] = sum(padding_shares) / len(padding_shares)
    metrics["skipped_updates"] = sum(skipped)
    state = follow(config.reference, state, step + 1)
    sample = None
    if outcome is not None and traces.is_due(config.report, step + 1):
        sample = traces.fetch_sample(step + 1, learner_batch, outcome)
    return state.replace(step=state.step + 1), losses | metrics, sample


def _rollout(config, setup: Setup, state: TrainState, rows, rng) -> tuple[TrainState, LearnerBatch, Outcome, dict]:
    copies = setup.copies(state.params)
    scorer = Scorer.of(config, setup, rows, copies, state)
    with contextlib.closing(scorer) if scorer else contextlib.nullcontext():
        learner_batch, outcome = collect(
            setup.model,
            copies,
            setup.encoder.batch(rows),
            rng,
            sampling_config(config.rollout, setup.trace_format, config.reward.samples_answer * setup.limits.answer),
            score=scorer,
            begin=scorer.begin if config.judge.devices else None,
            chains=_chains_of(config, setup, rows),
            reference=setup.reference(state),
            reward_std=state.reward_std,
            beside=parallel.beside(state.params),
            num_parts=config.updates_per_step * config.micro_batches,
            reward_config=config.reward,
            advantage_config=config.advantage,
            loss_config=config.loss,
            reference_config=config.reference,
            max_length=setup.max_length,
            max_trace_length=config.rollout.max_trace_length,
            has_opening=bool(setup.trace_format.opening),
        )
    metrics = describe(outcome, config.verifier.right) | (scorer.metrics if scorer else {})
    return state.replace(reward_std=outcome.reward_std), learner_batch, outcome, metrics


def state_parts(config: TrainConfig) -> dict[str, bool]:
    """What the state of such a run holds beside params and optimizer."""
    return {"with_reference": config.reference.kind == "ema", "with_std": config.advantage.min_std > 0}


def _chains_of(config: TrainConfig, setup: Setup, rows) -> Chains | None:
    if not config.hints.steps:
        return None
    written = [setup.rules.written(row) for row in rows] if config.reward.samples_answer else None
    return Chains.of(rows, setup.trace_format, config.hints, written=written, max_length=setup.max_length)


@functools.partial(jax.jit, static_argnums=2)
def minibatch(batch: LearnerBatch, index: int, count: int) -> LearnerBatch:
    """Part `index` of `count` equal parts of a batch's prompts."""
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])[index], batch)


def _answer(config: TrainConfig, setup: Setup, params, stop: StopRequest) -> list[Answered]:
    """Raises Stopped between two batches if a signal came."""
    rng = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION_STREAM)
    params = setup.copies(params) if setup.layout else setup.policy(params)
    how = (config.evaluation, setup.limits, stop.check)
    return answer_questions(setup.model, params, setup.rules, setup.held_out, rng, *how)


def _preferences(config: TrainConfig, setup: Setup, params, stop: StopRequest) -> dict[str, float]:
    """The loss's own measures on held-out pairs, if that is the objective; raises Stopped as `_answer` does."""
    if config.objective != "dpo":
        return {}
    policy = Policy(setup.model, params, setup.frozen)
    return evaluate_pairs(config, policy, setup.pair_reference, setup.train, setup.max_length, stop.check)


def _score(record: Mapping[str, Any]) -> float | None:
    """By which the best checkpoints are chosen: held-out pairs before held-out answers, where there are some."""
    return record.get("held_out_preference_accuracy", record.get("accuracy"))


def _answers_before(config: TrainConfig, setup: Setup, folder: Path, stop: StopRequest) -> list[Answered]:
    """The untrained policy's answers; a resumed run reads those that it wrote first."""
    path = folder / "answers_before.jsonl"
    if parallel.first(path.exists):
        return read_answers(path)
    answered = _answer(config, setup, setup.params, stop)
    parallel.first(write_answers, path, answered)
    return answered


def _finish(config, setup: Setup, folder: Path, log, state: TrainState, before, started: float, stop) -> dict:
    """Evaluates, exports and sums up."""
    after, hard = _answer(config, setup, state.params, stop), hard_tokens(before)
    preferences = _preferences(config, setup, state.params, stop)
    parallel.first(write_answers, folder / "answers_after.jsonl", after)
    _log_answers(log, "after", config, setup, after)
    if preferences:
        shown = ("preference_accuracy", "reward_margin", "loss")
        log("held-out pairs after training: " + ", ".join(f"{name} {preferences[name]:.3f}" for name in shown))
    parallel.first(_export, config, setup, folder, parallel.fetch(state.params))
    figures = {f"{name}_after": value for name, value in preferences.items()}
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
    parallel.first(run_folder.write_json, folder / "summary.json", summary)
    try:
        parallel.first(write_report, [folder], folder / REPORT_FILE)
    except UserError as error:  # All else is there.
        log(f"warning: no {REPORT_FILE}: {error}")
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
    return [Answered.of_json(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
