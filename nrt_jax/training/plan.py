"""A run's programs as `loop` calls them, compiled ahead of time: do they fit, and how long will a step take?

Where a program takes what another makes, it gets that other's output as it was compiled. A device holds more than a
program's own arguments, which is counted too:

    sampling, scoring    trainer's state | copy of the policy | its matrices for decoding | groups | rows, with caches
    learning             trainer's state | gradient | a micro-batch's activations

The trainer's state includes the reference policy, if the run has one.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Batch, Prompts, Reference
from nrt_jax.data.encode import bucket
from nrt_jax.data.formats import TraceFormat
from nrt_jax.errors import UserError
from nrt_jax.models import Frozen, Model, ModelConfig, Params, lora
from nrt_jax.objectives import LossMasks
from nrt_jax.parallel import Layout
from nrt_jax.parallel.topology import Topology
from nrt_jax.rollout import SamplingConfig
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.plan_rollout import Sampler, compile_sampling, keep
from nrt_jax.training.programs import Program, TooLarge, at, compile_program, shape, size_on_device
from nrt_jax.training.reference import Policy, abstract_policy, moving_average, score_part
from nrt_jax.training.setup import check_shares
from nrt_jax.training.state import TrainState, abstract_state
from nrt_jax.training.step import sampling_config, score_rollout
from nrt_jax.training.update import add_gradient, apply_gradient, cut


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as shapes on some devices.

    Attributes:
        config: With attention and cache dtype as on these devices.
        model: The policy.
        topology: Where it is to run.
        layout: Over the devices; None for one.
        params: What is trained.
        frozen: The rest of the policy; None without adapters.
        reference: The reference policy; None without one.
        resident: Bytes of a judge that each device keeps all the time.
    """

    config: TrainConfig
    model: Model
    topology: Topology
    layout: Layout | None
    params: Params
    frozen: Frozen | None
    reference: Policy | None
    resident: float = 0.0

    @property
    def share(self) -> int:
        """Prompts of a replica."""
        return -(-self.config.rollout.prompts // (self.config.mesh.num_devices // self.config.mesh.replica_size))

    @property
    def minibatch(self) -> int:
        """Prompts of an update."""
        return self.config.rollout.prompts // self.config.updates_per_step

    @functools.cached_property
    def sampling(self) -> SamplingConfig:
        """How it samples; which ids stop it does not matter."""
        trace_format = TraceFormat(opening=(), delimiter=1, eos=2, stop_ids=(1, 2))
        longest = self.config.rollout.max_answer_length or self.config.text.max_answer_length
        return sampling_config(self.config.rollout, trace_format, self.config.reward.samples_answer * longest)

    @property
    def max_length(self) -> int:
        """Most tokens of a whole sample."""
        longest = self.model.config.max_position_embeddings
        return min(self.config.rollout.max_length or longest, longest)

    @functools.cached_property
    def state(self) -> TrainState:
        """The trainer's."""
        return abstract_state(self.params, self.optimizer)

    @property
    def reference_size(self) -> float:
        """Bytes of the reference on a device; none where it is the frozen base."""
        if self.reference is None or (self.frozen and self.reference.params is self.frozen.params):
            return 0.0
        return size_on_device(self.reference.params)

    @property
    def kept(self) -> float:
        """Bytes that a device keeps all the time."""
        return size_on_device(self.state) + size_on_device(self.frozen) + self.reference_size + self.resident

    @property
    def optimizer(self):
        """The run's."""
        return make_optimizer(self.config.optimizer, self.config.steps * self.config.updates_per_step)

    def questions(self, num_prompts: int) -> Batch:
        """Questions and answers as long as they may be."""
        x, y = (
            bucket(min(limit, self.max_length - 2))
            for limit in (self.config.text.max_prompt_length, self.config.text.max_answer_length)
        )

        def padded(length):
            return {"tokens": shape((num_prompts, length), jnp.int32), "mask": shape((num_prompts, length), bool)}

        return Batch(prompts=Prompts(**padded(x)), reference=Reference(**padded(y), delimiter=shape((), jnp.int32)))


def describe(config: TrainConfig, model_config: ModelConfig, topology: Topology) -> Run:
    """Lays a run's params out as shapes, as `setup.prepare` does with arrays.

    Args:
        config: The run.
        model_config: Of its model, as published.
        topology: Where it is to run.

    Raises:
        UserError: The config cannot work, or its mesh has another number of devices.
    """
    config.validate()
    config = config.resolve()
    if config.objective != "nrt":
        raise UserError(f"objective: {config.objective!r} is not planned; expected 'nrt', which needs the most memory")
    if config.rollout.devices > 1:
        raise UserError(f"rollout.devices: {config.rollout.devices} is not planned; expected 1 and a mesh")
    if config.hints.steps:
        raise UserError(f"hints.steps: {config.hints.steps} is not planned; expected 0, and room for the longest chain")
    check_shares(config, topology.num_processes)
    # A run leaves the last devices of each host to the judge; libtpu compiles for the first ones of a slice alone.
    used = max(len(topology.devices) - config.judge.devices, 0)
    layout = Layout.of(config.mesh, devices=topology.devices[:used])
    if layout and (used // topology.num_processes) % config.mesh.replica_size:
        raise UserError(
            f"mesh.decode_tensor: {config.mesh.replica_size} devices are on several hosts of {topology.name}; expected "
            "a divisor of a host's number of devices"
        )
    attention, cache = config.attention, config.rollout.cache_dtype
    if attention == "auto":
        attention = "splash" if topology.platform == "tpu" else "xla"
    if cache == "auto":
        cache = config.dtype if topology.platform == "cpu" else "bfloat16"
    config = dataclasses.replace(
        config, attention=attention, rollout=dataclasses.replace(config.rollout, cache_dtype=cache)
    )
    # Which of these a tokenizer lacks is not known here; those of the recipes lack them all.
    num_added = sum(bool(text) for text in (config.trace.opening, config.trace.closing))
    model_config = dataclasses.replace(model_config, vocab_size=model_config.vocab_size + num_added, dtype=config.dtype)
    model, frozen = Model(model_config, attention=attention), None
    params = model.abstract_params()
    if config.lora.rank:
        params = jax.tree.map(lambda x: shape(x.shape, jnp.dtype(config.dtype)), params)
        model = dataclasses.replace(model, lora=config.lora)
        params, frozen = jax.eval_shape(
            lambda base: lora.split(model, base, list(range(num_added)), jax.random.key(0)), params
        )

    def place(tree, axes):
        if layout is None:
            return at(jax.sharding.SingleDeviceSharding(topology.devices[0]), tree)
        shardings = parallel.shardings(axes, tree, layout.train)
        return jax.tree.map(lambda x, sharding: shape(x.shape, x.dtype, sharding), tree, shardings)

    params = place(params, lora.logical_axes(model, params))
    frozen = frozen and place(frozen, lora.frozen_axes(model))
    policy = abstract_policy(config.reference, model, params, frozen)
    placed = {"topology": topology, "layout": layout, "params": params, "frozen": frozen, "reference": policy}
    return Run(config=config, model=model, **placed)


def gradient(run: Run, part_size: int) -> Program:
    """Of a micro-batch of so many prompts, with completions as long as they may be."""
    config, home = run.config, parallel.beside(run.params)
    batch = _learner_batch(run, run.minibatch)
    program = compile_program(
        "gradient",
        add_gradient,
        None if part_size == run.minibatch else run.params,
        run.params,
        run.frozen,
        at(home, batch),
        shape((part_size,), jnp.int32, home),
        config.rollout.temperature,
        model=run.model,
        config=config.loss,
        length=_longest(run, batch),
        remat=config.remat,
    )
    gathered = size_on_device(run.params) * jnp.dtype(config.dtype).itemsize / 4
    program = dataclasses.replace(
        program,
        runs=config.rollout.prompts // part_size,
        # Forward and backward pass gather the parameters, and the gradient is scattered.
        moved=3 * gathered * (config.mesh.fsdp - 1),
    )
    return program.keep(run.kept - size_on_device(run.frozen) - size_on_device(run.params))


def _learner_batch(run: Run, num_prompts: int) -> LearnerBatch:
    """With completions as long as they may be, as shapes."""
    questions, rows = run.questions(num_prompts), (num_prompts, run.config.rollout.group_size)
    max_tokens = 1 + run.sampling.max_new_tokens
    if run.config.reward.intrinsic:  # It learns from y* too.
        max_tokens += 1 + questions.reference.tokens.shape[1]
    tokens, mask, numbers = (shape((*rows, max_tokens), dtype) for dtype in (jnp.int32, bool, jnp.float32))
    has_kl = run.config.loss.kl_weight > 0 and run.config.loss.kl_in == "loss"
    return LearnerBatch(
        prompts=questions.prompts,
        tokens=tokens,
        masks=LossMasks(trace=mask, delimiter=mask, reference=mask),
        old_log_probs=numbers,
        advantage=shape(rows, jnp.float32),
        token_signal=numbers,
        reference_log_probs=numbers if has_kl else None,
    )


def _longest(run: Run, batch: LearnerBatch) -> int:
    """T, to which the longest completions are cut."""
    max_tokens = batch.tokens.shape[-1]
    return cut(min(max_tokens, run.max_length), max_tokens)


def optimizer(run: Run) -> Program:
    """The optimizer's update."""
    number = shape((), jnp.float32, parallel.beside(run.params))
    metrics = [{"loss": number}] * run.config.micro_batches
    args = (run.state, run.params, metrics)
    program = compile_program("optimizer", apply_gradient, *args, optimizer=run.optimizer)
    program = dataclasses.replace(program, runs=run.config.updates_per_step)
    return program.keep(run.kept - size_on_device(run.state))


def reference(run: Run, part_size: int) -> list[Program]:
    """What the reference runs: scoring so many prompts, and following the policy; nothing without one."""
    if run.reference is None:
        return []
    batch, home = _learner_batch(run, run.config.rollout.prompts), parallel.beside(run.params)
    scoring = compile_program(
        "reference",
        score_part,
        shape(batch.tokens.shape, jnp.float32, home),
        run.reference.params,
        run.reference.frozen,
        at(home, batch),
        shape((part_size,), jnp.int32, home),
        run.config.rollout.temperature,
        model=run.reference.model,
        length=_longest(run, batch),
    )
    scoring = dataclasses.replace(scoring, runs=run.config.rollout.prompts // part_size)
    taken = size_on_device((run.reference.params, run.reference.frozen))
    found = [scoring.keep(run.kept - taken)]
    if run.config.reference.kind == "ema":
        following = compile_program(
            "moving average", moving_average, run.params, run.params, run.config.reference.decay
        )
        beside = run.kept - 2 * size_on_device(run.params)
        found.append(dataclasses.replace(following, runs=1 / run.config.reference.every).keep(beside))
    return found


def rollout(run: Run) -> list[Program]:
    """The programs of one replica; the others' are the same.

    Returns:
        In the order of a step, up to one that is too large alone, if any is.
    """
    found: list[Program] = []
    try:
        sampler = Sampler(run.model, _move(run, found), run.sampling, run.share, lambda n: run.questions(n).prompts)
        sampled = compile_sampling(sampler, found)
        scoring = compile_program(
            "scoring",
            score_rollout,
            sampler.params,
            sampled,
            at(parallel.beside(sampler.params), run.questions(sampler.batch)),
            sampler.at_home.temperature,
            model=run.model,
            reward_config=run.config.reward,
            max_length=run.max_length,
        )
        found.append(dataclasses.replace(scoring, runs=sampler.num_batches))
    except TooLarge as error:
        return [*found, error.program]
    copy = 0.0 if run.layout else size_on_device(sampler.params)  # One device's is the trainer's.
    return keep(found, sampler, beside=run.kept - copy)


def _move(run: Run, found: list[Program]) -> Params:
    """The policy's copy on one replica, as shapes; appends the program that brings it there, if one does."""
    if run.layout is not None:
        policy, axes = _policy(run), run.model.logical_axes()
        placed = parallel.shardings(axes, policy, run.layout.train)
        policy = jax.tree.map(lambda x, sharding: shape(x.shape, x.dtype, sharding), policy, placed)
        program = compile_program("parameters", run.layout.mover(policy, axes), jax.tree.leaves(policy))
        found.append(dataclasses.replace(program, moved=program.memory.outputs - program.memory.arguments))
    return copy_of(run)


def copy_of(run: Run) -> Params:
    """The policy's copy on one replica, as shapes."""
    if run.layout is None:
        return at(parallel.beside(run.params), _policy(run))
    replica = np.array(run.topology.part(run.config.mesh.replica_size))
    return run.layout.abstract_copy(_policy(run), run.model.logical_axes(), replica)


def _policy(run: Run) -> Params:
    """All of its parameters, as shapes; over a mesh in the compute dtype."""
    policy = jax.eval_shape(lambda params, frozen: lora.combine(params, frozen), run.params, run.frozen)
    return policy if run.layout is None else jax.eval_shape(run.model.compute_params, policy)


def micro_batch_sizes(run: Run) -> list[int]:
    """Prompts that a part of a mini-batch may have, least first."""
    shards = run.config.mesh.data * run.config.mesh.fsdp
    return [size for size in range(shards, run.minibatch + 1, shards) if run.minibatch % size == 0]


def largest_micro_batch(run: Run, limit: float, known: dict[int, float]) -> int:
    """Most prompts of a part whose gradient fits; 0 where none does.

    Memory grows linearly with the prompts of a part: two sizes foretell the others', and compiling confirms it.

    Args:
        run: The run.
        limit: Bytes of a device.
        known: Peaks of sizes that were compiled.
    """
    sizes, peaks = micro_batch_sizes(run), dict(known)

    def peak(size: int) -> float:
        if size not in peaks:
            try:
                peaks[size] = gradient(run, size).memory.peak
            except TooLarge:
                peaks[size] = math.inf
        return peaks[size]

    least = sizes[0]
    other = max((size for size in known if known[size] < math.inf), default=least)
    other = sizes[1] if other == least and len(sizes) > 1 else other
    if peak(least) > limit or math.isinf(peak(other)):
        return least if peak(least) <= limit else 0
    each = (peak(other) - peak(least)) / max(other - least, 1)
    fitting = [size for size in sizes if peak(least) + each * (size - least) <= limit]
    while peak(fitting[-1]) > limit:
        fitting.pop()
    return fitting[-1]
