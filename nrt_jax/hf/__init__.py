"""Hugging Face folders in and out: config.json, safetensors and tokenizers of Llama and Mistral models."""

from nrt_jax.hf.adapter import (
    ADAPTER_CONFIG_FILE,
    Adapter,
    read_adapter_config,
    read_adapter_params,
    save_adapter,
    write_adapter_config,
)
from nrt_jax.hf.config import from_hf, to_hf
from nrt_jax.hf.folder import (
    check_writable,
    complete_or_absent,
    copy_description,
    load,
    load_model,
    local_folder,
    read_config,
    rename_dtype,
    save,
    write_description,
)
from nrt_jax.hf.tokenizer import (
    add_tokens,
    check_vocabulary,
    load_tokenizer,
    save_tokenizer,
    token_id,
    vocabulary_size,
)
from nrt_jax.hf.weights import read_params, write_params

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "Adapter",
    "add_tokens",
    "check_vocabulary",
    "check_writable",
    "complete_or_absent",
    "copy_description",
    "from_hf",
    "load",
    "load_model",
    "load_tokenizer",
    "local_folder",
    "read_adapter_config",
    "read_adapter_params",
    "read_config",
    "read_params",
    "rename_dtype",
    "save",
    "save_adapter",
    "save_tokenizer",
    "to_hf",
    "token_id",
    "vocabulary_size",
    "write_adapter_config",
    "write_description",
    "write_params",
]
