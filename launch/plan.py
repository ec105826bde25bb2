"""Plan a run for devices that are not here: does it fit, how long is a step, how large may a micro-batch be?

python -m launch.plan --config configs/NAME.py --topology v5e:4x4    TPUs, by libtpu (pip install -e '.[tpu]')
python -m launch.plan --config configs/NAME.py --topology gpu:8 --hbm-gib 80    the same from shapes, on virtual devices

Compiles the programs of one step as a run calls them; counts evaluation's caches. Exit code 1 where they do not fit.
"""

import dataclasses
import math
import sys
from pathlib import Path

import jax

from launch import cli
from nrt_jax import checkpoints, hf
from nrt_jax.errors import UserError
from nrt_jax.models import ModelConfig
from nrt_jax.parallel.topology import Topology, open_topology
from nrt_jax.training import plan, plan_evaluation, plan_judge
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.plan_judge import JudgePlan
from nrt_jax.training.programs import Memory, Program, TooLarge

GIB = 2.0**30
#: config.json of the recipes' models, as published.
MODELS = Path(__file__).resolve().parent.parent / "configs" / "models"


@dataclasses.dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run and where it is to run. Of `model` only config.json is read.

    Attributes:
        topology: `KIND:SIZE`: v4, v5e, v5p or v6e and a grid of chips, as in v5e:4x4 and v5p:2x2x2; cpu:N or gpu:N.
        hbm_gib: Memory of a device in GiB; 0 for that of the TPU's kind, and for no limit elsewhere.
        search: Find the largest micro-batch that fits: the gradient is compiled two times more, or a few.
    """

    topology: str = ""
    hbm_gib: float = 0.0
    search: bool = True


def main(config: PlanConfig) -> None:
    """Compiles, prints, and exits with code 1 where the run does not fit."""
    if not config.hbm_gib >= 0:
        raise UserError(f"hbm_gib: {config.hbm_gib} cannot work; expected a number of GiB above 0, or 0")
    jax.config.update("jax_platforms", "cpu")  # Nothing runs: a real accelerator beside this process is not needed.
    model = read_model(config.model, config.dtype)
    topology = open_topology(config.topology)
    run, judge = plan.describe(config, model, topology), None
    if config.reward.judge:
        judge = plan_judge.describe(run, read_judge(config))
        run = dataclasses.replace(run, resident=judge.resident)
    limit = config.hbm_gib * GIB or (topology.chip.hbm if topology.chip else math.inf)
    mesh = config.mesh
    print(
        f"{config.model}: {model.num_parameters:,} parameters; {topology.name}, mesh {mesh.data} x {mesh.fsdp} x "
        f"{mesh.tensor} (data x fsdp x tensor), decoding on {mesh.num_devices // mesh.replica_size} x "
        f"{mesh.replica_size}"
    )
    if judge:
        where = f"{config.judge.devices} devices of its own" if config.judge.devices else "the devices that sample"
        print(f"judge: {config.judge.model}, on {where}, {judge.num_replicas} copies")
    programs, part_size = compile_all(run, judge)
    print(table(programs, topology, limit))
    evaluation = plan_evaluation.memory(run, sum(p.memory.outputs for p in programs if p.name == "layout for decoding"))
    print(evaluation_line(plan_evaluation.num_questions(run), evaluation, limit))
    too_large = [program.name for program in programs if program.memory.peak > limit]
    too_large += ["evaluation"] * (evaluation.peak > limit)
    if topology.chip and not too_large:
        print(step_time(programs, topology))
    if config.search and limit < math.inf:
        gradient = next(program for program in programs if program.name == "gradient")
        known = {part_size: gradient.memory.peak if gradient.out else math.inf}
        most = plan.largest_micro_batch(run, limit, known)
        print(
            f"largest micro-batch that fits: {most} prompts, micro_batches={run.minibatch // most}"
            if most
            else "no micro-batch fits"
        )
    if too_large:
        print(advice(too_large, config, limit), file=sys.stderr)
        raise SystemExit(1)


def read_model(name: str, dtype: str, *, field: str = "model") -> ModelConfig:
    """The model's shape: from a config.json, a checkpoint, or the published ones shipped with the recipes.

    Raises:
        UserError: There is none, or it is not supported.
    """
    path = Path(name)
    if checkpoints.is_local(name):
        return hf.read_config(checkpoints.locate(name).base, dtype=dtype)
    for place in (path, MODELS / f"{path.name}.json"):
        if place.is_file():
            return hf.read_config(place, dtype=dtype)
    known = ", ".join(sorted(file.stem for file in MODELS.glob("*.json")))
    raise UserError(f"{field}: {name!r} has no config.json here; expected a checkpoint, such a file, or {known}")


def read_judge(config: PlanConfig) -> ModelConfig | None:
    """The shape of the checkpoint that judges; None where the run's own policy or reference does."""
    if not config.judge.is_checkpoint:
        return None
    return read_model(config.judge.model, config.dtype, field="judge.model")


