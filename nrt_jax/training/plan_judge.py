"""What a judge takes, and what it runs: after sampling, on the replicas that sampled or on devices of its own."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.data.batch import Prompts
from nrt_jax.data.encode import bucket
from nrt_jax.data.formats import TraceFormat
from nrt_jax.models import Model, ModelConfig, Params
from nrt_jax.parallel import Layout, MeshConfig, beside
from nrt_jax.rewards import judge as rewards
from nrt_jax.training import plan
from nrt_jax.training.plan import Run
from nrt_jax.training.plan_rollout import Sampler, compile_sampling, keep
from nrt_jax.training.programs import Program, TooLarge, at, compile_program, shape, size_on_device

VERDICT_LENGTH = 16  # Most tokens of a verdict with its tags; which tokenizer writes them is not known here.


@dataclasses.dataclass(frozen=True)
class JudgePlan:
    """A run's judge, as shapes.

    Attributes:
        model: The judge.
        params: Its copy on a replica.
        num_replicas: How many judge.
        resident: Bytes that it keeps on each device that trains, all the time: a checkpoint's, without devices of its
            own.
    """

    model: Model
    params: Params
    num_replicas: int
    resident: float = 0.0


def describe(run: Run, model_config: ModelConfig | None) -> JudgePlan:
    """Lays out the judge of a run as `setup.prepare` does.

    Args:
        run: With a judge.
        model_config: Of its checkpoint, as published; None where policy or reference judge.
    """
    config, mesh = run.config.judge, run.config.mesh
    num_replicas = mesh.num_devices // mesh.replica_size
    if model_config is None:
        return JudgePlan(run.model, plan.copy_of(run), num_replicas)
    num_added = sum(bool(text) for text in (config.trace.opening, config.trace.closing))
    dtype = run.config.dtype
    model_config = dataclasses.replace(model_config, vocab_size=model_config.vocab_size + num_added, dtype=dtype)
    model = Model(model_config, attention=run.model.attention)
    params = jax.tree.map(lambda x: shape(x.shape, jnp.dtype(dtype)), model.abstract_params())
    layout, size = run.layout, mesh.replica_size
    if config.devices:
        size, num_replicas = config.tensor, config.devices // config.tensor
        own = run.topology.devices[-config.devices :]
        layout = Layout.of(MeshConfig(data=num_replicas, tensor=size), field="judge", devices=own)
    devices = np.array(run.topology.part(size))
    if layout is None:
        params = at(jax.sharding.SingleDeviceSharding(devices[0]), params)
    else:
        params = layout.abstract_copy(params, model.logical_axes(), devices)
    return JudgePlan(model, params, num_replicas, resident=0.0 if config.devices else size_on_device(params))


def programs(run: Run, judge: JudgePlan) -> list[Program]:
    """What it runs on one replica, all answers and thoughts as long as they may be.

    Returns:
        In their order, up to one that is too large alone, if any is.
    """
    config, found, processes = run.config.judge, [], run.topology.num_processes
    num_answers = run.config.rollout.prompts // processes * run.config.rollout.group_size  # Of a process, its own.
    num_calls = math.ceil(num_answers / config.batch_size)
    share = math.ceil(config.batch_size / (judge.num_replicas // processes))
    try:
        sampler = Sampler(judge.model, judge.params, _sampling(run), share, lambda n: _prompts(run, judge, n))
        sampled = compile_sampling(sampler, found)
        home = beside(judge.params)
        number, verdicts = shape((), jnp.int32, home), (2, VERDICT_LENGTH)
        texts = shape(verdicts, jnp.int32, home), shape(verdicts, bool, home)
        args = (judge.params, sampled, *texts, number, number)
        found.append(compile_program("scoring", rewards.read, *args, model=judge.model))
    except TooLarge as error:
        return [_of_judge(program, num_calls) for program in (*found, error.program)]
    return [_of_judge(program, num_calls) for program in keep(found, sampler, beside=_kept(run, judge))]


def _kept(run: Run, judge: JudgePlan) -> float:
    """Bytes that its device keeps beside its copy: none on a device of its own."""
    if run.config.judge.devices:
        return 0.0
    if run.layout is None:  # What is of the run is the trainer's, and kept with it.
        return run.kept - size_on_device(judge.params)
    policy = size_on_device(plan.copy_of(run)) if run.config.judge.model != "policy" else 0.0
    return run.kept - judge.resident + policy


def _of_judge(program: Program, num_calls: int) -> Program:
    return dataclasses.replace(program, name=f"judge: {program.name}", runs=program.runs * num_calls)


def _sampling(run: Run):
    trace_format = TraceFormat(opening=(), delimiter=1, eos=2, stop_ids=(1, 2))
    return rewards.sampling_of(run.config.judge, trace_format, VERDICT_LENGTH)


def _prompts(run: Run, judge: JudgePlan, count: int) -> Prompts:
    """Questions with answers, a template around them, as long as they may be and the judge's context allows."""
    text, new = run.config.text, _sampling(run).max_new_tokens
    answer = run.config.rollout.max_answer_length or text.max_answer_length
    longest = judge.model.config.max_position_embeddings - new
    length = rewards.room(min(longest, text.max_prompt_length + bucket(answer) + 1))
    return Prompts(tokens=shape((count, length), jnp.int32), mask=shape((count, length), bool))
