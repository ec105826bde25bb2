"""Planning: bad input ends in one line; figures agree with arithmetic of their own; what does not fit exits with 1."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from launch import bench, cli, plan
from nrt_jax.data.encode import TextConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.models import Model, ModelConfig
from nrt_jax.objectives import NRTLossConfig
from nrt_jax.parallel import MeshConfig
from nrt_jax.parallel.topology import CHIPS, open_topology
from nrt_jax.rewards import JudgeConfig
from nrt_jax.rollout import engine
from nrt_jax.training import plan as programs
from nrt_jax.training import plan_evaluation, plan_judge
from nrt_jax.training.config import ReferenceConfig, RewardConfig, RolloutConfig, TrainConfig
from nrt_jax.training.cost import Cost
from nrt_jax.training.programs import Memory, Program, size_on_device
from nrt_jax.training.update import Lengths

SHAPE = {
    "model_type": "llama",
    "vocab_size": 255,  # and one for the delimiter
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
}
MODEL = ModelConfig(
    vocab_size=255,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
)
CONFIG = TrainConfig(
    dtype="bfloat16",
    remat="none",
    updates_per_step=2,
    micro_batches=2,
    mesh=MeshConfig(fsdp=2, tensor=2),
    text=TextConfig(max_prompt_length=32, max_answer_length=32),
    rollout=RolloutConfig(prompts=16, group_size=2, max_trace_length=32, chunk_size=32, max_rows=4),
)
FLAGS = (
    "--dtype=bfloat16",
    "--remat=none",
    "--updates-per-step=2",
    "--micro-batches=2",
    "--mesh.fsdp=2",
    "--mesh.tensor=2",
    "--text.max-prompt-length=32",
    "--text.max-answer-length=32",
    "--rollout.prompts=16",
    "--rollout.group-size=2",
    "--rollout.max-trace-length=32",
    "--rollout.chunk-size=32",
    "--rollout.max-rows=4",
)


def command(*flags: str) -> None:
    cli.run(plan.main, plan.PlanConfig, "python -m launch.plan", "", args=flags)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE))
    return f"--model={path}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "topology: '' is no topology"),
        (("--topology=v9:2x2",), "v5e:2x2"),
        (("--topology=v5e",), "'v5e' is no topology"),
        (("--topology=v5e:2xx2",), "'v5e:2xx2' is no topology"),
        (("--topology=cpu:0",), "'cpu:0' is no topology"),
        (("--topology=cpu:4",), "mesh.data x mesh.fsdp x mesh.tensor: 1 cannot work; expected 4"),
        (("--topology=cpu:1", "--model=nobody/nothing"), "Llama-3.1-8B"),
        (("--topology=cpu:1", "--hbm-gib=-1"), "hbm_gib: -1.0"),
        (("--topology=cpu:1", "--objective=sft"), "objective: 'sft' is not planned"),
        (
            ("--topology=cpu:1", "--reward.judge=1", "--judge.model=no/body"),
            "judge.model: 'no/body' has no config.json",
        ),
    ],
)
def test_bad_input_ends_in_one_line(flags, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(*flags)
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and err.count("\n") == 1 and said in err, err


def test_without_libtpu_a_tpu_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        command("--topology=v5e:2x2")
    assert exit_.value.code == 2 and "pip install -e '.[tpu]'" in capsys.readouterr().err


def test_every_recipe_names_a_model_whose_shape_is_shipped():
    recipes = [file.stem for file in cli.CONFIGS_FOLDER.glob("nrt_*.py")]
    assert recipes
    for name in recipes:
        config = cli.load_config(name, TrainConfig)
        config.validate()
        assert plan.read_model(config.model, "bfloat16").num_parameters > 1e9


@pytest.mark.parametrize("name", ["nrt", *(file.stem for file in sorted(cli.CONFIGS_FOLDER.glob("nrt_*.py")))])
def test_a_recipes_evaluation_has_no_more_caches_than_its_rollout(name):
    """It samples on each replica before the first step, beside the same state."""
    config = cli.load_config(name, TrainConfig)
    model = Model(plan.read_model("Llama-3.2-1B" if name == "nrt" else config.model, config.dtype))
    nowhere = dict.fromkeys(("topology", "layout", "params", "frozen", "reference"))
    planned = programs.Run(config=config, model=model, **nowhere)
    num_rows, num_groups, _ = engine.room(planned.sampling, planned.share)
    prompt, trace = config.text.max_prompt_length, config.rollout.max_trace_length
    rollout = num_groups * (2 * prompt + config.rollout.group_size * trace) + num_rows * trace
    assert plan_evaluation.num_questions(planned) * plan_evaluation.slots(planned) <= rollout


@pytest.fixture(scope="module")
def run():
    return programs.describe(CONFIG, MODEL, open_topology("cpu:4"))


@pytest.mark.parametrize("kind", ["initial", "ema"])
def test_a_reference_is_kept_all_the_time_and_its_programs_are_planned(run, kind):
    """In bfloat16 if it never changes, norms included; a copy in float32 if it follows."""
    with_kl = dataclasses.replace(
        CONFIG, reference=ReferenceConfig(kind, decay=0.9), loss=NRTLossConfig(kl_weight=0.1, kl_in="reward")
    )
    planned = programs.describe(with_kl, MODEL, open_topology("cpu:4"))
    added = planned.kept - run.kept
    norms = 4 * (2 * MODEL.num_layers + 1) * MODEL.hidden_size / 2
    params = size_on_device(run.params)
    assert added == (params if kind == "ema" else (params - norms) / 2 + norms)
    found = programs.reference(planned, 4)
    assert [program.name for program in found] == ["reference"] + ["moving average"] * (kind == "ema")
    assert found[0].runs == 4 and found[0].cost.flops > 0
    for program in found:
        assert program.memory.beside + program.memory.arguments >= planned.kept
    assert programs.reference(run, 4) == []


@pytest.fixture(scope="module")
def gradient(run):
    return programs.gradient(run, 4)


def test_the_gradients_arguments_are_two_trees_over_the_mesh_and_the_batch(run, gradient):
    """The sum so far and the parameters, split over 4, norms over fsdp alone; the batch lies on each device."""
    norms = (2 * MODEL.num_layers + 1) * MODEL.hidden_size
    matrices = run.model.config.num_parameters - norms
    rows = 8 * 2 * (1 + 32 + 1 + 32)
    batch = 8 * 32 * 5 + rows * (4 + 3 + 4 + 4) + 8 * 2 * 4
    expected = 2 * 4 * (matrices / 4 + norms / 2) + batch
    assert gradient.memory.arguments == pytest.approx(expected, rel=0.01)
    assert gradient.memory.beside == pytest.approx(2 * 4 * (matrices / 4 + norms / 2), rel=0.01)  # Adam's moments.


def test_the_gradients_flops_are_those_of_the_benchmark_and_the_masked_and_recomputed_ones(run, gradient):
    longest = Lengths(prompts=np.full(4, 32), completions=np.full((4, 2), 65))
    needed = bench.train_flops(run.model.config, longest) / 4
    assert needed <= gradient.cost.flops <= 1.7 * needed


def test_memory_beside_the_rollout_is_the_trainers_and_that_of_the_other_programs(run):
    found = {program.name: program.memory for program in programs.rollout(run)}
    state = size_on_device(run.state)
    copy = found["prefill"].arguments - 2 * 32 * 5  # Two prompts at once.
    assert found["parameters"].beside == pytest.approx(state)
    assert found["parameters"].outputs == pytest.approx(copy, rel=0.02)
    weights = found["layout for decoding"].outputs
    assert found["seating"].beside == pytest.approx(state + copy + weights, rel=0.02)
    own_caches = 4 * MODEL.num_layers * MODEL.num_kv_heads / 2 * 2 * 64 * 32 * 2
    assert found["decoding"].aliased >= own_caches


def test_the_largest_micro_batch_is_the_last_whose_peak_is_within_the_limit(run, monkeypatch):
    tried = []

    def gradient(_, size):
        tried.append(size)
        memory = Memory(arguments=10.0, outputs=0.0, aliased=0.0, temporaries=3.0 * size)
        return Program("gradient", memory, Cost(), {}, ())

    monkeypatch.setattr(programs, "gradient", gradient)
    assert programs.micro_batch_sizes(run) == [2, 4, 8]
    assert [programs.largest_micro_batch(run, limit, {4: 22.0}) for limit in (15, 16, 21, 22, 33, 34, 99)] == [
        *(0, 2, 2, 4, 4, 8, 8),
    ]
    assert set(tried) == {2, 8}


def test_evaluation_is_counted_in_keys_and_values_of_whole_samples(run):
    """K and V, bfloat16, of two layers, a head a device: 32 + 32 of the prompt, 65 + 96 of trace, delimiter, answer."""
    found = programs_of_evaluation(run, 5)
    assert found.temporaries == 1000.0 + 5 * (32 + 32 + 65 + 96) * 2 * 2 * 64 * 2
    assert found.beside == size_on_device(run.state)
    assert found.arguments == size_on_device(programs.copy_of(run))


def programs_of_evaluation(run, batch_size):
    config = dataclasses.replace(run.config, evaluation=EvaluationConfig(batch_size=batch_size))
    return plan_evaluation.memory(dataclasses.replace(run, config=config), weights=1000.0)


def test_one_devices_copy_of_the_policy_is_the_trainers_and_counted_once():
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(), updates_per_step=1, micro_batches=1)
    planned = programs.describe(config, MODEL, open_topology("cpu:1"))
    found = {program.name: program.memory for program in programs.rollout(planned)}
    others = size_on_device(planned.state) - size_on_device(planned.params)
    assert found["layout for decoding"].beside == others
    weights = found["layout for decoding"].outputs
    assert found["seating"].beside == others + size_on_device(planned.params) + weights
    assert "parameters" not in found


def test_a_runs_folder_is_read_as_the_model_that_it_trained(tmp_path):
    """Its own config.json is the run's."""
    run = tmp_path / "run"
    (run / "checkpoints" / "1" / "state").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "config.json").write_text("{}")
    (run / "model" / "config.json").write_text(json.dumps(SHAPE))
    assert plan.read_model(str(run), "float32").hidden_size == SHAPE["hidden_size"]


