"""A run that begins on a mesh and goes on without one is the run of one device."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np

from nrt_jax import hf
from nrt_jax.data.rows import DataConfig
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.parallel import MeshConfig
from nrt_jax.training import loop
from nrt_jax.training.config import CheckpointConfig, RolloutConfig, TrainConfig
from nrt_jax.training.optimizer import OptimizerConfig
from nrt_jax.training.setup import prepare
from tests.fixtures_run import examples, records, write_model, write_rows

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_run_on_a_mesh_is_that_of_one_device_and_may_go_on_there(tmp_path):
    one = TrainConfig(
        model=str(write_model(tmp_path / "model")),
        data=(str(write_rows(tmp_path / "train.jsonl", examples(12))),),
        steps=2,
        updates_per_step=1,
        dataset=DataConfig(held_out=str(write_rows(tmp_path / "test.jsonl", examples(4, start=50)))),
        rollout=RolloutConfig(prompts=4, group_size=2, max_trace_length=8, chunk_size=8),
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-3),  # An eps that keeps rounding as small as it is.
        evaluation=EvaluationConfig(questions=4, batch_size=2),
        checkpoint=CheckpointConfig(every=1),
    )
    mesh = dataclasses.replace(one, steps=1, mesh=MeshConfig(fsdp=2, tensor=2))
    summaries = []
    for config, folder in ((one, "one"), (mesh, "mesh"), (one, "mesh")):
        summaries.append(loop.train(config, prepare(config), tmp_path / folder, lambda line: None))
    expected, found = records(tmp_path / "one"), records(tmp_path / "mesh")
    assert [record["step"] for record in found] == [1, 2]
    for record, other in zip(found, expected, strict=True):
        assert record.keys() == other.keys()
        np.testing.assert_allclose([*record.values()], [other[name] for name in record], atol=1e-4)
    for name in ("accuracy_before", "accuracy_after", "answer_prob_before", "answer_prob_after"):
        np.testing.assert_allclose(summaries[2][name], summaries[0][name], atol=1e-5)
    _, params = hf.load_model(tmp_path / "one" / "hf")
    _, resumed = hf.load_model(tmp_path / "mesh" / "hf")
    np.testing.assert_allclose(resumed["layers"]["q"], params["layers"]["q"], atol=1e-5)


def test_a_cpu_is_made_as_many_devices_as_the_mesh_asks_for():
    """In a process of its own: here JAX has started, with eight."""
    code = """
from nrt_jax.parallel import MeshConfig
from nrt_jax.training import setup
from nrt_jax.training.config import RolloutConfig, TrainConfig
config = TrainConfig(mesh=MeshConfig(data=2), rollout=RolloutConfig(prompts=8))
print(setup.prepare(config).layout.train.size)
"""
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
