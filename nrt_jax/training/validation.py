"""Which values of a run's config can work, and which go together: one clear line for those that do not."""

import dataclasses
import functools
import importlib.util
import math
from typing import TYPE_CHECKING

from nrt_jax.errors import UserError, unknown_name
from nrt_jax.models.lora import PROJECTIONS
from nrt_jax.rewards import AGGREGATIONS, BELOW_ZERO, GROUP_AGGREGATIONS, get_verifier
from nrt_jax.rollout import check_truncation

if TYPE_CHECKING:
    from nrt_jax.training.config import TrainConfig


def validate(config: "TrainConfig") -> None:
    """Raises UserError for values that cannot work."""
    _validate_numbers(config)
    _validate_names(config)
    _validate_reward(config)
    if config.hints.steps:
        _validate_hints(config)
    _validate_judge(config)
    _require_finite(config)
    _validate_method(config)
    config.dpo.validate()
    config.mesh.validate()
    config.distributed.validate()
    _validate_layout(config)


def _validate_numbers(config: "TrainConfig") -> None:
    for name in _POSITIVE:
        value = _field(config, name)
        _require(value > 0, name, value, "a number above 0")
    for name in _NOT_NEGATIVE:
        value = _field(config, name)
        _require(value >= 0, name, value, "0 or more")
    for name in ("optimizer.b1", "optimizer.b2", "reference.decay", "advantage.std_decay"):
        value = _field(config, name)
        _require(0 <= value < 1, name, value, "a number from 0 to below 1")
    check_truncation(config.rollout.top_k, config.rollout.top_p, config.rollout.min_p, prefix="rollout.")
    _require(config.seed < 2**32, "seed", config.seed, "a number below 2**32")
    low, high = config.loss.ratio_low, config.loss.ratio_high
    _require(low <= high, "loss.ratio_low", low, f"at most ratio_high, {high}")
    _require(config.lora.rank == 0 or config.lora.alpha > 0, "lora.alpha", config.lora.alpha, "a number above 0")


def _validate_names(config: "TrainConfig") -> None:
    _require(not isinstance(config.data, str), "data", repr(config.data), "a tuple of sources, such as ('clock',)")
    opening, closing = config.trace.opening, config.trace.closing
    _require(opening != closing, "trace.opening", repr(opening), "another token than trace.closing")
    for target in config.lora.targets:
        if target not in PROJECTIONS:
            raise unknown_name("lora.targets", target, PROJECTIONS)
    _require(bool(config.lora.targets), "lora.targets", "()", "at least one of " + ", ".join(PROJECTIONS))
    _require(
        not config.report.wandb or importlib.util.find_spec("wandb") is not None,
        "report.wandb",
        repr(config.report.wandb),
        "the package wandb, which is not installed: pip install wandb",
    )


def _validate_reward(config: "TrainConfig") -> None:
    modes = (*AGGREGATIONS, *GROUP_AGGREGATIONS, "random")
    if config.reward.mode not in modes:
        raise unknown_name("reward.mode", config.reward.mode, modes)
    weights = config.reward.weights
    _require(
        all(map(math.isfinite, weights)) and any(weights),
        "reward",
        f"weights {', '.join(map(str, weights))} of intrinsic, format, verifiable and judge",
        "finite numbers, one of them not 0",
    )
    get_verifier(config.verifier.name)
    needs_group = config.advantage.scale not in ("none", "batch") or config.advantage.min_std > 0
    needs_group |= config.reward.normalise == "group"
    _require(
        config.objective != "nrt" or config.rollout.group_size > 1 or not needs_group,
        "rollout.group_size",
        config.rollout.group_size,
        "at least 2, since one trace has no standard deviation, or --advantage.scale batch",
    )


def _validate_layout(config: "TrainConfig") -> None:
    _require(
        config.mesh.num_devices == 1 or config.rollout.devices == 1,
        "rollout.devices",
        config.rollout.devices,
        "1 beside a mesh, all of whose devices sample",
    )
    shards = config.mesh.data * config.mesh.fsdp
    parts = config.updates_per_step * config.micro_batches * shards
    _require(
        config.rollout.prompts % parts == 0,
        "rollout.prompts",
        config.rollout.prompts,
        f"a multiple of {parts} = updates_per_step x micro_batches{' x mesh.data x mesh.fsdp' * (shards > 1)}, "
        "which split it into equal parts",
    )


def _validate_hints(config: "TrainConfig") -> None:
    hints = config.hints
    _require(hints.steps > 1, "hints.steps", hints.steps, "at least 2, or 0 for no hints")
    for name in ("hints.per_level", "hints.plain", "hints.min_distance"):
        _require(_field(config, name) > 0, name, _field(config, name), "a number above 0")
    _require(
        config.rollout.group_size == hints.group_size,
        "rollout.group_size",
        config.rollout.group_size,
        f"{hints.group_size} = hints.per_level x (hints.steps - 1) + hints.plain + 1",
    )
    _require(config.objective == "nrt", "hints.steps", hints.steps, f"0 with --objective {config.objective}")


