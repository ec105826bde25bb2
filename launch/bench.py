"""Time the phases of a training step on random weights.

python -m launch.bench step --json out.json                       sample, score and update; or rollout, score, train
python -m launch.bench rollout --size.prompt-length 1024 --size.group-size 8 --mean-length 0.25

Prints one line and, with --json, writes every measurement. Ratios to other frameworks: benchmarks/peers.py.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

from launch import cli
from nrt_jax.data import Batch, Prompts, Reference
from nrt_jax.errors import UserError
from nrt_jax.models import Model, ModelConfig, Params, Remat, token_log_probs
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import score_reference
from nrt_jax.rollout import Rollout, SamplingConfig, engine, sample
from nrt_jax.training.config import RewardConfig
from nrt_jax.training.learner import update
from nrt_jax.training.loop import peak_memory_bytes
from nrt_jax.training.optimizer import OptimizerConfig, make_optimizer
from nrt_jax.training.state import create_state
from nrt_jax.training.step import reward_rollout
from nrt_jax.training.workdir import write_json


@dataclasses.dataclass(frozen=True)
class ShapeConfig:
    """The model. The defaults are small enough for two cores.

    Attributes:
        num_layers: L.
        hidden_size: D.
        intermediate_size: F.
        num_heads: H.
        num_kv_heads: G.
        head_dim: d.
        vocab_size: V.
    """

    num_layers: int = 4
    hidden_size: int = 256
    intermediate_size: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    vocab_size: int = 4096


@dataclasses.dataclass(frozen=True)
class SizeConfig:
    """The work.

    Attributes:
        prompts: P.
        group_size: K.
        prompt_length: X, tokens of every prompt.
        trace_length: Z, most tokens of a trace.
        answer_length: Y, tokens of every answer.
    """

    prompts: int = 8
    group_size: int = 4
    prompt_length: int = 128
    trace_length: int = 128
    answer_length: int = 16


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time.

    Attributes:
        work: `rollout`: sampling the traces, with finished rows leaving and without. `score`: c_i and c_base from the
            caches that a rollout left, and beside it the same from a forward of the whole sequences. `train`: one
            update. `step`: rollout, scoring and update.
        model: The model's shape.
        size: The batch's shape.
        mean_length: Mean length of a trace as a share of Z, the lengths being geometric; 1 for Z tokens in every row.
        dtype: Compute dtype.
        remat: What a layer keeps for the backward pass.
        micro_batches: Parts of the batch whose gradients are accumulated.
        chunk_size: Slots by which the decoding cache grows.
        repeats: Measurements, after one that compiles.
        json: File to write them to; empty for none.
    """

    work: Positional[Literal["rollout", "score", "train", "step"]]
    model: ShapeConfig = ShapeConfig()
    size: SizeConfig = SizeConfig()
    mean_length: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "dots"
    micro_batches: int = 1
    chunk_size: int = 32
    repeats: int = 5
    json: str = ""


