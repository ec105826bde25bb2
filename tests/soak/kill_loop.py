"""Kills a run again and again, resumes it each time, and compares what it leaves with a run that never stopped.

    python -m tests.soak.kill_loop --kills 20

Half of the kills (SIGKILL) come at random moments; half when a file appears that is there only while a checkpoint, the
answers before training, the truncated records or the export are being written. A run that has ended is compared, and
the next one begins. Exit code 1 if anything differs.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from launch import cli, train
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import from_dict, to_dict
from tests.fixtures_run import curves, records, write_config

MOMENTS = ("answers_before.jsonl.partial", "checkpoints/*-tmp*", "metrics.jsonl.partial", ".hf.*", "checkpoints/*")
SAME_TEXT = ("answers_before.jsonl", "answers_after.jsonl", "config.json")


def run(config: dict, log: str) -> None:
    """The command, in a process of its own, whose output goes to the file `log`."""
    with pathlib.Path(log).open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        cli.run(lambda _: train.main(from_dict(TrainConfig, config)), TrainConfig, "train", "Trains.", args=[])


class Runs:
    """Starts runs in processes that have their imports behind them, and share a cache of compiled programs."""

    def __init__(self, cache: str | pathlib.Path):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["launch.train", "tests.fixtures_run", "transformers"])

    def start(self, config: TrainConfig, folder: pathlib.Path) -> multiprocessing.Process:
        """Starts or resumes a run."""
        config = to_dict(dataclasses.replace(config, workdir=str(folder)))
        process = self._context.Process(target=run, args=(config, str(folder.with_suffix(".log"))), daemon=True)
        process.start()
        return process

    def finish(self, config: TrainConfig, folder: pathlib.Path) -> float:
        """Runs to the end, which must be a good one; returns the seconds that it took."""
        started = time.monotonic()
        process = self.start(config, folder)
        process.join()
        if process.exitcode:
            raise SystemExit(f"exit code {process.exitcode}; {folder.with_suffix('.log').read_text()[-3000:]}")
        return time.monotonic() - started

    def kill(self, config: TrainConfig, folder: pathlib.Path, when: Callable[[], bool]) -> bool:
        """Runs until `when`, then kills; returns whether the kill came before the end."""
        process = self.start(config, folder)
        while process.exitcode is None and not when():
            time.sleep(0.001)
        process.kill()
        process.join()
        if process.exitcode > 0:
            raise SystemExit(f"exit code {process.exitcode}; {folder.with_suffix('.log').read_text()[-3000:]}")
        return process.exitcode < 0


def after(seconds: float) -> Callable[[], bool]:
    """Says when so much time has gone by."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def appears(folder: pathlib.Path, pattern: str) -> Callable[[], bool]:
    """Says when a path appears that was not there before."""
    before = set(folder.glob(pattern))
    return lambda: not before.issuperset(folder.glob(pattern))


def differences(folder: pathlib.Path, reference: pathlib.Path, steps: int) -> list[str]:
    """In what a run that has ended differs from the one that never stopped; empty if in nothing."""
    found = []

    def same(what: str, ours, theirs) -> None:
        if ours != theirs:
            found.append(f"{what}: {str(ours)[:200]} instead of {str(theirs)[:200]}")

    for name in SAME_TEXT:
        ours, theirs = ((f / name).read_text().replace(str(f), "") for f in (folder, reference))
        same(name, ours, theirs)
    same("exported weights", *((f / "hf" / "model.safetensors").read_bytes() for f in (folder, reference)))
    same("state", *(state(f, steps) for f in (folder, reference)))
    same("steps of metrics.jsonl", [r["step"] for r in records(folder)], list(range(1, steps + 1)))
    same("metrics.jsonl", records(folder), records(reference))
    same("checkpoints", *(sorted(p.name for p in (f / "checkpoints").iterdir()) for f in (folder, reference)))
    same("files", *(sorted(p.name for p in f.iterdir()) for f in (folder, reference)))
    theirs = {(r["step"], name): value for r in records(reference) for name, value in r.items() if name != "step"}
    ours = {(step, tag): value for tag, curve in curves(folder).items() for step, value in curve.items()}
    ours = {key: value for key, value in ours.items() if key[1] != "compiled_programs"}
    same("steps of TensorBoard", sorted(ours), sorted(theirs))
    same("TensorBoard", *({k: float(np.float32(v)) for k, v in x.items()} for x in (ours, theirs)))
    return found


def state(folder: pathlib.Path, step: int) -> list[tuple[str, bytes]]:
    """Name and bits of each array of a checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((folder / "checkpoints" / str(step) / "state").absolute())
    return [
        (jax.tree_util.keystr(path), np.asarray(x).tobytes()) for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def small_run(folder: pathlib.Path) -> TrainConfig:
    """A run of some seconds in which everything happens: evaluations, checkpoints, the best of them."""
    config = write_config(folder)
    return dataclasses.replace(
        config,
        steps=12,
        evaluation=dataclasses.replace(config.evaluation, every=3),
        checkpoint=dataclasses.replace(config.checkpoint, every=2),
    )


def main(args: Sequence[str] | None = None) -> None:
    """Kills, resumes, compares and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    rng, kills, ended = random.Random(options.seed), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        config, runs = small_run(scratch), Runs(scratch / "cache")
        runs.finish(config, scratch / "warm")  # Fills the cache, so that no kill leaves half an entry in it.
        seconds = runs.finish(config, scratch / "reference")
        while len(kills) < options.kills or ended == 0:
            folder, ended, began = scratch / f"run{ended}", ended + 1, time.monotonic()
            while len(kills) < options.kills:
                moment = rng.choice(MOMENTS) if len(kills) % 2 else rng.uniform(0, seconds)
                when = appears(folder, moment) if isinstance(moment, str) else after(moment)
                if not runs.kill(config, folder, when):
                    seconds = min(seconds, time.monotonic() - began)  # The machine has become faster.
                    break
                began = time.monotonic()
                kills.append(moment if isinstance(moment, str) else f"{moment:.2f} s")
                print(f"kill {len(kills)} at {kills[-1]}", flush=True)
            runs.finish(config, folder)
            if found := differences(folder, scratch / "reference", config.steps):
                raise SystemExit("\n".join([f"after {len(kills)} kills {folder.name} differs:", *found]))
        print(json.dumps({"kills": len(kills), "runs": ended, "steps": config.steps, "seconds": round(seconds, 1)}))
        print(f"{len(kills)} kills in {ended} runs: parameters, optimizer state, metrics and exports bit-identical")


if __name__ == "__main__":
    sys.exit(main())
