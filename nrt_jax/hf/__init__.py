"""Hugging Face folders in and out: config.json, safetensors and tokenizers of Llama and Mistral models."""

from nrt_jax.hf.config import from_hf, to_hf
from nrt_jax.hf.folder import (
    complete_or_absent,
    copy_description,
    load,
    load_model,
    local_folder,
    read_config,
    save,
    save_description,
)
from nrt_jax.hf.tokenizer import add_tokens, load_tokenizer, save_tokenizer, token_id
from nrt_jax.hf.weights import read_params, write_params

__all__ = [
    "add_tokens",
    "complete_or_absent",
    "copy_description",
    "from_hf",
    "load",
    "load_model",
    "load_tokenizer",
    "local_folder",
    "read_config",
    "read_params",
    "save",
    "save_description",
    "save_tokenizer",
    "to_hf",
    "token_id",
    "write_params",
]
