"""NRT for Llama-3.1-70B on v5p:8x8x4, 256 chips of 95 GB: `configs/nrt.py` with a mesh."""

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Give it `--data SOURCE`. What it takes: `python -m launch.plan --config nrt_llama_70b --topology v5p:8x8x4`."""
    return nrt.on(
        MeshConfig(fsdp=32, tensor=8, decode_tensor=4), "meta-llama/Llama-3.1-70B", micro_batches=2, max_rows=8
    )
