"""Measuring this machine: seconds, the rate of its matrix products, memory."""

import contextlib
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from nrt_jax.training.loop import peak_memory_bytes
from nrt_jax.training.metrics import CompilationCounter


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until all arrays of a call's result are there, and the result."""
    started = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - started, result


MOST_WARM_UPS = 10


def measure(
    works: dict[str, Callable[[], Any]],
    repeats: int,
    *,
    describe: Callable[[Any], dict[str, float]] = lambda result: {},
    before_each: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, int | None]]:
    """Times some works in turn, so that a machine that slows down or speeds up does so for all of them.

    Args:
        works: What to time, by name.
        repeats: Rounds, after as many as compile something, `MOST_WARM_UPS` at most.
        describe: Numbers to keep of each result.
        before_each: Is called before every round.

    Returns:
        For each work the seconds of its `first` call, those of each repeat, their median, and what `describe` says of
        each repeat. And most bytes: `peak_memory_bytes` on the host since the process began, so with compilation;
        `work_memory_bytes` on the host while the repeats ran; `device_memory_bytes` of the first device, None on CPU.
    """
    results = {name: {"first": timed(run)[0], "seconds": []} for name, run in works.items()}
    with CompilationCounter() as compiled:  # Other lengths meet other shapes: until nothing new is compiled.
        for run in works.values():
            for _ in range(MOST_WARM_UPS):
                before = compiled.count
                timed(run)
                if compiled.count == before:
                    break
    compiling = _reset_peak_memory()
    for _ in range(repeats):
        before_each()
        for name, run in works.items():
            seconds, result = timed(run)
            results[name]["seconds"].append(seconds)
            for key, value in describe(result).items():
                results[name].setdefault(key, []).append(value)
    results = {name: found | {"median": statistics.median(found["seconds"])} for name, found in results.items()}
    memory = {
        "peak_memory_bytes": max(compiling, peak_memory_bytes()),
        "work_memory_bytes": peak_memory_bytes(),
        "device_memory_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }
    return results, memory


class MatmulPeak:
    """The rate of square matrix products on the first device, sampled as often as it is called.

    Attributes:
        rates: FLOP/s, one a call.
    """

    def __init__(self, dtype: str):
        """Makes the matrices: random ones, since an accelerator multiplies constants at a higher clock."""
        sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
        self._multiply = jax.jit(lambda x: x @ x)
        self._matrices = [jax.random.normal(jax.random.key(0), (size, size), dtype) for size in sizes]
        for x in self._matrices:
            timed(lambda x=x: self._multiply(x))
        self.rates: list[float] = []

    def __call__(self) -> None:
        """Samples: the best of three products of each size."""
        rates = [2.0 * len(x) ** 3 / timed(lambda x=x: self._multiply(x))[0] for x in self._matrices for _ in range(3)]
        self.rates.append(max(rates))

    @property
    def median(self) -> float:
        """The median rate, in FLOP/s."""
        return statistics.median(self.rates)


def _reset_peak_memory() -> int:
    """Returns `peak_memory_bytes`, which counts from here afterwards where the system lets it (Linux)."""
    peak = peak_memory_bytes()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak
