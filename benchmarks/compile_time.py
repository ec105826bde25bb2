"""Seconds to trace, lower and compile a rollout, its scoring and an update, at some depths, without JAX's cache.

    python -m benchmarks.compile_time --layers 4 32 --repeats 5

A figure is the processor time of a first call of the work of `launch.bench`, all threads together, less that of a
second one: the median over rounds that take the depths in turn. With several depths the last line is the ratio of the
last to the first.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import tyro

from launch.bench import Bench
from launch.bench_config import BenchConfig, ShapeConfig, SizeConfig
from nrt_jax.models import Remat
from nrt_jax.training.metrics import CompilationCounter
from nrt_jax.training.state import create_state

SMALL = SizeConfig(prompts=4, group_size=2, prompt_length=32, trace_length=32, answer_length=8)
WORKS = ("rollout", "score", "train")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compile.

    Attributes:
        layers: Depths.
        remat: What a layer keeps for the backward pass.
        repeats: Rounds.
    """

    layers: tuple[int, ...] = (4, 32)
    remat: Remat = "dots"
    repeats: int = 5


def compile_seconds(run: Callable[[], Any]) -> tuple[float, int, Any]:
    """Seconds and programs of a first call, and its second result."""
    with CompilationCounter() as compiled:
        first = _seconds(run)[0]
    again, result = _seconds(run)
    return first - again, compiled.count, result


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = jax.block_until_ready(run())
    return time.process_time() - started, result


def measure(num_layers: int, remat: Remat) -> dict[str, tuple[float, int]]:
    """Compiles all works of one depth anew."""
    bench = Bench(BenchConfig(work="step", model=ShapeConfig(num_layers=num_layers), size=SMALL, remat=remat))
    jax.clear_caches()
    *rollout, traces = compile_seconds(lambda: bench.sample(bench.params))
    *score, batch = compile_seconds(lambda: bench.reward(bench.params, traces))
    state = jax.block_until_ready(create_state(bench.params, bench.optimizer))

    def train():
        nonlocal state
        state, metrics = bench.update(state, batch)
        return metrics

    *update, _ = compile_seconds(train)
    return dict(zip(WORKS, (rollout, score, update), strict=True))


def main(config: Config) -> None:
    """Measures and prints a table."""
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = [{depth: measure(depth, config.remat) for depth in config.layers} for _ in range(config.repeats)]
    print(f"{'layers':>8}" + "".join(f"{work + ' s':>12}{'programs':>10}" for work in WORKS))
    medians = {}
    for depth in config.layers:
        medians[depth] = [statistics.median(found[depth][work][0] for found in rounds) for work in WORKS]
        programs = [rounds[0][depth][work][1] for work in WORKS]
        cells = zip(medians[depth], programs, strict=True)
        print(f"{depth:8}" + "".join(f"{seconds:12.2f}{count:10}" for seconds, count in cells))
    ratios = zip(medians[config.layers[-1]], medians[config.layers[0]], strict=True)
    print(f"{'ratio':>8}" + "".join(f"{last / first:12.2f}{'':10}" for last, first in ratios))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__.splitlines()[0]))
