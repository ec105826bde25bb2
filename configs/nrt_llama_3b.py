"""NRT for Llama-3.2-3B on v5e:4x4, sixteen chips of 16 GB: `configs/nrt.py` with a mesh."""

from configs import nrt
from nrt_jax.parallel import MeshConfig
from nrt_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
    """Give it `--data SOURCE`. What it takes: `python -m launch.plan --config nrt_llama_3b --topology v5e:4x4`."""
    return nrt.on(MeshConfig(fsdp=4, tensor=4), "meta-llama/Llama-3.2-3B", micro_batches=16, max_rows=16)
