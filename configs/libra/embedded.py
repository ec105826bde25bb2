"""Libra's pipeline on a model of 350,000 parameters and clock problems: a judge of what the embedded model answers."""

import dataclasses

from configs import default
from configs.libra import grpo, sft
from nrt_jax.rewards import JudgeConfig, ShapingConfig
from nrt_jax.training.libra import LibraConfig
from nrt_jax.training.pretrain import Architecture, PretrainConfig


def get_config() -> LibraConfig:
    """Sized for half an hour on one core."""
    recipe = default.get_config()
    recipe = dataclasses.replace(
        recipe,
        steps=50,
        evaluation=dataclasses.replace(recipe.evaluation, questions=256, every=0, examples=0),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=25, keep=1),
        rollout=dataclasses.replace(recipe.rollout, prompts=16),
    )
    thinking = dataclasses.replace(
        recipe,
        steps=40,
        rollout=dataclasses.replace(recipe.rollout, max_trace_length=48, chunk_size=24),
        evaluation=dataclasses.replace(recipe.evaluation, questions=64),
    )
    tuned = sft.change(dataclasses.replace(thinking, rollout=dataclasses.replace(thinking.rollout, prompts=32)))
    reinforced = grpo.change(thinking)
    pretrain = PretrainConfig(
        task=("judged_clock",), batch_size=32, trace=sft.TRACE, architecture=Architecture(vocab_size=560)
    )
    return LibraConfig(
        questions=1000,
        tests=200,
        pretrain=dataclasses.replace(
            pretrain,
            skill=dataclasses.replace(pretrain.skill, steps=1300),
            habit=dataclasses.replace(pretrain.habit, steps=150),
        ),
        judge=JudgeConfig(thoughts=3, max_thought_length=48, trace=sft.TRACE),
        sft=tuned,
        grpo=dataclasses.replace(
            reinforced,
            optimizer=dataclasses.replace(reinforced.optimizer, learning_rate=2e-4),
            reward=dataclasses.replace(reinforced.reward, shaping=ShapingConfig(overlong_max=72, overlong_cache=24)),
        ),
        policy=dataclasses.replace(
            recipe,
            rollout=dataclasses.replace(recipe.rollout, max_answer_length=24),
            evaluation=dataclasses.replace(recipe.evaluation, every=10),
        ),
    )
