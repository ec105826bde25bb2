"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): pairs of completions, and no reward model.

    h = log pi(y_w | x) / pi_ref(y_w | x) - log pi(y_l | x) / pi_ref(y_l | x)
    sigmoid    L = -(1 - e) log sigma(beta h) - e log sigma(-beta h)    equation 7; e > 0 is cDPO (Mitchell 2023)
    ipo        L = (h' - 1 / (2 beta))^2                                Azar et al. 2023, arXiv 2310.12036, equation 17

h' is h with each log-ratio divided by its completion's tokens: the paper has h, but its authors told trl that its
results are of h', and trl does so.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from nrt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DPOConfig:
    """The loss of `--objective dpo`.

    Attributes:
        beta: How dear it is to leave the reference: the weight of the KL that the loss stands for.
        loss: `sigmoid` (DPO) or `ipo`, which pulls the margin to a number instead of ever further up.
        label_smoothing: Share of pairs that are taken to be labelled the wrong way round (cDPO).
    """

    beta: float = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0

    def validate(self, field: str = "dpo") -> None:
        """Raises UserError for values that cannot work."""
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UserError(f"{field}.beta: {self.beta} cannot work; expected a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"{field}.label_smoothing: {self.label_smoothing} cannot work; expected a number from 0 to below 0.5"
            )
        if self.loss == "ipo" and self.label_smoothing:
            raise UserError(
                f"{field}.label_smoothing: {self.label_smoothing} cannot work; expected 0 with --{field}.loss ipo"
            )


def dpo_loss(
    log_probs: jax.Array,
    mask: jax.Array,
    reference: jax.Array,
    config: DPOConfig,
    num_pairs: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of P pairs.

    Args:
        log_probs: [P, 2, T] float32, current policy, differentiated, of the chosen completion and the rejected one; any
            value outside the mask.
        mask: [P, 2, T] bool, the tokens of completions.
        reference: [P, 2] float32, log pi_ref of whole completions, in nats.
        config: The loss.
        num_pairs: What sums over pairs are divided by; P by default, that of the whole mini-batch for a part of it.

    Returns:
        The loss and means over pairs: `reward_chosen` and `reward_rejected`, the implicit rewards; `reward_margin`,
        their difference; `preference_accuracy`, the share of pairs where it is above 0; `log_prob_chosen` and
        `log_prob_rejected`, of whole completions, in nats.
    """
    terms = pair_terms(jnp.sum(log_probs, -1, where=mask), jnp.sum(mask, -1), reference, config)
    num_pairs = num_pairs or len(reference)
    means = {name: jnp.sum(values) / num_pairs for name, values in terms.items()}
    return means.pop("loss"), means


def pair_terms(
    log_probs: jax.Array, lengths: jax.Array, reference: jax.Array, config: DPOConfig
) -> dict[str, jax.Array]:
    """What `dpo_loss` means over, for each of P pairs.

    Args:
        log_probs: [P, 2] float32, log pi of the whole chosen and the whole rejected completion, in nats.
        lengths: [P, 2] int32, their tokens.
        reference: [P, 2] float32, log pi_ref of both.
        config: The loss.

    Returns:
        Each [P]: `loss`, and the metrics of `dpo_loss`.
    """
    log_ratio = log_probs - reference
    h = log_ratio[:, 0] - log_ratio[:, 1]
    if config.loss == "ipo":
        per_token = log_ratio / jnp.maximum(lengths, 1)
        loss = jnp.square(per_token[:, 0] - per_token[:, 1] - 1 / (2 * config.beta))
    else:
        right, wrong = jax.nn.log_sigmoid(config.beta * h), jax.nn.log_sigmoid(-config.beta * h)
        loss = -(1 - config.label_smoothing) * right - config.label_smoothing * wrong
    return {
        "loss": loss,
        "reward_chosen": config.beta * log_ratio[:, 0],
        "reward_rejected": config.beta * log_ratio[:, 1],
        "reward_margin": config.beta * h,
        "preference_accuracy": h > 0,
        "log_prob_chosen": log_probs[:, 0],
        "log_prob_rejected": log_probs[:, 1],
    }
