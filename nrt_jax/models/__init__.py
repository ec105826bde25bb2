"""The Llama/Mistral transformer family."""

from nrt_jax.models.attention import KVCache, empty_cache
from nrt_jax.models.config import ModelConfig, RopeConfig
from nrt_jax.models.log_probs import token_log_probs
from nrt_jax.models.lora import Frozen, LoRAConfig
from nrt_jax.models.model import Model, Params
from nrt_jax.models.transformer import Remat, Transformer

__all__ = [
    "Frozen",
    "KVCache",
    "LoRAConfig",
    "Model",
    "ModelConfig",
    "Params",
    "Remat",
    "RopeConfig",
    "Transformer",
    "empty_cache",
    "token_log_probs",
]
