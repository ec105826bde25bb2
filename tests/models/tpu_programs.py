"""Compiles programs for a TPU on a machine without one, and prints what they take as one line of JSON.

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tests.models.tpu_programs LENGTH BACKEND..

Needs libtpu (the extra `tpu`). Prompts and completions have LENGTH tokens each; the compute dtype is bfloat16.
"""

import functools
import json
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nrt_jax.data import Prompts
from nrt_jax.models import Model, ModelConfig
from nrt_jax.objectives.nrt import LossMasks
from nrt_jax.rollout import SamplingConfig, decoder, engine, sampler
from nrt_jax.training.learner import LearnerBatch, completion_log_probs

TOPOLOGY = "v5e:2x2"
P, K = 1, 16
MODEL = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    dtype="bfloat16",
)


def abstract_inputs(model: Model, length: int):
    """Shapes of the params, prompts and completions."""
    shape = jax.ShapeDtypeStruct
    tokens, mask = shape((P, K, length), jnp.int32), shape((P, K, length), bool)
    prompts = Prompts(tokens=shape((P, length), jnp.int32), mask=shape((P, length), bool))
    batch = LearnerBatch(
        prompts=prompts,
        tokens=tokens,
        masks=LossMasks(trace=mask, delimiter=mask, reference=mask),
        old_log_probs=shape(tokens.shape, jnp.float32),
        advantage=shape((P, K), jnp.float32),
        token_signal=shape(tokens.shape, jnp.float32),
    )
    return model.abstract_params(), prompts, batch


def gradient(model: Model, params, batch: LearnerBatch):
    """Of the log-probabilities' sum."""
    return jax.grad(lambda params: jnp.sum(completion_log_probs(model, params, batch, remat="dots")[0]))(params)


def decode_inputs(model: Model, params, prompts: Prompts, config: SamplingConfig):
    """What `sampler.advance` takes for the first chunk of P K rows."""
    groups = sampler.begin(model, params, prompts, config)
    order = jnp.arange(P * K)
    cache = groups.rollout.prompt_cache
    shared = decoder.share_prompts(cache, jnp.arange(P), order.reshape(P, K), order)
    keys = sampler.row_keys(jax.random.key(0), P, K).reshape(-1)
    return decoder.prepare(model, params), shared, sampler.start_rows(groups, keys, order // K, 0, config.chunk_size)


def main(length: int, backends: Sequence[str]) -> dict[str, dict[str, float]]:
    """CPU seconds to compile, and bytes of temporaries, of each program."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[0]
    sharding, found = jax.sharding.SingleDeviceSharding(device), {}

    def compile_for_tpu(name, program, *inputs):
        inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), inputs)
        start = time.process_time()
        memory = program.lower(*inputs).compile().memory_analysis()
        found[name] = {"seconds": time.process_time() - start, "temporaries": memory.temp_size_in_bytes}

    for backend in backends:
        model = Model(MODEL, attention=backend)
        params, prompts, batch = abstract_inputs(model, length)
        compile_for_tpu(f"gradient {backend}", jax.jit(functools.partial(gradient, model)), params, batch)
        compile_for_tpu(f"prefill {backend}", jax.jit(functools.partial(sampler.prefill, model)), params, prompts)
    config = SamplingConfig(
        stop_ids=jnp.array([1]), temperature=jnp.float32(1), max_new_tokens=length, group_size=K, chunk_size=128
    )
    weights, shared, rows = jax.eval_shape(
        lambda params, prompts: decode_inputs(model, params, prompts, config), params, prompts
    )
    chunk = functools.partial(engine._advance, model, num_steps=config.chunk_size)
    advance = jax.jit(lambda weights, shared, rows, slot, config: chunk(weights, shared, rows, slot, config=config))
    compile_for_tpu("decode", advance, weights, shared, rows, jax.ShapeDtypeStruct((), jnp.int32), config)
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2:])))
