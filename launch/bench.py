"""Time the phases of a training step on random weights.

python -m launch.bench step --json out.json                       sample, score and update; or rollout, score, train
python -m launch.bench rollout --size.prompt-length 1024 --size.group-size 8 --mean-length 0.25

Prints one line and, with --json, writes every measurement. Ratios to other frameworks: benchmarks/peers.py.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch import cli
from launch.bench_config import BenchConfig, validate
from launch.timing import MatmulPeak, measure, timed
from nrt_jax import parallel
from nrt_jax.data import Batch, Prompts, Reference
from nrt_jax.models import Model, ModelConfig, Params, backends, token_log_probs
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import score_reference
from nrt_jax.rollout import Rollout, SamplingConfig, cache_dtype, engine, sample
from nrt_jax.training.collect import score_parts
from nrt_jax.training.config import RewardConfig
from nrt_jax.training.optimizer import OptimizerConfig, make_optimizer
from nrt_jax.training.state import create_state
from nrt_jax.training.step import reward_rollout
from nrt_jax.training.update import Lengths, read_lengths, update
from nrt_jax.training.workdir import write_json

PHASES = ("rollout", "score", "train")  # Of a step.


def main(config: BenchConfig) -> None:
    """Measures, prints, writes."""
    validate(config)
    parallel.use_devices(config.devices, field="devices")
    backends.check(config.attention, field="attention")
    bench, peak = Bench(config), MatmulPeak(config.dtype)
    peak()
    works = bench.works()
    results, memory = measure(works, config.repeats, describe=bench.describe, before_each=peak)
    peak()
    report = {
        "work": config.work,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "config": dataclasses.asdict(config),
        "results": results,
        "matmul_peak_flops": peak.median,
        "matmul_peaks_flops": peak.rates,
    } | memory
    for name, result in results.items():
        print(f"{name}: {result['median']:.4f} s (median of {config.repeats}), first call {result['first']:.1f} s")
    report |= summarise(config, bench, results, peak.median)
    working, whole = (memory[f"{name}_memory_bytes"] / 1e6 for name in ("work", "peak"))
    print(f"memory: {working:.0f} MB at most while measuring, {whole:.0f} MB with compilation")
    if config.json:
        write_json(config.json, report)
    else:
        print(json.dumps({name: result["median"] for name, result in results.items()}))


def summarise(config: BenchConfig, bench: "Bench", results: dict[str, Any], peak: float) -> dict[str, Any]:
    """Prints and returns what follows from the seconds."""
    found = {}
    if config.work == "rollout":
        for name, result in results.items():
            rates = [tokens / seconds for tokens, seconds in zip(result["tokens"], result["seconds"], strict=True)]
            found[f"{name}_tokens_per_second"] = statistics.median(rates)
            print(f"{name}: {found[f'{name}_tokens_per_second']:.0f} tokens/s")
    if config.work == "train":
        found["train_flops"] = train_flops(bench.model.config, bench.lengths)
        found["share_of_peak"] = found["train_flops"] / results["train"]["median"] / peak
        print(f"train: {found['share_of_peak']:.0%} of this device's matmul peak, {peak / 1e9:.0f} GFLOP/s")
    if config.work == "step":
        phases = {name: statistics.median(results["step"][f"{name}_seconds"]) for name in PHASES}
        found["phases"] = {name: seconds / sum(phases.values()) for name, seconds in phases.items()}
        print("step: " + ", ".join(f"{name} {share:.0%}" for name, share in found["phases"].items()))
    if config.work in ("train", "step"):
        found["padding_share"] = statistics.median(results[config.work]["padding_share"])
        print(f"{config.work}: {found['padding_share']:.0%} of the slots that are trained on are padding")
    return found


class Bench:
    """The phases of a step on one random model and batch; each is a function that returns arrays to wait for."""

    def __init__(self, config: BenchConfig):
        """Makes weights and a batch."""
        self.config, size, shape = config, config.size, config.model
        longest = size.prompt_length + size.trace_length + size.answer_length + 2
        self.model = Model(
            ModelConfig(**dataclasses.asdict(shape), dtype=config.dtype, max_position_embeddings=longest),
            attention=config.attention,
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
            cache_dtype=cache_dtype(config.cache_dtype),
            max_rows=config.max_rows or None,
        )
        self.devices = jax.local_devices()[: config.devices]
        self.optimizer = make_optimizer(OptimizerConfig(), 1000)
        self.calls = 0
        self.lengths: Lengths | None = None  # Of the batch that `train` learns from.

    def works(self) -> dict[str, Callable[[], Any]]:
        """What `config.work` stands for."""
        if self.config.work == "score":
            rollout = jax.block_until_ready(self.rollout(self.params, engine.sample))
            scored = jax.jit(score_reference, static_argnums=0)
            full = jax.jit(score_by_full_forward, static_argnums=0)
            return {
                "score": lambda: scored(self.model, self.params, rollout, self.batch.reference),
                "score_by_full_forward": lambda: full(self.model, self.params, rollout, self.batch),
            }
        if self.config.work == "rollout":
            return {
                "rollout": lambda: self.sample(self.params),
                "rollout_in_lock_step": lambda: self.rollout(self.params, sample),
            }
        state = create_state(self.params, self.optimizer)
        if self.config.work == "train":
            learner_batch = self.reward(self.sample(self.params))
            self.lengths = read_lengths(learner_batch)

            def train():
                nonlocal state
                state, metrics = self.update(state, learner_batch)
                return state, metrics

            return {"train": train}

        def step():
            nonlocal state
            seconds = {}
            seconds["rollout"], parts = timed(lambda: self.sample(state.params))
            seconds["score"], learner_batch = timed(lambda: self.reward(parts))
            seconds["train"], (state, metrics) = timed(lambda: self.update(state, learner_batch))
            return seconds, metrics

        return {"step": step}

    def describe(self, result: Any) -> dict[str, float]:
        """Numbers to keep of what a work of `works` has returned."""
        if self.config.work == "rollout":
            rollouts = [part.rollout for part in result] if isinstance(result, list) else [result]
            return {"tokens": sum(int(rollout.mask.sum()) for rollout in rollouts)}
        if self.config.work == "score":
            return {}
        first, metrics = result
        phases = {f"{name}_seconds": first[name] for name in PHASES} if self.config.work == "step" else {}
        return phases | {"padding_share": metrics["padding_share"]}

    def sample(self, params: Params) -> list[engine.Part]:
        """Samples, as training does; another seed every time."""
        return list(self.rollout([jax.device_put(params, device) for device in self.devices], engine.stream))

    def rollout(self, params: Params | Sequence[Params], sample: Callable[..., Any]) -> Any:
        """What `sample` returns."""
        self.calls += 1
        return sample(self.model, params, self.batch.prompts, jax.random.key(self.calls), self.sampling)

    def reward(self, parts: list[engine.Part]):
        """Scores y* and lays out the learner's batch."""
        keys = jax.random.split(jax.random.key(0), self.config.size.prompts)
        how = {"reward_config": RewardConfig()}
        longest = self.model.config.max_position_embeddings
        scored = score_parts(self.model, parts, self.batch, self.sampling.temperature, max_length=longest, **how)
        configs = {"advantage_config": AdvantageConfig(), "loss_config": NRTLossConfig()}
        return reward_rollout(scored, self.batch, keys, **how, **configs)[0]

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
        )


def train_flops(model: ModelConfig, lengths: Lengths) -> float:
    """FLOPs of the matrix products that one update needs: 6 a parameter and token, and attention's two products.

    The question's tokens count once a group, as they are computed; padding, recomputation and the half of the
    attention scores that causality masks do not count.

    Args:
        model: The model's shape.
        lengths: Of the learner's batch.
    """
    x, completion = lengths.prompts.astype(float), lengths.completions.astype(float)
    of_completions = completion * (x[:, None] + (completion + 1) / 2)  # Pairs of a query and a key that it sees.
    pairs = (x * (x + 1) / 2).sum() + of_completions.sum()
    table = model.vocab_size * model.hidden_size
    layers = model.num_parameters - table * (1 if model.tie_embeddings else 2)
    head = table * completion.sum()  # The questions' tokens are not predicted.
    attention = model.num_layers * model.num_heads * model.head_dim * pairs
    return float(6 * layers * (x.sum() + completion.sum()) + 6 * head + 12 * attention)


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


if __name__ == "__main__":
    cli.run(main, BenchConfig, "python -m launch.bench", __doc__)
