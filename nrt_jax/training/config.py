"""The config of `launch.train`: every method is a value of it."""

import dataclasses
from typing import Literal

from nrt_jax.data.encode import TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.sources import DataConfig
from nrt_jax.errors import UserError, unknown_name
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import AGGREGATIONS
from nrt_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """What a step samples.

    Attributes:
        prompts: P, questions a step.
        group_size: K, traces a question.
        max_trace_length: Z, most tokens of a trace.
        max_length: Most tokens of prompt, trace, delimiter and answer together; a longer sample loses the tail of its
            trace. 0 for no such limit.
        temperature: Of sampling; scores and losses divide their logits by it too.
        chunk_size: Slots by which the decoding cache grows.
    """

    prompts: int = 256
    group_size: int = 8
    max_trace_length: int = 2048
    max_length: int = 0
    temperature: float = 1.0
    chunk_size: int = 128


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What a trace is rewarded for.

    Attributes:
        mode: An aggregation of c_i (`nrt_jax.rewards.AGGREGATIONS`), or `random`: uniform noise, a control.
    """

    mode: str = "weighted_sum_log_prob"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved.

    Attributes:
        every: Steps between checkpoints; 0 for the end only.
        keep: Checkpoints kept.
    """

    every: int = 50
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: Folder of a Llama or Mistral in Hugging Face format, or the name of a built-in one (`tiny`, `tiny_weak`).
        data: Name of a built-in task, or a JSONL file of question-answer rows.
        workdir: The run's folder; empty for a new one under runs/. Given the folder of an unfinished run, resumes it.
        objective: `nrt`; `sft`, cross-entropy on the answer after an empty trace; or `sft_with_trace`, on trace and
            answer of data that has traces.
        steps: Rollouts; each feeds `updates_per_step` optimizer updates.
        updates_per_step: Mini-batches that a step's prompts are split into.
        micro_batches: Parts of a mini-batch whose gradients are accumulated, to save memory.
        seed: Of everything random.
        dtype: Compute dtype of the model; parameters stay float32.
        remat: Recompute each layer in the backward pass, to save memory.
        dataset: Columns, level and size of the data.
        text: Template and length limits.
        trace: Trace format.
        rollout: Sampling.
        reward: Reward.
        advantage: Baseline and scale of advantages.
        loss: Weights and switches of the loss.
        optimizer: AdamW.
        evaluation: Evaluation on held-out questions.
        checkpoint: Saving.
    """

    model: str = "tiny"
    data: str = "clock"
    workdir: str = ""
    objective: Literal["nrt", "sft", "sft_with_trace"] = "nrt"
    steps: int = 810
    updates_per_step: int = 4
    micro_batches: int = 1
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    dataset: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: NRTLossConfig = NRTLossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def validate(self) -> None:
        """Raises UserError for values that cannot work, before anything is loaded or written."""
        positive = {
            "steps": self.steps,
            "updates_per_step": self.updates_per_step,
            "micro_batches": self.micro_batches,
            "rollout.prompts": self.rollout.prompts,
            "rollout.group_size": self.rollout.group_size,
            "rollout.max_trace_length": self.rollout.max_trace_length,
            "rollout.chunk_size": self.rollout.chunk_size,
            "rollout.temperature": self.rollout.temperature,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "evaluation.questions": self.evaluation.questions,
            "evaluation.batch_size": self.evaluation.batch_size,
            "dataset.size": self.dataset.size,
            "checkpoint.keep": self.checkpoint.keep,
        }
        for field, value in positive.items():
            if not value > 0:
                raise UserError(f"{field}: {value} is not positive; expected a number above 0")
        not_negative = {
            "seed": self.seed,
            "rollout.max_length": self.rollout.max_length,
            "evaluation.every": self.evaluation.every,
            "evaluation.examples": self.evaluation.examples,
            "evaluation.temperature": self.evaluation.temperature,
            "checkpoint.every": self.checkpoint.every,
        }
        for field, value in not_negative.items():
            if not value >= 0:
                raise UserError(f"{field}: {value} is negative; expected 0 or more")
        for field, value in {"optimizer.b1": self.optimizer.b1, "optimizer.b2": self.optimizer.b2}.items():
            if not 0 <= value < 1:
                raise UserError(f"{field}: {value} is no decay rate; expected a number from 0 to below 1")
        if not self.loss.ratio_low <= self.loss.ratio_high:
            raise UserError(
                f"loss.ratio_low: {self.loss.ratio_low} is above loss.ratio_high {self.loss.ratio_high}; expected less"
            )
        if self.loss.normaliser == "constant" and not self.loss.constant > 0:
            raise UserError(f"loss.constant: {self.loss.constant} is a divisor; expected a number above 0")
        if self.trace.opening == self.trace.closing:
            raise UserError(
                f"trace.opening: {self.trace.opening!r} is trace.closing too; expected two different tokens"
            )
        if self.seed >= 2**32:
            raise UserError(f"seed: {self.seed} is too large; expected a number below 2**32")
        if self.reward.mode not in (*AGGREGATIONS, "random"):
            raise unknown_name("reward.mode", self.reward.mode, (*AGGREGATIONS, "random"))
        if self.objective == "nrt" and self.rollout.group_size < 2 and self.advantage.scale == "std":
            raise UserError(
                f"rollout.group_size: {self.rollout.group_size} trace has no standard deviation; "
                "expected at least 2, or --advantage.scale none"
            )
        parts = self.updates_per_step * self.micro_batches
        if self.rollout.prompts % parts:
            raise UserError(
                f"rollout.prompts: {self.rollout.prompts} cannot be split into updates_per_step x micro_batches = "
                f"{parts} equal parts; expected a multiple of {parts}"
            )
