"""Libra's first stage (arXiv 2507.21645): fine-tuning on thoughts that end in the right verdict, and other data.

    python -m launch.chains --checkpoint DIR --data judging:train.jsonl --verifier.name verdict --output chains.jsonl
    python -m launch.train --config libra/sft --model DIR --data chains.jsonl OTHER --dataset.weights 0.8 0.2 \
        --dataset.held-out judging:test.jsonl

Known: rejection sampling, then fine-tuning on what is kept, mixed with non-judging data. Ours: the weights, the
learning rate, the trace format.
"""

import dataclasses

from configs import nrt
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.rewards import VerifierConfig
from nrt_jax.training.config import TrainConfig

TRACE = TraceFormatConfig("<think>", "</think>")


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    recipe = change(nrt.get_config())
    return dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, learning_rate=1e-5))


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        recipe, objective="sft_with_trace", trace=TRACE, verifier=VerifierConfig("verdict"), updates_per_step=1
    )
