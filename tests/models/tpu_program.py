"""Compiles the gradient of a whole training forward for one chip of a TPU v5e that is not there; see test_attention."""

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from nrt_jax.data import Prompts
from nrt_jax.models import Model, ModelConfig
from nrt_jax.objectives import LossMasks
from nrt_jax.training.learner import LearnerBatch, completion_log_probs

P, K, X, T = 2, 2, 200, 258  # No multiple of a tile.


def main() -> None:
    """Prints how many kernels of Pallas the program calls."""
    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(chip))

    config = ModelConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        dtype="bfloat16",
    )
    model = Model(config, attention="splash")
    mask = array(jnp.bool_, P, K, T)
    batch = LearnerBatch(
        prompts=Prompts(tokens=array(jnp.int32, P, X), mask=array(jnp.bool_, P, X)),
        tokens=array(jnp.int32, P, K, T),
        masks=LossMasks(trace=mask, delimiter=mask, reference=mask),
        old_log_probs=array(jnp.float32, P, K, T),
        advantage=array(jnp.float32, P, K),
        token_signal=array(jnp.float32, P, K, T),
    )

    def loss(params, batch):
        return jnp.mean(completion_log_probs(model, params, batch, remat="dots")[0])

    params = jax.tree.map(lambda x: array(x.dtype, *x.shape), model.abstract_params())
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()
    print("kernels", compiled.as_text().count('custom_call_target="tpu_custom_call"'))


if __name__ == "__main__":
    main()
