"""From question-answer text to padded batches of token ids."""

from nrt_jax.data.batch import Batch, Prompts, Reference
from nrt_jax.data.example import Example

__all__ = ["Batch", "Example", "Prompts", "Reference"]