def main(config: BenchConfig) -> None:
    """Measures, prints, writes."""
    if not 0 < config.mean_length <= 1 or config.repeats < 1:
        raise UserError(
            f"mean_length, repeats: {config.mean_length}, {config.repeats} cannot work; "
            "expected a share of at most 1, and at least 1"
        )
    bench = Bench(config)
    results = {name: _measure(run, config.repeats) for name, run in bench.works().items()}
    report = {
        "work": config.work,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "config": dataclasses.asdict(config),
        "results": results,
        "matmul_peak_flops": matmul_peak(config.dtype),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    for name, result in results.items():
        print(f"{name}: {result['median']:.4f} s (median of {config.repeats}), first call {result['first']:.1f} s")
    if config.work == "train":
        share = bench.train_flops() / results["train"]["median"] / report["matmul_peak_flops"]
        report["share_of_peak"] = share
        print(f"train: {share:.0%} of this device's matmul peak, {report['matmul_peak_flops'] / 1e9:.0f} GFLOP/s")
    if config.json:
        write_json(config.json, report)
    else:
        print(json.dumps({name: result["median"] for name, result in results.items()}))


class Bench:
    """The phases of a step on one random model and batch; each is a function that returns arrays to wait for."""

    def __init__(self, config: BenchConfig):
        """Makes weights and a batch."""
        self.config, size, shape = config, config.size, config.model
        longest = size.prompt_length + size.trace_length + size.answer_length + 2
        self.model = Model(
            ModelConfig(**dataclasses.asdict(shape), dtype=config.dtype, max_position_embeddings=longest)
        )
        self.params = self.model.init(jax.random.key(0))
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, shape.vocab_size, (size.prompts, size.prompt_length)).astype(np.int32)
        answers = rng.integers(0, shape.vocab_size, (size.prompts, size.answer_length)).astype(np.int32)
        self.batch = Batch(
            prompts=Prompts(tokens=jnp.array(prompts), mask=jnp.ones(prompts.shape, bool)),
            reference=Reference(
                tokens=jnp.array(answers), mask=jnp.ones(answers.shape, bool), delimiter=jnp.int32(shape.vocab_size - 1)
            ),
        )
        # A random model samples nearly uniformly: a share of the vocabulary that stops a row is a chance to stop.
        stops = round(shape.vocab_size / (config.mean_length * size.trace_length)) if config.mean_length < 1 else 0
        stop_ids = np.arange(shape.vocab_size - stops, shape.vocab_size)[::-1] if stops else np.array([-1])
        self.sampling = SamplingConfig(
            stop_ids=jnp.array(stop_ids, jnp.int32),
            temperature=jnp.float32(1.0),
            max_new_tokens=size.trace_length,
            group_size=size.group_size,
            chunk_size=config.chunk_size,
        )
        self.optimizer = make_optimizer(OptimizerConfig(), 1000)
        self.calls = 0

    def works(self) -> dict[str, Callable[[], Any]]:
        """What `config.work` stands for."""
        if self.config.work == "score":
            rollout = jax.block_until_ready(self.rollout(self.params))
            scored = jax.jit(score_reference, static_argnums=0)
            full = jax.jit(score_by_full_forward, static_argnums=0)
            return {
                "score": lambda: scored(self.model, self.params, rollout, self.batch.reference),
                "score_by_full_forward": lambda: full(self.model, self.params, rollout, self.batch),
            }
        if self.config.work == "rollout":
            return {
                "rollout": lambda: self.rollout(self.params),
                "rollout_without_compaction": lambda: self.rollout(self.params, sample),
            }
        state = create_state(self.params, self.optimizer)
        if self.config.work == "train":
            learner_batch = self.reward(self.params, self.rollout(self.params))

            def train():
                nonlocal state
                state = self.update(state, learner_batch)
                return state

            return {"train": train}

        def step():
            nonlocal state
            state = self.update(state, self.reward(state.params, self.rollout(state.params)))
            return state

        return {"step": step}

    def rollout(self, params: Params, sample: Callable[..., Rollout] = engine.sample) -> Rollout:
        """Samples, as training does; another seed every time."""
        self.calls += 1
        return sample(self.model, params, self.batch.prompts, jax.random.key(self.calls), self.sampling)

    def reward(self, params: Params, rollout: Rollout):
        """Scores y* and lays out the learner's batch."""
        return reward_rollout(
            params,
            rollout,
            self.batch,
            jax.random.key(0),
            jnp.float32(1.0),
            model=self.model,
            reward_config=RewardConfig(),
            advantage_config=AdvantageConfig(),
            loss_config=NRTLossConfig(),
            max_length=self.model.config.max_position_embeddings,
        )[0]

    def update(self, state, learner_batch):
        """One optimizer update."""
        return update(
            state,
            learner_batch,
            model=self.model,
            optimizer=self.optimizer,
            config=NRTLossConfig(),
            micro_batches=self.config.micro_batches,
            remat=self.config.remat,
        )[0]

    def train_flops(self) -> float:
        """FLOPs of the matrix products of one update: 6 a parameter and token, and attention's two products.

        The question's tokens count once a group, as they are computed; no recomputation counts.
        """
        c, size = self.model.config, self.config.size
        completion = size.trace_length + size.answer_length + 2
        tokens = size.prompts * (size.prompt_length + size.group_size * completion)
        attended = size.prompts * (
            size.prompt_length**2 / 2 + size.group_size * completion * (size.prompt_length + completion / 2)
        )
        head_tokens = size.prompts * size.group_size * completion
        matrices = c.num_parameters - 2 * c.vocab_size * c.hidden_size
        return (
            6.0 * matrices * tokens
            + 6.0 * c.vocab_size * c.hidden_size * head_tokens
            + 12.0 * c.num_layers * c.num_heads * c.head_dim * attended
        )


def score_by_full_forward(model: Model, params: Params, rollout: Rollout, batch: Batch):
    """c_i and c_base as frameworks without shared caches get them: a forward of each whole sequence, P (K + 1) rows."""
    num_prompts = rollout.tokens.shape[0]
    reference = batch.reference
    delimiter = jnp.broadcast_to(reference.delimiter, (num_prompts, 1))

    def score(traces):
        rows = traces.shape[1]

        def repeat(x):
            return jnp.broadcast_to(x[:, None], (num_prompts, rows, x.shape[-1]))

        parts = [repeat(batch.prompts.tokens), traces, repeat(delimiter), repeat(reference.tokens)]
        tokens = jnp.concatenate(parts, -1).reshape(num_prompts * rows, 1, -1)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
        hidden, _ = model.apply(params, tokens, positions)
        length = reference.tokens.shape[-1]
        return token_log_probs(hidden[..., -length - 1 : -1, :], model.head(params), tokens[..., -length:])[0]

    return score(rollout.tokens), score(rollout.tokens[:, :1, :0])


def matmul_peak(dtype: str, size: int = 2048) -> float:
    """FLOP/s of the best of some square matrix products on the first device."""
    a = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    seconds = [_timed(lambda: multiply(a)) for _ in range(8)]
    return 2.0 * size**3 / min(seconds)


def _measure(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    first = _timed(run)
    seconds = [_timed(run) for _ in range(repeats)]
    return {"first": first, "seconds": seconds, "median": statistics.median(seconds)}


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


if __name__ == "__main__":
    cli.run(main, BenchConfig, "python -m launch.bench", __doc__)
