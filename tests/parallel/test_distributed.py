"""Which processes a run has, by flags, the environment or the machine; what the first of them does for all."""

import re

import pytest

from nrt_jax import parallel
from nrt_jax.errors import UserError
from nrt_jax.parallel import DistributedConfig, distributed

FLAGS = DistributedConfig("10.0.0.1:1234", 4, 3)
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def test_flags_and_variables_say_the_same():
    assert FLAGS.resolve({}) == DistributedConfig().resolve(VARIABLES) == FLAGS


def test_a_flag_goes_before_its_variable():
    assert DistributedConfig(process=0).resolve(VARIABLES).process == 0


def test_nothing_is_one_process():
    assert DistributedConfig().resolve({"HOME": "/"}) == DistributedConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS: 'host' cannot work; expected HOST:PORT, such"),
        ({"JAX_COORDINATOR_ADDRESS": "host:99999"}, "JAX_COORDINATOR_ADDRESS: 'host:99999' cannot work"),
        ({"JAX_COORDINATOR_ADDRESS": ":1234"}, "JAX_COORDINATOR_ADDRESS: ':1234' cannot work"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES: 'four' cannot work; expected a whole number"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: 0 cannot work; expected a number above 0"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID: 4 cannot work; expected a number from 0 to 3"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID: '-1' cannot work"),
    ],
)
def test_values_that_cannot_be_are_refused_by_their_names(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        DistributedConfig().resolve(VARIABLES | changes)


@pytest.mark.parametrize("missing", VARIABLES)
def test_some_without_the_others_are_refused(missing):
    some = {name: value for name, value in VARIABLES.items() if name != missing}
    with pytest.raises(UserError, match="is set, but not all of coordinator, processes and process are"):
        DistributedConfig().resolve(some)


@pytest.mark.parametrize(
    "config",
    [DistributedConfig(processes=-1), DistributedConfig(process=-2), DistributedConfig(coordinator="nowhere")],
)
def test_flags_that_cannot_be_are_refused_before_anything_else(config):
    with pytest.raises(UserError, match="distributed"):
        config.validate()


def test_slurm_is_several_tasks_of_a_step():
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_NUM_NODES": "2"}
    assert distributed._has_slurm_tasks(step)
    assert not distributed._has_slurm_tasks(step | {"SLURM_NTASKS": "1"})
    assert not distributed._has_slurm_tasks({"SLURM_NTASKS": "2"})  # A shell of `salloc`.


def test_one_slurm_task_a_node_takes_all_of_its_gpus():
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    assert distributed._all_gpus(step) == [0, 1, 2, 3]
    assert distributed._all_gpus(step | {"SLURM_NTASKS": "8"}) is None


def test_a_machine_without_chips_is_no_tpu_host():
    assert not distributed._is_tpu_host({})
    assert not distributed._is_tpu_host({"JAX_PLATFORMS": "cpu"})


def test_one_process_shares_with_itself():
    def refuse():
        raise UserError("workdir: no")

    assert parallel.share({"a": 1}) == [{"a": 1}]
    assert parallel.first(lambda x: x + 1, 2) == 3
    with pytest.raises(UserError, match="workdir: no"):
        parallel.first(refuse)
