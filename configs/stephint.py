"""StepHint against plain rollouts: problems of which the weak base solves some, and never comes upon the others."""

import dataclasses

from configs import default
from nrt_jax.rollout.hints import HintConfig
from nrt_jax.training.ablation import AblationConfig
from nrt_jax.training.config import RewardConfig


def get_config() -> AblationConfig:
    """Twelve rollouts a question either way, a verifiable reward, chains from the task's own worked solutions.

    For the intrinsic reward of NRT: `--recipe.reward.intrinsic 1 --recipe.reward.verifiable 0`.
    """
    recipe = default.get_config()
    rollout = {"prompts": 16, "group_size": 12, "max_trace_length": 32, "chunk_size": 32}
    return AblationConfig(
        output="runs/stephint",
        bases=("tiny_weak",),
        arms=("plain", "hints"),
        recipe=dataclasses.replace(
            recipe,
            steps=150,
            dataset=dataclasses.replace(recipe.dataset, level="hard"),
            rollout=dataclasses.replace(recipe.rollout, **rollout),
            hints=HintConfig(min_distance=3),
            reward=RewardConfig(intrinsic=0.0, verifiable=1.0),
            evaluation=dataclasses.replace(recipe.evaluation, questions=256, every=30, examples=0),
            checkpoint=dataclasses.replace(recipe.checkpoint, every=0, keep=1),
        ),
    )
