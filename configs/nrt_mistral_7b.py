"""NRT for Mistral-7B-v0.3 on v5p:2x2x2, eight chips of 95 GB: `configs/nrt.py` with a mesh."""

import dataclasses

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Give it `--data SOURCE`. What it takes: `python -m launch.plan --config nrt_mistral_7b --topology v5p:2x2x2`."""
    recipe = nrt.get_config()
    return dataclasses.replace(
        recipe,
        model="mistralai/Mistral-7B-v0.3",
        mesh=MeshConfig(fsdp=8, decode_tensor=4),
        micro_batches=8,
        rollout=dataclasses.replace(recipe.rollout, max_rows=64),
    )
