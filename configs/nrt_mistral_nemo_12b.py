"""NRT for Mistral-Nemo-Base-2407 on v5p:2x2x4, sixteen chips of 95 GB: `configs/nrt.py` with a mesh."""

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """What it takes: `python -m launch.plan --config nrt_mistral_nemo_12b --topology v5p:2x2x4`."""
    return nrt.on(
        MeshConfig(fsdp=16, decode_tensor=4), "mistralai/Mistral-Nemo-Base-2407", micro_batches=4, max_rows=64
    )
