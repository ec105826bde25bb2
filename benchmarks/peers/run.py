"""Ours beside google-tunix and trl: whole processes in turn, medians, ratios.

    python -m venv tunix && tunix/bin/pip install google-tunix==0.1.7 jax
    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl
    python benchmarks/peers/run.py --tunix tunix/bin/python --trl trl/bin/python --pairs 5 --json out.json

Each round runs every framework once, one after the other, on the same model and batch: a rollout, and a full step (ours
scores the answer, which the peers' do not). A process times several steps after one that compiles; its figure is their
median. A ratio is the median over rounds of theirs / ours.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import tyro

VOCAB_SIZE = 4096  # Of every framework's model here.
HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
        tunix: Python of an environment with google-tunix; empty to leave it out.
        trl: Python of an environment with trl; empty to leave it out.
        prompt_length: X.
        trace_length: Z.
        prompts: P.
        group_size: K.
        mean_length: Mean length of a trace as a share of Z, the lengths being geometric; 1 for Z tokens in every row.
        devices: Into how many the CPU is divided for our sampling.
        steps: Of a peer's process; the first, which compiles, is left out.
        tunix_work: `rollout` leaves google-tunix's training out, where it would take too long.
        pairs: Rounds.
        timeout: Seconds after which a peer's process is given up.
        json: File for every figure; empty for none.
    """

    tunix: str = ""
    trl: str = ""
    prompt_length: int = 128
    trace_length: int = 128
    prompts: int = 8
    group_size: int = 4
    mean_length: float = 1.0
    devices: int = 2
    steps: int = 6
    tunix_work: Literal["rollout", "step"] = "step"
    pairs: int = 5
    timeout: int = 900
    json: str = ""


def run(command: list[str], timeout: int) -> str | None:
    """A process's last line of output; None if it fails or takes too long."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None
        errors.seek(0)
        if process.returncode:
            print(errors.read()[-2000:], file=sys.stderr)
            return None
        output.seek(0)
        return output.read().strip().splitlines()[-1]


def sizes(config: Config) -> dict[str, int]:
    """The batch, by what every script here calls it."""
    return {name: getattr(config, name) for name in ("prompts", "group_size", "prompt_length", "trace_length")}


def flags(values: dict[str, int | float | str], prefix: str = "--") -> list[str]:
    """As words of a command line."""
    return [word for name, value in values.items() for word in (prefix + name.replace("_", "-"), str(value))]


def ours(config: Config) -> dict[str, float]:
    """Seconds of a rollout and of a step, and the process's peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/out.json"
        options = flags({"mean_length": config.mean_length, "devices": config.devices, "json": path})
        command = [sys.executable, "-m", "launch.bench", "step", *flags(sizes(config), "--size."), *options]
        run(command, config.timeout)
        report = json.loads(Path(path).read_text())
    step = report["results"]["step"]
    return {
        "rollout": statistics.median(step["rollout_seconds"]),
        "step": step["median"],
        "peak_memory_bytes": report["peak_memory_bytes"],
    }


def peer(python: str, script: str, config: Config, more: dict[str, str]) -> dict[str, float] | None:
    """The same of a peer, of which only what its process did is known."""
    options = sizes(config) | {"steps": config.steps} | more
    if config.mean_length < 1:
        options["stops"] = round(VOCAB_SIZE / (config.mean_length * config.trace_length))
    line = run([python, str(HERE / script), *flags(options)], config.timeout)
    if line is None:
        return None
    report = json.loads(line)
    found = {"rollout": statistics.median(report["rollout_s"])}
    if report["step_s"]:
        found |= {"step": statistics.median(report["step_s"]), "peak_memory_bytes": report["peak_memory_bytes"]}
    return found


def main(config: Config) -> None:
    """Runs the rounds and prints a table."""
    peers = {
        "google-tunix": (config.tunix, "tunix_grpo.py", config, {"work": config.tunix_work}),
        "trl": (config.trl, "trl_grpo.py", config, {}),
    }
    peers = {name: arguments for name, arguments in peers.items() if arguments[0]}
    rounds = []
    for i in range(config.pairs):
        rounds.append({"nrt_jax": ours(config)} | {name: peer(*arguments) for name, arguments in peers.items()})
        print(f"round {i + 1}: {json.dumps(rounds[-1])}", flush=True)
    ratios = {}
    for name in peers:
        done = [r for r in rounds if r[name] is not None]
        for work in done[0][name] if done else ():
            theirs, own = ([r[who][work] for r in done] for who in (name, "nrt_jax"))
            ratios[f"{name} {work}"] = statistics.median(t / o for t, o in zip(theirs, own, strict=True))
            print(
                f"{work:18} {name:12} {statistics.median(theirs):10.4g}  nrt_jax {statistics.median(own):10.4g}  "
                f"ratio {ratios[f'{name} {work}']:.2f}"
            )
    if config.json:
        Path(config.json).write_text(
            json.dumps({"config": dataclasses.asdict(config), "rounds": rounds, "ratios": ratios}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__.splitlines()[0]))
