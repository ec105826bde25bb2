"""Stage C of meta-ability alignment (arXiv 2505.10554): RL on a domain, mathematics, from the merged specialists.

python -m launch.merge --models DEDUCTION INDUCTION ABDUCTION --weights 1.0 0.2 0.1 --output runs/merged
python -m launch.train --config meta/domain --model runs/merged --data SOURCE --workdir runs/domain

Answers are compared by math-verify (`pip install -e '.[math]'`); for a domain of other answers, `--verifier.name`. The
specialists of stage A have the same reward and policy gradient.

Known: REINFORCE++ with A = (r - mean) / std over a question's four responses, KL 1e-3 to the frozen start, learning
rate 5e-7, temperature 0.7, level 1 and then level 2; a system prompt that asks for <think> and <answer>; format +1 or
-1 for each tag once and in order; answer +2 exact, -1.5 wrong, -2 where there is nothing to judge.

Ours: the format is worth 2 or 0, which is the same: a constant added to all rewards changes no advantage. The KL (k2)
is in the loss, as in REINFORCE++'s variant with a baseline: in the reward, its roundings alone would be divided by the
std of four equal rewards. <think> ends the prompt, so that the policy writes the other three tags. Steps, questions a
step, lengths and all that the paper leaves open are those of the NRT recipe.
"""

import dataclasses

from configs import nrt
from configs.objectives import reinforce_pp
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.objectives import AdvantageConfig
from nrt_jax.rewards import VerifierConfig
from nrt_jax.tasks import SYSTEM_PROMPT
from nrt_jax.training.config import RewardConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`, an instruct model whose chat template takes a system turn."""
    return recipe("math")


def change(recipe: TrainConfig, verifier: str) -> TrainConfig:
    """Makes the paper's reward and policy gradient those of any recipe."""
    recipe = reinforce_pp.change(recipe)
    return dataclasses.replace(
        recipe,
        advantage=AdvantageConfig(clip="none", scale="std"),
        loss=dataclasses.replace(recipe.loss, kl_in="loss", kl_estimator="k2"),
        reward=RewardConfig(intrinsic=0.0, format=2.0, verifiable=1.0),
        verifier=VerifierConfig(name=verifier, right=2.0, wrong=-1.5, unparseable=-2.0),
    )


def recipe(verifier: str) -> TrainConfig:
    """The paper's training of a model whose answers this verifier judges."""
    config = change(nrt.get_config(), verifier)
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, system=SYSTEM_PROMPT),
        trace=TraceFormatConfig(opening="<think>", closing="</think>"),
        verifier=dataclasses.replace(config.verifier, answer_tag="answer"),
        rollout=dataclasses.replace(config.rollout, group_size=4, temperature=0.7, max_answer_length=256),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=5e-7),
    )


def specialist(task: str) -> TrainConfig:
    """Stage A: one meta-ability at level 1; then `--dataset.level 2` from what level 1 gave."""
    config = recipe(task)
    return dataclasses.replace(config, data=(task,), dataset=dataclasses.replace(config.dataset, level="1"))
