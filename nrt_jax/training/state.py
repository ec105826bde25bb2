"""What a run carries from step to step."""

import flax.struct
import jax
import optax

from nrt_jax import parallel
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
    return parallel.put(_new(params, optimizer), _shardings(params, optimizer))


def abstract_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes, dtypes and shardings of a state with such params, for restoring a checkpoint."""
    shapes = jax.eval_shape(lambda params: _new(params, optimizer), params)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        _shardings(params, optimizer),
    )


def _new(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(step=jax.numpy.int32(0), params=params, opt_state=optimizer.init(params))


def _shardings(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Moments lie as their parameters do, and numbers beside them."""
    of_params, beside = jax.tree.map(lambda x: x.sharding, params), parallel.beside(params)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        of_params,
        transform_non_params=lambda _: beside,
    )
    return TrainState(step=beside, params=of_params, opt_state=opt_state)