def _validate_judge(config: "TrainConfig") -> None:
    judge = config.judge
    _require(
        judge.devices == 0 or (config.reward.judge != 0 and judge.is_checkpoint),
        "judge.devices",
        judge.devices,
        "0 unless --judge.model is a checkpoint and --reward.judge its weight",
    )
    _require(
        judge.devices % judge.tensor == 0 if judge.devices else judge.tensor == 1,
        "judge.tensor",
        judge.tensor,
        f"a divisor of {judge.devices}, judge.devices" if judge.devices else "1 without --judge.devices of its own",
    )


def _validate_method(config: "TrainConfig") -> None:
    """Refuses parts of methods that do not go together."""
    mode, reference, loss, shaping = config.reward.mode, config.reference, config.loss, config.reward.shaping
    is_punished = bool(shaping.overlong_max or shaping.ngram_count)
    is_alone = config.reward.weights == (1, 0, 0, 0) and config.reward.normalise == "none" and not is_punished
    is_alone &= loss.kl_weight == 0 or loss.kl_in == "loss"
    is_alone &= mode in ("jepo", "log_prob") and config.advantage.clip == "none"
    _require(
        config.advantage.scale != "jepo" or is_alone,
        "advantage.scale",
        "'jepo'",
        "--reward.mode jepo or log_prob of weight 1, --advantage.clip none and nothing added to it, since it takes "
        "log p of whole answers",
    )
    _require(
        not shaping.require_delimiter or (config.reward.intrinsic != 0 and mode != "random"),
        "reward.shaping.require_delimiter",
        True,
        "an intrinsic reward, which it makes 0",
    )
    _require(
        not (shaping.require_delimiter and mode in BELOW_ZERO),
        "reward.shaping.require_delimiter",
        True,
        f"a reward that is never below 0: with --reward.mode {mode}, 0 would be the best",
    )
    for name in ("reward.shaping.overlong_max", "reward.shaping.overlong_cache"):
        _require(_field(config, name) >= -1, name, _field(config, name), "0 or more, or -1 for what the run samples")
    punished = config.resolve().reward.shaping
    _require(
        punished.overlong_cache <= punished.overlong_max,
        "reward.shaping.overlong_cache",
        punished.overlong_cache,
        f"at most overlong_max, {punished.overlong_max}",
    )
    is_judge = config.reward.judge != 0 and config.judge.model == "reference"
    is_asked = loss.kl_weight > 0 or reference.scores != "nothing" or is_judge
    _require(
        not is_asked or reference.kind != "none",
        "reference.kind",
        "'none'",
        "'initial' or 'ema', which --loss.kl-weight, --reference.scores and --judge.model reference ask",
    )
    _require(
        is_asked or reference.kind == "none",
        "reference.kind",
        repr(reference.kind),
        "something that asks it: --loss.kl-weight above 0, --reference.scores answers or empty_trace, or a judge",
    )
    _require(
        reference.kind == "none" or config.objective == "nrt",
        "reference.kind",
        repr(reference.kind),
        f"'none' with --objective {config.objective}",
    )
    _require(
        reference.scores == "nothing" or (mode != "random" and config.reward.intrinsic != 0),
        "reference.scores",
        repr(reference.scores),
        "'nothing', since it scores y* for the intrinsic reward, and there is none",
    )


def _field(config: "TrainConfig", name: str):
    """The value of a dotted field name."""
    return functools.reduce(getattr, name.split("."), config)


_POSITIVE = (
    "steps",
    "updates_per_step",
    "micro_batches",
    "rollout.prompts",
    "rollout.group_size",
    "rollout.max_trace_length",
    "rollout.chunk_size",
    "rollout.devices",
    "rollout.temperature",
    "optimizer.learning_rate",
    "judge.thoughts",
    "judge.max_thought_length",
    "judge.batch_size",
    "judge.tensor",
    "evaluation.questions",
    "evaluation.batch_size",
    "dataset.size",
    "checkpoint.keep",
    "max_skipped",
    "reference.every",
    "reward.shaping.ngram_size",
)
_NOT_NEGATIVE = (
    "seed",
    "rollout.max_length",
    "rollout.max_answer_length",
    "rollout.max_rows",
    "lora.rank",
    "loss.trace_weight",
    "loss.delimiter_weight",
    "loss.token_weight",
    "loss.ratio_low",
    "loss.kl_weight",
    "loss.constant",
    "advantage.min_std",
    "reward.shaping.ngram_count",
    "optimizer.warmup_updates",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "dataset.workers",
    "hints.steps",
    "evaluation.every",
    "evaluation.examples",
    "evaluation.temperature",
    "judge.devices",
    "judge.temperature",
    "judge.seed",
    "checkpoint.every",
    "checkpoint.best",
    "report.every",
    "report.groups",
)


def _require_finite(config, prefix: str = "") -> None:
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            _require_finite(value, f"{name}.")
        elif isinstance(value, float):
            _require(math.isfinite(value), name, value, "a finite number")


def _require(condition: bool, field: str, value, expected: str) -> None:
    if not condition:
        raise UserError(f"{field}: {value} cannot work; expected {expected}")
