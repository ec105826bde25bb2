"""What a run carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
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
        reference: The moving average of params, float32, if the run's reference is one.
        reward_std: [] float32, the moving average of the rewards' standard deviation within a prompt, if prompts are
            dropped by it; NaN before the first step.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    reference: Params | None = None
    reward_std: jax.Array | None = None


def create_state(
    params: Params, optimizer: optax.GradientTransformation, *, with_reference: bool = False, with_std: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        params: What is trained; they become part of the state.
        optimizer: The run's.
        with_reference: Keep a moving average of the params, which starts as a copy.
        with_std: Keep one of the rewards' standard deviation.
    """
    extras = (with_reference, with_std)
    return parallel.put(_new(params, optimizer, *extras), _shardings(params, optimizer, *extras))


def abstract_state(
    params: Params, optimizer: optax.GradientTransformation, *, with_reference: bool = False, with_std: bool = False
) -> TrainState:
    """The shapes, dtypes and shardings of such a state, for restoring a checkpoint; arguments as of `create_state`."""
    extras = (with_reference, with_std)
    shapes = jax.eval_shape(lambda params: _new(params, optimizer, *extras), params)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        _shardings(params, optimizer, *extras),
    )


def _new(params: Params, optimizer: optax.GradientTransformation, with_reference: bool, with_std: bool) -> TrainState:
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        reference=jax.tree.map(jnp.copy, params) if with_reference else None,  # Params are donated to an update.
        reward_std=jnp.float32(jnp.nan) if with_std else None,
    )


def _shardings(
    params: Params, optimizer: optax.GradientTransformation, with_reference: bool, with_std: bool
) -> TrainState:
    """Moments and reference lie as their parameters do, and numbers beside them."""
    of_params, beside = jax.tree.map(lambda x: x.sharding, params), parallel.beside(params)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        of_params,
        transform_non_params=lambda _: beside,
    )
    return TrainState(
        step=beside,
        params=of_params,
        opt_state=opt_state,
        reference=of_params if with_reference else None,
        reward_std=beside if with_std else None,
    )
