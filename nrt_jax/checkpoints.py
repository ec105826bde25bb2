"""One name for any checkpoint: a Hugging Face folder, an Orbax checkpoint, or a run's folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from nrt_jax import hf
from nrt_jax.models import Model, Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def load(path: str | Path, *, dtype: str = "float32") -> tuple[Model, Params, "Tokenizer"]:
    """Loads model, params and tokenizer from whatever `path` is.

    Args:
        path: The folder.
        dtype: Compute dtype of the model.

    Raises:
        UserError: The folder is none of the three; the line says what was found.
    """
    return hf.load(path, dtype=dtype)
