"""Everything that a run needs before its first step, loaded and checked before anything is written."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from nrt_jax import checkpoints, hf, parallel
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.formats import TraceFormat
from nrt_jax.data.load import Data, load, open_sources
from nrt_jax.errors import UserError
from nrt_jax.evaluation import Limits
from nrt_jax.models import Frozen, Model, Params, backends, lora
from nrt_jax.parallel import Layout, MeshConfig
from nrt_jax.rewards import Judge, Rules
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.judged import load_judge
from nrt_jax.training.preference import PairReference
from nrt_jax.training.reference import Policy, initial_policy
from nrt_jax.training.state import TrainState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's model and data.

    Attributes:
        model: The policy.
        params: What is trained of it, before training.
        frozen: The rest of it; None without adapters.
        adapter: What the exported adapter says of itself; None without adapters.
        tokenizer: With the trace format's tokens in it.
        trace_format: In token ids.
        encoder: Text to ids.
        rules: Ids to verdicts.
        train: Training rows, and what was left out of them.
        held_out: Evaluation rows.
        limits: Most tokens of a trace and of an answer that is sampled.
        model_folder: Where the model came from.
        max_length: Most tokens of a whole sample.
        layout: Over devices; None where one trains.
        devices: Those that sample where one trains.
        initial: The policy before training, if it is the run's reference.
        judge: Another checkpoint that judges, if one does.
        pair_reference: What the policy before training says of all pairs, if they are learned from; None before the
            run's folder is known.
    """

    model: Model
    params: Params
    frozen: Frozen | None
    adapter: hf.Adapter | None
    tokenizer: "Tokenizer"
    trace_format: TraceFormat
    encoder: Encoder
    rules: Rules
    train: Data
    held_out: list[Encoded]
    limits: Limits
    model_folder: Path
    max_length: int
    layout: Layout | None
    devices: list[jax.Device]
    initial: Policy | None
    judge: Judge | None
    pair_reference: PairReference | None = None

    def policy(self, params: Params) -> Params:
        """The params of the whole policy, given those that are trained."""
        return lora.combine(params, self.frozen)

    def reference(self, state: TrainState) -> Policy | None:
        """The run's reference, if it has one."""
        return self.initial if state.reference is None else Policy(self.model, state.reference, self.frozen)

    def copies(self, params: Params) -> list[Params]:
        """Copies of `policy`, one on each replica that samples."""
        return self.copies_of(self.model, self.policy(params))

    def copies_of(self, model: Model, params: Params) -> list[Params]:
        """Copies of the whole parameters of a model, likewise."""
        return _copies_of(model, params, self.layout, self.devices)


def _copies_of(model: Model, params: Params, layout: Layout | None, devices: Sequence[jax.Device]) -> list[Params]:
    """Copies of whole parameters, one on each replica of the layout, or on each of the devices."""
    if layout is None:
        return [jax.device_put(params, device) for device in devices]
    return layout.copies(model.compute_params(params), model.logical_axes())


