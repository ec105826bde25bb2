"""AdamW with global-norm clipping, warm-up and a choice of decay, on optax."""

import dataclasses
import functools
from typing import Literal

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019).

    Attributes:
        learning_rate: Peak learning rate.
        warmup_updates: Updates over which the learning rate rises linearly from 0.
        schedule: After the warm-up: `constant`, or `cosine` to 0 at the run's last update.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay, on matrices only (not on norms).
        clip_norm: Global norm above which a gradient is scaled down; 0 for none.
    """

    learning_rate: float = 2e-6
    warmup_updates: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0


@functools.cache  # The same object each time: jit tells optimizers apart by identity.
def make_optimizer(config: OptimizerConfig, num_updates: int) -> optax.GradientTransformation:
    """The optimizer of a run of `num_updates` updates."""
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_updates else config.learning_rate,
            config.learning_rate,
            config.warmup_updates,
            max(num_updates, config.warmup_updates + 1),
        )
    else:
        rate = optax.join_schedules(
            [
                optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_updates, 1)),
                optax.constant_schedule(config.learning_rate),
            ],
            [config.warmup_updates],
        )
    adamw = optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=_decays
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def _decays(params):
    """True for matrices: a norm's scale has one axis, or two with the stacked layers."""
    return {
        name: _decays(value) if isinstance(value, dict) else not name.endswith("norm") for name, value in params.items()
    }
