"""The hyperparameters that make a checkpoint a Llama or a Mistral."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the ways to stretch it to longer contexts.

    A field that its `type` does not name is not used.

    Attributes:
        theta: Base of the geometric progression of wavelengths.
        type: `default`; `linear` stretches every wavelength by `factor` (Chen et al. 2023, arXiv 2306.15595);
            `llama3` stretches the long ones (Llama 3.1's model card); `yarn` stretches the long ones and sharpens
            attention (Peng et al. 2023, arXiv 2309.00071).
        factor: linear, llama3, yarn: the stretch.
        original_max_position_embeddings: llama3, yarn: context length before the stretch, in tokens.
        low_freq_factor: llama3: wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched.
        high_freq_factor: llama3: those below `original_max_position_embeddings / high_freq_factor` stay.
        beta_fast: yarn: what turns more often than this within the original context stays.
        beta_slow: yarn: what turns less often than this is stretched.
        truncate: yarn: round the two bounds, counted in pairs of dimensions, outwards to whole pairs.
        attention_factor: yarn: multiplies rotated queries and keys each; None is the paper's 0.1 ln(factor) + 1.
    """

    theta: float = 10000.0
    type: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only transformer family: Llama 2/3 and Mistral differ in these fields alone.

    Attributes:
        model_type: Which family to export as, `llama` or `mistral`.
        vocab_size: V, rows of the embedding.
        hidden_size: D.
        intermediate_size: F, width of the SwiGLU feed-forward.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: G, key and value heads; H is a multiple of G (grouped-query attention).
        head_dim: d, which need not be D / H (Mistral-Nemo).
        rope: Rotary position embedding.
        norm_eps: Added to the mean square in RMSNorm.
        tie_embeddings: The output head is the embedding.
        sliding_window: A token sees this many last tokens, itself included; None sees all.
        max_position_embeddings: Longest sequence that the checkpoint claims to support, in tokens.
        dtype: Compute dtype. Parameters stay float32; norms, softmax and logits are float32.
    """

    model_type: Literal["llama", "mistral"] = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    sliding_window: int | None = None
    max_position_embeddings: int = 8192
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def num_parameters(self) -> int:
        """Number of scalars in the params pytree."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        layer = attention + feed_forward + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size