def prepare(config: TrainConfig) -> Setup:
    """Loads model and data.

    Raises:
        UserError: A value, file, row, tensor or token is wrong; the message names it.
    """
    config.validate()
    own = config.judge.devices
    parallel.start(config.distributed, num_devices=config.mesh.num_devices + own)
    processes = parallel.num_processes()
    check_shares(config, processes)
    layout = Layout.of(config.mesh, spare=own)
    devices = parallel.use_devices(config.rollout.devices, field="rollout.devices", spare=own // processes)
    backends.check(config.attention, field="attention")
    questions = config.evaluation.questions
    dataset = config.rows
    opened = open_sources(config.data, dataset, num_held_out=questions, seed=config.seed)
    location = checkpoints.locate(config.model)
    if config.lora.rank and (location.has_adapter or location.arrays is not None):
        raise UserError(
            f"model: {config.model!r} is no Hugging Face folder, which adapters need as their base; "
            "make one with python -m launch.convert to-hf"
        )
    plain, known = checkpoints.load_description(location, dtype=config.dtype)
    plain = dataclasses.replace(plain, attention=config.attention)
    trace_format, model, _, tokenizer = formats.resolve(config.trace, plain, {}, known)
    encoder = Encoder(tokenizer, trace_format, config.text)
    if config.text.chat_template:  # The export's users need what the policy was trained with.
        tokenizer.chat_template = Path(config.text.chat_template).read_text(encoding="utf-8")
    longest = model.config.max_position_embeddings
    max_length = min(config.rollout.max_length or longest, longest)
    # The rows before the weights: minutes of loading are not to end in a bad row.
    rules = Rules(encoder, config.verifier)
    check = rules.problem if config.has_verdicts else None
    data = load(opened, encoder, dataset, num_held_out=questions, max_length=max_length, check=check)
    _check_rows(config, data)
    param_dtype = config.dtype if config.lora.rank else "float32"  # only what is trained needs float32
    params = checkpoints.load_params(location, plain, param_dtype=param_dtype, mesh=layout and layout.train)
    params = formats.resolve(config.trace, plain, params, known)[2]  # with the rows of added tokens
    adapter = frozen = None
    if config.lora.rank:
        model = dataclasses.replace(model, lora=config.lora)
        added = sorted(tokenizer.get_vocab()[x] for x in tokenizer.get_vocab().keys() - known.get_vocab().keys())
        params, frozen = lora.split(model, params, added, jax.random.key(config.seed))
        base = str(location.base.absolute()) if checkpoints.is_local(config.model) else config.model
        adapter = hf.Adapter(config.lora, base, tuple(added))
    if layout:
        params = layout.place(params, lora.logical_axes(model, params))
        frozen = frozen and layout.place(frozen, lora.frozen_axes(model))
    return Setup(
        model=model,
        params=params,
        frozen=frozen,
        adapter=adapter,
        tokenizer=tokenizer,
        trace_format=trace_format,
        encoder=encoder,
        rules=rules,
        train=data,
        held_out=data.held_out,
        limits=Limits(
            trace=config.rollout.max_trace_length,
            answer=config.max_answer_length(data.longest_answer + rules.num_tag_tokens),
            chunk_size=config.rollout.chunk_size,
        ),
        model_folder=location.base,
        max_length=max_length,
        layout=layout,
        devices=devices,
        initial=initial_policy(model, params, frozen) if config.reference.kind == "initial" else None,
        judge=_judge(config, layout, devices),
    )


def check_shares(config: TrainConfig, processes: int) -> None:
    """Raises UserError for what the processes of a run cannot divide among them."""
    judge = config.judge
    for field, value, parts in (
        ("rollout.prompts", config.rollout.prompts, processes),
        ("judge.devices", judge.devices, processes * judge.tensor),
    ):
        if value % parts:
            raise UserError(
                f"{field}: {value} cannot be divided among {processes} processes; expected a multiple of {parts}"
            )


def _check_rows(config: TrainConfig, data: Data) -> None:
    """Raises UserError if the objective needs columns that the rows lack."""
    where, dataset = ", ".join(config.data), config.rows
    if config.objective == "sft_with_trace" and not data.has_traces:
        raise UserError(
            f"objective: 'sft_with_trace' learns from traces and {where} has none; expected rows "
            f"with a column {dataset.trace_column!r} (--dataset.trace-column), or --objective sft"
        )
    if config.objective == "dpo" and data.num_without_pair:
        raise UserError(
            f"objective: 'dpo' learns from pairs, and {data.num_without_pair} rows of {where} have "
            f"none; expected columns {dataset.chosen_column!r} and {dataset.rejected_column!r} "
            "(--dataset.chosen-column, --dataset.rejected-column) in all of them"
        )
    if config.hints.steps and data.num_without_trace:
        raise UserError(
            f"hints.steps: {config.hints.steps} needs a chain of thought for each question, and "
            f"{data.num_without_trace} rows of {where} have none; expected a column "
            f"{dataset.trace_column!r} (--dataset.trace-column) in all of them"
        )


def _judge(config: TrainConfig, layout: Layout | None, devices: Sequence[jax.Device]) -> Judge | None:
    """The checkpoint that judges, if one does, with a copy on each replica that samples, or on devices of its own."""
    if not config.reward.judge or not config.judge.is_checkpoint:
        return None
    if config.judge.devices:
        devices = _own_devices(config)
        parts = MeshConfig(data=len(devices) // config.judge.tensor, tensor=config.judge.tensor)
        layout = Layout.of(parts, field="judge", devices=devices)
    with jax.default_device(devices[0]):
        judge = load_judge(config.judge, dtype=config.dtype, mesh=layout and layout.train)
    placed = layout.place(judge.params, judge.model.logical_axes()) if layout else judge.params
    return dataclasses.replace(judge, params=_copies_of(judge.model, placed, layout, devices))


def _own_devices(config: TrainConfig) -> list[jax.Device]:
    """This process's devices that only judge, behind those that train and sample."""
    processes = parallel.num_processes()
    first, count = max(config.mesh.num_devices // processes, config.rollout.devices), config.judge.devices // processes
    return sorted(jax.local_devices(), key=lambda device: device.id)[first : first + count]
