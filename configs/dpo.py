"""Direct preference optimisation with its paper's numbers (arXiv 2305.18290), and AdamW for its RMSprop."""

from nrt_jax.data.encode import TextConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.training.config import RolloutConfig, TrainConfig
from nrt_jax.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data FILE`, with rows of a question, a chosen and a rejected completion.

    A step is one update of `rollout.prompts` pairs; the rest of `rollout` is for the evaluation, which samples. With
    adapters the learning rate is better ten times as high, and so it is for the embedded model.
    """
    return TrainConfig(
        objective="dpo",
        steps=1000,
        updates_per_step=1,
        micro_batches=8,
        dtype="bfloat16",
        remat="full",
        text=TextConfig(max_prompt_length=1024, max_answer_length=1024),
        rollout=RolloutConfig(prompts=64, max_trace_length=1024),
        optimizer=OptimizerConfig(learning_rate=1e-6, warmup_updates=150, weight_decay=0.0),
        evaluation=EvaluationConfig(questions=256),
    )
