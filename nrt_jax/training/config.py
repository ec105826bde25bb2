"""The config of `launch.train`: every method is a value of it."""

import dataclasses
from typing import Literal

from nrt_jax.data.encode import TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.rows import DataConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.models import LoRAConfig, Remat
from nrt_jax.models.backends import Backend
from nrt_jax.objectives import AdvantageConfig, DPOConfig, NRTLossConfig
from nrt_jax.parallel import DistributedConfig, MeshConfig
from nrt_jax.rewards import JudgeConfig, ShapingConfig, VerifierConfig
from nrt_jax.rollout.hints import HintConfig
from nrt_jax.training import validation
from nrt_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """What a step samples.

    Attributes:
        prompts: P, questions a step.
        group_size: K, traces a question.
        max_trace_length: Z, most tokens of a trace.
        max_answer_length: Most tokens that are sampled after it and its delimiter, in evaluation and where a reward
            wants answers, tags and EOS included; 0 for as many as the longest reference answer and the tags have, or
            for `text.max_answer_length` where no reward looks at references.
        max_length: Most tokens of prompt, trace, delimiter and answer together; a longer sample loses the tail of its
            trace. 0 for what the model supports.
        temperature: Of sampling; scores and losses divide their logits by it too.
        top_k: Only the k likeliest tokens may be drawn; 0 is off. With any truncation the policy that samples is no
            longer quite the one that learns.
        top_p: Of those, only the fewest whose probabilities add up to top_p; 1 is off.
        min_p: Only tokens at least min_p times as likely as the likeliest; 0 is off.
        chunk_size: Steps between two looks at which rows are done, and least slots of a row's cache.
        max_rows: Rows that a device decodes at once, while others wait; 0 for all. Memory follows from it: beside them
            there are caches of as many rows that are done but whose groups are not.
        cache_dtype: Of the keys and values that decoding and scoring read; `auto` is bfloat16 on accelerators, and on a
            CPU the compute dtype.
        devices: Devices that sample, each with a copy of the policy, where one device trains; of a mesh, all sample.
    """

    prompts: int = 256
    group_size: int = 8
    max_trace_length: int = 2048
    max_answer_length: int = 0
    max_length: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    chunk_size: int = 128
    max_rows: int = 0
    cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What a trace is rewarded for: a weighted sum.

    Without an intrinsic part, the policy learns from the answers that it writes itself (reinforcement learning with
    verifiable rewards); with one, from its traces and from y*, as in NRT, and a sampled answer only adds to the reward.

    Attributes:
        mode: An aggregation of c_i (`nrt_jax.rewards.AGGREGATIONS`, and of whole groups, `GROUP_AGGREGATIONS`), or
            `random`: uniform noise, a control.
        intrinsic: Weight of that, after the baseline (`advantage.clip`).
        format: Weight of 1 for a well-formed completion, 0 for any other. Where no answer is sampled, one is well
            formed if the policy wrote the delimiter.
        verifiable: Weight of the verifier's score of the answer that the policy writes.
        judge: Weight of what a judge says of that answer (`JudgeConfig`), where there is no reference to compare with.
        normalise: `group` divides what each reward is above its mean of a question's traces by their standard deviation
            before it is weighted, so that weights compare like with like; `none` does not.
        shaping: Punishments, added to the sum.
    """

    mode: str = "weighted_sum_log_prob"
    intrinsic: float = 1.0
    format: float = 0.0
    verifiable: float = 0.0
    judge: float = 0.0
    normalise: Literal["none", "group"] = "none"
    shaping: ShapingConfig = ShapingConfig()

    @property
    def samples_answer(self) -> bool:
        """The policy goes on after the delimiter."""
        return self.verifiable != 0 or self.judge != 0 or self.intrinsic == 0

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Of the intrinsic reward, the format, the verifier's score and the judge's."""
        return self.intrinsic, self.format, self.verifiable, self.judge


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """A second policy beside the one that learns (`nrt_jax.training.reference`).

    Attributes:
        kind: `none`; `initial`, the policy before training (with adapters, the base without them); or `ema`, a moving
            average of the one that learns.
        decay: Of the moving average: reference = decay x reference + (1 - decay) x params.
        every: Steps between two updates of it: 1 for RLP's average, 100 with decay 0.9 for NOVER's synchronised proxy.
        scores: What it scores in place of the policy: `nothing`; `answers`, c_i of the answer after each trace (NOVER);
            or `empty_trace`, c_i,base of the answer after none (RLPR, RLP). Token signals stay the policy's.
    """

    kind: Literal["none", "initial", "ema"] = "none"
    decay: float = 0.999
    every: int = 1
    scores: Literal["nothing", "answers", "empty_trace"] = "nothing"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved.

    Attributes:
        every: Steps between checkpoints; 0 for the end only.
        keep: Last checkpoints kept.
        best: Kept beside them: those with the highest accuracy on held-out questions (with `dpo`, of preferences on
            held-out pairs), if `evaluation.every` measured it at their step.
        export_dtype: Dtype of the exported `hf/` folder's tensors.
    """

    every: int = 50
    keep: int = 2
    best: int = 1
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What a person sees of the run.

    Attributes:
        every: Steps between samples of the traces, in `traces.jsonl` and TensorBoard; 0 for none. The first step's are
            always among them.
        groups: Questions of each sample, with all traces.
        wandb: Project of Weights & Biases to which the metrics go, too; empty for none.
    """

    every: int = 10
    groups: int = 2
    wandb: str = ""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: Llama or Mistral to start from: a folder in Hugging Face format or a hub id, an Orbax checkpoint, a run's
            folder, a PEFT adapter, or a built-in one (`tiny`, `tiny_weak`, `tiny_meta`).
        data: Where questions come from, one or more of: a built-in task; a .jsonl, .json or .parquet file; a folder of
            .parquet files, or one that `datasets` saved (`FOLDER:SPLIT`); `tfds:NAME[/CONFIG][:SPLIT]`; `gym:NAME`;
            after `judging:`, one of these with responses that have labels.
        workdir: The run's folder; empty for a new one under runs/. Given the folder of an unfinished run, resumes it.
        objective: `nrt`; `sft`, cross-entropy on the answer after an empty trace; `sft_with_trace`, on trace and
            answer of data that has traces; or `dpo`, on pairs of a chosen and a rejected completion.
        steps: Rollouts; each feeds `updates_per_step` optimizer updates.
        updates_per_step: Mini-batches that a step's prompts are split into.
        micro_batches: Parts of a mini-batch, sorted by length, whose gradients are added up: more parts need less
            memory and hold less padding (`padding_share` in the metrics), and do not change the result.
        max_skipped: Updates with a loss or gradient that is not finite are skipped; so many steps in a row with one end
            the run.
        seed: Of everything random.
        dtype: Compute dtype of the model; parameters stay float32.
        attention: What computes attention over many tokens: `auto` is flash attention where the device has it (`cudnn`
            on NVIDIA GPUs, in bfloat16; `splash` on TPUs), and `xla` elsewhere.
        remat: What a layer keeps for the backward pass: `none`, everything; `dots`, the outputs of its matrix products
            and of attention; `full`, its input alone.
        dataset: Columns, bad rows, mixture and held-out part of the data.
        text: Template and length limits.
        trace: Trace format.
        rollout: Sampling.
        hints: Rows that start from the first steps of a right chain (StepHint).
        reward: Reward.
        verifier: How the answers that the policy writes are judged, in evaluation and for a reward.
        judge: Who judges them where that is a reward of its own.
        advantage: Baseline and scale of advantages.
        loss: Policy loss, weights and switches.
        dpo: Loss of `--objective dpo`.
        reference: A second policy, for KL or to score in place of the one that learns.
        lora: Low-rank adapters; the run then exports `adapter/` for PEFT beside the merged `hf/`.
        mesh: Layout over devices.
        distributed: The processes of a run on several hosts.
        optimizer: AdamW.
        evaluation: Evaluation on held-out questions.
        checkpoint: Saving.
        report: What a person sees of it.
    """

    model: str = "tiny"
    data: tuple[str, ...] = ("clock",)
    workdir: str = ""
    objective: Literal["nrt", "sft", "sft_with_trace", "dpo"] = "nrt"
    steps: int = 810
    updates_per_step: int = 4
    micro_batches: int = 1
    max_skipped: int = 5
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Backend = "auto"
    remat: Remat = "dots"
    dataset: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig()
    rollout: RolloutConfig = RolloutConfig()
    hints: HintConfig = HintConfig()
    reward: RewardConfig = RewardConfig()
    verifier: VerifierConfig = VerifierConfig()
    judge: JudgeConfig = JudgeConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: NRTLossConfig = NRTLossConfig()
    dpo: DPOConfig = DPOConfig()
    reference: ReferenceConfig = ReferenceConfig()
    lora: LoRAConfig = LoRAConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()

    def validate(self) -> None:
        """Raises UserError for values that cannot work, before anything is loaded or written."""
        validation.validate(self)

    @property
    def rows(self) -> DataConfig:
        """How rows are read: `dataset`, with pairs where the objective learns from them."""
        return dataclasses.replace(self.dataset, pairs=self.dataset.pairs or self.objective == "dpo")

    @property
    def compares_answers(self) -> bool:
        """A reward looks at the reference answers; else they may be dummies, and say nothing about sampled ones."""
        is_unlabelled = self.reward.judge != 0 and not self.judge.audit
        return not is_unlabelled and (self.reward.intrinsic != 0 or self.reward.verifiable != 0)

    def max_answer_length(self, longest_reference: int) -> int:
        """Most tokens of a sampled answer, EOS included, given those of the longest reference answer."""
        known = longest_reference if self.compares_answers else self.text.max_answer_length
        return self.rollout.max_answer_length or known

    @property
    def has_verdicts(self) -> bool:
        """The verifier judges training rows, for a reward or to audit the judge."""
        is_audited = self.reward.judge != 0 and self.judge.audit
        return self.objective == "nrt" and (self.reward.verifiable != 0 or is_audited)

    def resolve(self, answer_length: int | None = None) -> "TrainConfig":
        """With numbers in the place of those that stand for the most that a row samples, which flags may change.

        Args:
            answer_length: Most tokens of a sampled answer, which the data say; None for as many as are allowed.
        """
        shaping, loss = self.reward.shaping, self.loss
        if answer_length is None:
            answer_length = self.max_answer_length(self.text.max_answer_length)
        sampled = self.rollout.max_trace_length + (1 + answer_length if self.reward.samples_answer else 0)
        longest = sampled if shaping.overlong_max == -1 else shaping.overlong_max
        cache = longest // 5 if shaping.overlong_cache == -1 else shaping.overlong_cache
        shaping = dataclasses.replace(shaping, overlong_max=longest, overlong_cache=cache)
        loss = dataclasses.replace(loss, constant=loss.constant or float(sampled))
        return dataclasses.replace(self, reward=dataclasses.replace(self.reward, shaping=shaping), loss=loss)