def compile_all(run: plan.Run, judge: JudgePlan | None = None) -> tuple[list[Program], int]:
    """All programs of a step, also those that are too large, and the prompts of a micro-batch."""
    part_size = run.minibatch // run.config.micro_batches
    programs = plan.rollout(run)
    programs += plan_judge.programs(run, judge) if judge else []
    try:
        programs.append(plan.gradient(run, part_size))
    except TooLarge as error:
        programs.append(error.program)
    programs.append(plan.optimizer(run))
    try:
        programs += plan.reference(run, part_size)
    except TooLarge as error:
        programs.append(error.program)
    return programs, part_size


def table(programs: list[Program], topology: Topology, limit: float) -> str:
    """One line a program, in GiB of each device, and per run: TFLOP, GB read and written, milliseconds at least."""
    rows = [("program", "runs", "args", "out", "temp", "beside", "peak GiB", "TFLOP", "GB", "ms", "collectives")]
    for p in programs:
        m = p.memory
        sizes = [f"{x / GIB:.2f}" for x in (m.arguments, m.outputs - m.aliased, m.temporaries, m.beside)]
        counts = sorted((p.collectives or {}).items())
        moves = "unreadable" if p.collectives is None else " ".join(f"{kind} {count}" for kind, count in counts)
        peak = f"{m.peak / GIB:.2f}{'!' if m.peak > limit else ''}"
        if p.out is None:
            sizes, peak, moves = ["-"] * 4, f">{peak}", "too large to compile"
        ms = f"{1e3 * p.seconds(topology.chip):.1f}" if topology.chip else "-"
        work = (f"{p.cost.flops / 1e12:.3g}", f"{p.bytes / 1e9:.3g}", ms)
        rows.append((p.name, f"{p.runs:g}", *sizes, peak, *work, moves or "none"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for name, *cells, last in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned, last]))
    worst = max(programs, key=lambda p: p.memory.peak)
    of = f" of {limit / GIB:.2f}" if limit < math.inf else ""
    return "\n".join([*lines, f"most memory at once: {worst.memory.peak / GIB:.2f}{of} GiB, {worst.name}"])


def step_time(programs: list[Program], topology: Topology) -> str:
    """The step's least time, all traces and texts as long as they may be."""
    seconds = {p.name: p.runs * p.seconds(topology.chip) for p in programs}
    parts = " + ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    total = sum(seconds.values())
    return f"a step takes at least {total:.1f} s = {parts} (texts as long as allowed, chips at their peak)"


def evaluation_line(num_questions: int, memory: Memory, limit: float) -> str:
    """What evaluation takes for certain."""
    mark = "!" if memory.peak > limit else ""
    return (
        f"evaluation, {num_questions} questions at once: at least {memory.peak / GIB:.2f}{mark} GiB, of which "
        f"{memory.temporaries / GIB:.2f} are caches and matrices for decoding (from shapes, without activations)"
    )


def advice(too_large: list[str], config: PlanConfig, limit: float) -> str:
    """What to change."""
    others = ("gradient", "optimizer", "reference", "moving average", "evaluation")
    mend, of_judge = [], [name for name in too_large if name.startswith("judge: ")]
    if "evaluation" in too_large:
        mend.append(f"lower --evaluation.batch-size ({config.evaluation.batch_size})")
    if of_judge:
        apart = "" if config.judge.devices else ", or --judge.devices of its own"
        mend.append(f"lower --judge.batch-size ({config.judge.batch_size}){apart}")
    if any(name not in (*others, *of_judge) for name in too_large):
        rows = config.rollout.max_rows or config.rollout.prompts * config.rollout.group_size
        mend.append(f"lower --rollout.max-rows ({rows}), --rollout.cache-dtype int8, raise --mesh.decode-tensor")
    if any(name in ("gradient", "reference") for name in too_large):
        remat = "" if config.remat == "full" else ", --remat full"
        mend.append(f"raise --micro-batches ({config.micro_batches}){remat}, raise --mesh.tensor")
    mend.append("more chips" + ("" if config.lora.rank else ", adapters (--lora.rank 16)"))
    return f"does not fit into {limit / GIB:.2f} GiB: {', '.join(too_large)}; {'; '.join(mend)}"


if __name__ == "__main__":
    cli.run(main, PlanConfig, "python -m launch.plan", __doc__)
