"""The released NRT recipe (arXiv 2602.11549): 810 steps of 256 prompts, eight traces each, -log p rewards."""

import dataclasses

from nrt_jax.data.encode import TextConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.objectives import AdvantageConfig
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import RolloutConfig, TrainConfig
from nrt_jax.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`. The release does not clip at the empty trace; the paper does.

    The release's own data: `python -m launch.prepare --parquet DIR` makes it from the published files of
    tulu-3-sft-mixture; then `--data tfds:tulu3_sft_mixture:train --dataset.held-out tfds:tulu3_sft_mixture:test`.

    Sampling, scoring and the update are split (`max_rows`, `micro_batches`), and the policy by `--mesh.fsdp` and
    `--mesh.tensor`. Where a device's memory is short, lower `--rollout.max-rows` and `--evaluation.batch-size`, a
    quarter of it (a question of evaluation has a prompt and an answer of its own, where a row shares the one), raise
    `--micro-batches` (prompts / updates / micro-batches stays a multiple of data x fsdp).
    """
    return TrainConfig(
        steps=810,
        updates_per_step=4,
        micro_batches=8,
        dtype="bfloat16",
        remat="full",
        text=TextConfig(max_prompt_length=4096, max_answer_length=4096),
        rollout=RolloutConfig(prompts=256, group_size=8, max_trace_length=2048, max_rows=256),
        advantage=AdvantageConfig(clip="none"),
        optimizer=OptimizerConfig(
            learning_rate=2e-6, warmup_updates=324, b1=0.9, b2=0.95, eps=1e-15, weight_decay=0.01
        ),
        evaluation=EvaluationConfig(questions=1024, every=50, batch_size=64),
    )


def on(mesh: MeshConfig, model: str, *, micro_batches: int, max_rows: int) -> TrainConfig:
    """The recipe for a model and the devices that it fits on: the numbers of the method stay."""
    recipe = get_config()
    split = {"mesh": mesh, "micro_batches": micro_batches}
    rollout = dataclasses.replace(recipe.rollout, max_rows=max_rows)
    evaluation = dataclasses.replace(recipe.evaluation, batch_size=max(1, max_rows // 4))
    return dataclasses.replace(recipe, model=model, rollout=rollout, evaluation=evaluation, **split)
