"""NRT for Llama-3.1-8B on v5e:8x8, 64 chips of 16 GB: `configs/nrt.py` with a mesh."""

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Give it `--data SOURCE`. What it takes: `python -m launch.plan --config nrt_llama_8b_v5e --topology v5e:8x8`."""
    mesh = MeshConfig(fsdp=8, tensor=8, decode_tensor=4)
    return nrt.on(mesh, "meta-llama/Llama-3.1-8B", micro_batches=8, max_rows=8)