JUDGED = dataclasses.replace(
    CONFIG,
    mesh=MeshConfig(),
    updates_per_step=1,
    micro_batches=1,
    reward=RewardConfig(intrinsic=0.0, judge=1.0),
    judge=JudgeConfig(model="other", thoughts=2, max_thought_length=15, batch_size=4),
)


def judge_of(config, devices: int):
    planned = programs.describe(config, MODEL, open_topology(f"cpu:{devices}"))
    judge = plan_judge.describe(planned, MODEL if config.judge.is_checkpoint else None)
    return dataclasses.replace(planned, resident=judge.resident), judge


def test_a_judge_on_the_devices_that_sample_stays_beside_the_trainer_and_one_of_the_run_does_not():
    planned, judge = judge_of(JUDGED, 1)
    params = 2 * (MODEL.num_parameters + 2 * 2 * MODEL.hidden_size)  # bfloat16, with the rows of two tags.
    assert judge.resident == size_on_device(judge.params) == params
    assert planned.kept == params + size_on_device(planned.state)
    own, _ = judge_of(dataclasses.replace(JUDGED, judge=dataclasses.replace(JUDGED.judge, model="policy")), 1)
    assert own.resident == 0 and own.kept == size_on_device(own.state)


def test_a_judge_with_devices_of_its_own_leaves_the_others_alone_and_its_programs_are_planned():
    apart = dataclasses.replace(JUDGED, judge=dataclasses.replace(JUDGED.judge, devices=2))
    planned, judge = judge_of(apart, 3)
    assert (planned.kept, judge.num_replicas) == (size_on_device(planned.state), 2)
    found = {program.name: program for program in plan_judge.programs(planned, judge)}
    assert {name.removeprefix("judge: ") for name in found} >= {"prefill", "seating", "decoding", "scoring"}
    params = size_on_device(judge.params)
    prompts, new_tokens = 2 * 128, 32  # A copy's part of the batch; 32 + 32 + 1 fill a room of 128; 15 + 1 + 16.
    cache = MODEL.num_layers * 2 * MODEL.num_kv_heads * 64 * 2
    scoring = found["judge: scoring"]
    assert scoring.runs == 16 * 2 / 4
    assert scoring.memory.arguments == pytest.approx(params + cache * (prompts + 2 * 2 * new_tokens), rel=0.05)
    weights = found["judge: layout for decoding"].memory.outputs
    groups = found["judge: prefill"].memory.outputs
    assert found["judge: decoding"].memory.beside == params + groups
    assert found["judge: scoring"].memory.beside == weights + groups + found["judge: seating"].memory.outputs


