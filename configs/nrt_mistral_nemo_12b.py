"""NRT for Mistral-Nemo-Base-2407 on v5p:2x2x4, sixteen chips of 95 GB: `configs/nrt.py` with a mesh."""

import dataclasses

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """What it takes: `python -m launch.plan --config nrt_mistral_nemo_12b --topology v5p:2x2x4`."""
    recipe = nrt.get_config()
    return dataclasses.replace(
        recipe,
        model="mistralai/Mistral-Nemo-Base-2407",
        mesh=MeshConfig(fsdp=16, decode_tensor=4),
        micro_batches=4,
        rollout=dataclasses.replace(recipe.rollout, max_rows=64),
    )
