"""Libra's second stage (arXiv 2507.21645): GRPO on judging tasks, with correctness and a length penalty.

    python -m launch.train --config libra/grpo --model runs/sft --data judging:train.jsonl \
        --dataset.held-out judging:test.jsonl

Known: GRPO with a correctness reward and a length penalty. Ours: the penalty is 0 up to L_exp sampled tokens and falls
linearly to -1 at L_max (`reward.shaping`, L_cache = L_max - L_exp); L_max is the most that a row samples, whatever
flags make of it, and L_cache a fifth of that, as in DAPO; no verdict earns what a wrong one does; no KL term.
"""

import dataclasses

from configs import nrt
from configs.libra.sft import TRACE
from configs.objectives import grpo
from nrt_jax.rewards import ShapingConfig, VerifierConfig
from nrt_jax.training.config import ReferenceConfig, RewardConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data judging:FILE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    recipe = grpo.change(recipe)
    return dataclasses.replace(
        recipe,
        trace=TRACE,
        verifier=VerifierConfig("verdict"),
        reward=RewardConfig(
            intrinsic=0.0,
            verifiable=1.0,
            shaping=ShapingConfig(overlong_max=-1, overlong_cache=-1),
        ),
        loss=dataclasses.replace(recipe.loss, kl_weight=0.0),
        reference=ReferenceConfig(),
    )
