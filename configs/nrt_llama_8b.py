"""NRT for Llama-3.1-8B on v5p:2x2x2, eight chips of 95 GB: `configs/nrt.py` with a mesh."""

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Give it `--data SOURCE`. What it takes: `python -m launch.plan --config nrt_llama_8b --topology v5p:2x2x2`."""
    return nrt.on(MeshConfig(fsdp=8, decode_tensor=4), "meta-llama/Llama-3.1-8B", micro_batches=8, max_rows=64)
