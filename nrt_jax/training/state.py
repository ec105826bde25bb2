"""What a run carries from step to step."""

import flax.struct
import jax
import optax

from nrt_jax.models import Params


@flax.struct.dataclass(kw_only=True)
class TrainState:
    """The trainable state; everything random derives from the run's seed and `step`.

    Attributes:
        step: [] int32, rollouts done.
        params: What is trained of the policy: all of its params, or adapters (`nrt_jax.models.lora`).
        opt_state: Of the optimizer.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def create_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(step=jax.numpy.int32(0), params=params, opt_state=optimizer.init(params))


def abstract_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes and dtypes of a state with such params, for restoring a checkpoint."""
    return jax.eval_shape(lambda params: create_state(params, optimizer), params)
