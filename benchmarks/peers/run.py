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


def ours(config: Config) -> dict[str, float]:
    """Seconds of a rollout and of a step, and the process's peak memory."""
    size = {
        "prompts": config.prompts,
        "group-size": config.group_size,
        "prompt-length": config.prompt_length,
        "trace-length": config.trace_length,
    }
    flags = [word for name, value in size.items() for word in (f"--size.{name}", str(value))]
    flags += ["--mean-length", str(config.mean_length), "--devices", str(config.devices)]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/out.json"
        run([sys.executable, "-m", "launch.bench", "step", *flags, "--json", path], config.timeout)
        report = json.loads(Path(path).read_text())
    step = report["results"]["step"]
    return {
        "rollout": statistics.median(step["rollout_seconds"]),
        "step": step["median"],
        "peak_memory_bytes": report["peak_memory_bytes"],
    }


def peer(python: str, script: str, config: Config) -> dict[str, float] | None:
    """The same of a peer."""
    sizes = (config.prompt_length, config.trace_length, config.prompts, config.group_size)
    if config.mean_length < 1:
        sizes = (*sizes, round(VOCAB_SIZE / (config.mean_length * config.trace_length)))
    line = run([python, str(HERE / script), *map(str, sizes)], config.timeout)
    if line is None:
        return None
    report = json.loads(line)
    return {
        "rollout": statistics.median(report["rollout_s"]),
        "step": statistics.median(report["step_s"]),
        "peak_memory_bytes": report["peak_memory_bytes"],
    }


def main(config: Config) -> None:
    """Runs the rounds and prints a table."""
    peers = {"google-tunix": (config.tunix, "tunix_grpo.py"), "trl": (config.trl, "trl_grpo.py")}
    peers = {name: value for name, value in peers.items() if value[0]}
    rounds = []
    for i in range(config.pairs):
        rounds.append({"nrt_jax": ours(config)} | {name: peer(*value, config) for name, value in peers.items()})
        print(f"round {i + 1}: {json.dumps(rounds[-1])}", flush=True)
    ratios = {}
    for name in peers:
        done = [r for r in rounds if r[name] is not None]
        for work in ("rollout", "step", "peak_memory_bytes") if done else ():
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