def test_what_does_not_fit_exits_with_1_and_says_what_to_change(model, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(model, *FLAGS, "--topology=gpu:4", "--hbm-gib=0.0001")
    printed = capsys.readouterr()
    assert exit_.value.code == 1
    for name in ("parameters", "prefill", "decoding", "scoring", "gradient", "optimizer"):
        assert re.search(rf"^{name} .*!", printed.out, re.MULTILINE), printed.out
    assert "no micro-batch fits" in printed.out
    assert re.search(r"^evaluation, 256 questions at once: at least .*!", printed.out, re.MULTILINE), printed.out
    assert "lower --evaluation.batch-size (256)" in printed.err
    assert "--rollout.max-rows" in printed.err and "--micro-batches" in printed.err and "more chips" in printed.err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, of the extra `tpu`, is not installed")
def test_a_tpu_slice_is_planned_without_one(model):
    flags = (model, *FLAGS, "--topology=v5e:2x2")
    done = subprocess.run(
        [sys.executable, "-m", "launch.plan", *flags], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert f"of {CHIPS['v5e'].hbm / 2**30:.2f} GiB" in done.stdout
    assert "a step takes at least" in done.stdout
    assert "largest micro-batch that fits: 8 prompts, micro_batches=1" in done.stdout
    assert re.search(r"^decoding .*all-reduce", done.stdout, re.MULTILINE)
