"""Seconds a rollout takes on a random tiny Llama: 4 layers, D 256, F 512, 8/4 heads of 32, V 4096, float32.

    python benchmarks/rollout.py --x 128 --z 128 --p 8 --k 4
    python benchmarks/rollout.py --stop-probability 0.03125     # mean length about a quarter of Z

Runs `engine.sample`, which lets finished rows leave, and `sample`, which does not, alternately. Prints one JSON line.
"""

import dataclasses
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nrt_jax.data import Prompts
from nrt_jax.models import Model, ModelConfig
from nrt_jax.rollout import SamplingConfig, engine, sample

VOCAB = 4096


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        x: Prompt length in tokens.
        z: Most tokens of a trace.
        p: Prompts.
        k: Traces a prompt.
        stop_probability: Of ending at each token, about: this share of the vocabulary are stop tokens, and a random
            model's distribution is nearly uniform. 0 lets every row run to the limit.
        chunk_size: Slots by which the trace caches grow.
        repeats: Timed rollouts of each kind, each with a seed of its own.
    """

    x: int = 128
    z: int = 128
    p: int = 8
    k: int = 4
    stop_probability: float = 0.0
    chunk_size: int = 32
    repeats: int = 7


def main(config: Config) -> None:
    """Prints one JSON line."""
    model = Model(
        ModelConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            intermediate_size=512,
            num_layers=4,
            num_heads=8,
            num_kv_heads=4,
            head_dim=32,
        )
    )
    params = model.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, VOCAB, (config.p, config.x), np.int32)
    prompts = Prompts(tokens=tokens, mask=np.ones(tokens.shape, bool))
    sampling = SamplingConfig(
        stop_ids=jnp.arange(max(1, round(config.stop_probability * VOCAB)))
        if config.stop_probability
        else jnp.array([-1]),
        temperature=jnp.float32(1.0),
        max_new_tokens=config.z,
        group_size=config.k,
        chunk_size=config.chunk_size,
    )

    def seconds(function, seed):
        start = time.perf_counter()
        rollout = jax.block_until_ready(function(model, params, prompts, jax.random.key(seed), sampling))
        return time.perf_counter() - start, int(rollout.mask.sum())

    functions, times, sampled = {"engine": engine.sample, "one_program": sample}, {}, []
    for function in functions.values():
        for seed in range(config.repeats):  # The same seeds as below: whatever they need is compiled here.
            seconds(function, seed)
    for seed in range(config.repeats):
        for name, function in functions.items():
            elapsed, num = seconds(function, seed)
            times.setdefault(name, []).append(round(elapsed, 4))
            sampled.append(num)
    medians = {f"{name}_median_s": statistics.median(values) for name, values in times.items()}
    shape = dataclasses.asdict(config) | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    rows = config.p * config.k
    print(json.dumps(shape | medians | times | {"mean_length": round(statistics.mean(sampled) / rows, 1)}))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__.splitlines()[0]))
