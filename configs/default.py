"""The embedded default: a tiny Llama learns to work out clock problems, in minutes on a laptop."""

from nrt_jax.data.encode import TextConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.objectives import NRTLossConfig
from nrt_jax.training.config import CheckpointConfig, RolloutConfig, TrainConfig
from nrt_jax.training.optimizer import OptimizerConfig


def get_config() -> TrainConfig:
    """The recipe of the paper (weighted sum by -log p, clipped at the empty trace), scaled down to two cores."""
    return TrainConfig(
        model="tiny",
        data=("clock",),
        steps=100,
        updates_per_step=1,
        text=TextConfig(max_prompt_length=256, max_answer_length=64),
        rollout=RolloutConfig(prompts=32, group_size=8, max_trace_length=24, chunk_size=24),
        loss=NRTLossConfig(delimiter_mean="sequences"),
        optimizer=OptimizerConfig(learning_rate=7e-4, warmup_updates=10, schedule="cosine", b2=0.99, weight_decay=0.0),
        evaluation=EvaluationConfig(questions=512, every=20),
        checkpoint=CheckpointConfig(every=50),
    )
