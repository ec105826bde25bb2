"""The miniature of the paper's ablation: modes, baseline clip, token signal and controls on the embedded task."""

import dataclasses

from configs import default
from nrt_jax.training.ablation import AblationConfig


def get_config() -> AblationConfig:
    """The default recipe with half its prompts a step, so that the whole grid fits into hours on two cores."""
    recipe = default.get_config()
    return AblationConfig(
        recipe=dataclasses.replace(
            recipe,
            steps=50,
            rollout=dataclasses.replace(recipe.rollout, prompts=16),
            evaluation=dataclasses.replace(recipe.evaluation, questions=256, every=20, examples=0),
            checkpoint=dataclasses.replace(recipe.checkpoint, every=0, keep=1),
        )
    )
