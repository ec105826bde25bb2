"""NRT for Mistral-7B-v0.3 on v5p:2x2x2, eight chips of 95 GB: `configs/nrt.py` with a mesh."""

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Give it `--data SOURCE`. What it takes: `python -m launch.plan --config nrt_mistral_7b --topology v5p:2x2x2`."""
    return nrt.on(MeshConfig(fsdp=8, decode_tensor=4), "mistralai/Mistral-7B-v0.3", micro_batches=8, max_rows=64)
