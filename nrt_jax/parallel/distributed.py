"""Runs of several processes, one on each host: how they find each other, and what the first one does for all.

    TPU pod       the same command on every host; JAX asks the machine for the others
    SLURM         the same command under `srun`; JAX reads SLURM's variables
    plain hosts   on host I of N: --distributed.coordinator HOST:PORT --distributed.processes N --distributed.process I
                  or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID

All processes run the same program. Small things that they must agree on travel as JSON (`share`), and arrays in
`exchange`; `watch` ends all of them when one ends before the others.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nrt_jax.errors import UserError
from nrt_jax.parallel import watch

T = TypeVar("T")

HEARTBEAT_SECONDS = 30  # A host that vanishes without a word is missed after so long; others are noticed at once.


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run on plain hosts; TPU pods and SLURM need none of it.

    Attributes:
        coordinator: Address of process 0 and a free port there, HOST:PORT; empty for JAX_COORDINATOR_ADDRESS.
        processes: How many there are; 0 for JAX_NUM_PROCESSES.
        process: The number of this one, from 0; -1 for JAX_PROCESS_ID.
    """

    coordinator: str = ""
    processes: int = 0
    process: int = -1

    def validate(self, field: str = "distributed") -> None:
        """Raises UserError for values that cannot be."""
        _check(self.processes >= 0, f"{field}.processes", self.processes, "a number above 0")
        _check(self.process >= -1, f"{field}.process", self.process, "0 or more")
        if self.coordinator:
            _check_address(f"{field}.coordinator", self.coordinator)

    def resolve(self, environment: Mapping[str, str], field: str = "distributed") -> "DistributedConfig":
        """With the variables of the environment where a field is not set, and checked.

        Returns:
            All three fields set, or none.

        Raises:
            UserError: Some are set and others are not, or they do not fit each other.
        """
        self.validate(field)
        found, names = [], ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        for name, variable in zip(("coordinator", "processes", "process"), names, strict=True):
            value, unset = getattr(self, name), getattr(DistributedConfig, name)
            if value != unset:
                found.append((f"{field}.{name}", value))
            elif variable in environment:
                found.append((variable, _parsed(variable, environment[variable], is_number=name != "coordinator")))
        if not found:
            return self
        if len(found) < len(names):
            raise UserError(
                f"{field}: {found[0][0]} is set, but not all of coordinator, processes and process are; expected "
                f"--{field}.coordinator HOST:PORT --{field}.processes N --{field}.process I, or {', '.join(names)}"
            )
        (where, coordinator), (counted, processes), (numbered, process) = found
        _check_address(where, coordinator)
        _check(processes > 0, counted, processes, "a number above 0")
        _check(0 <= process < processes, numbered, process, f"a number from 0 to {processes - 1}, below {counted}")
        return DistributedConfig(coordinator, processes, process)


def start(config: DistributedConfig, *, num_devices: int = 1) -> None:
    """Joins the other processes of the run, and waits for them; a run of one process goes on at once.

    Call it before JAX has started, in all processes.

    Args:
        config: Where they are.
        num_devices: Of the whole run: where the devices are CPUs, each process makes its part of them.

    Raises:
        UserError: The config is wrong, or the others cannot be found.
    """
    found = config.resolve(os.environ)
    if found.processes > 1:
        if num_devices % found.processes == 0:
            with contextlib.suppress(RuntimeError):  # JAX has started: what there is must do.
                jax.config.update("jax_num_cpu_devices", num_devices // found.processes)
        where = (found.coordinator, found.processes, found.process)
    elif found.processes == 0 and (_has_slurm_tasks(os.environ) or _is_tpu_host(os.environ)):
        where = (None, None, None)
    else:
        return
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            *where,
            cluster_detection_method=None if where[0] is None else "deactivate",
            local_device_ids=_all_gpus(os.environ) if where[0] is None else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
        if jax.process_count() > 1:
            host = _coordinator().rpartition(":")[0].strip("[]")
            watch.begin(host, jax.process_index(), jax.process_count(), share)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        if where[0] is None and not _has_slurm_tasks(os.environ) and jax.process_count() == 1:
            return  # A TPU host on its own, whose machine says nothing of others.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"distributed: the other processes of this run cannot be reached ({reason}); start all of them within "
            "five minutes, with the same coordinator, which must be an address of process 0"
        ) from error


def num_processes() -> int:
    """Of the run; it may be asked before JAX has started."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def share(value: T) -> list[T]:
    """The JSON values that all processes give, in the order of the processes; all of them call this."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    room = 1 << (int(sizes.max()) - 1).bit_length()  # Few sizes, each of which is a program.
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - data.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def first(function: Callable[..., T], *args, **kwargs) -> T:
    """What the first process gets from a call that it makes for all: a JSON value, or a UserError, raised in each."""
    value = error = None
    if jax.process_index() == 0:
        try:
            value = function(*args, **kwargs)
        except UserError as raised:
            error = raised
    value, message = share([value, error and str(error)])[0]
    if message is not None:
        raise error or UserError(message)
    return value


def _coordinator() -> str:
    from jax._src import distributed  # What JAX detected is nowhere else.

    return distributed.global_state.coordinator_address


def _has_slurm_tasks(environment: Mapping[str, str]) -> bool:
    """`srun` started this process among others."""
    return int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environment


def _all_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """With one SLURM task a node, that node's GPUs, of which JAX would take one; else None, JAX's own choice."""
    if environment.get("SLURM_NTASKS") == environment.get("SLURM_STEP_NUM_NODES"):
        count = environment.get("SLURM_GPUS_ON_NODE", "")
        return list(range(int(count))) if count.isdecimal() else None
    return None


def _is_tpu_host(environment: Mapping[str, str]) -> bool:
    """JAX will use TPUs here, and perhaps more hosts have some: only the machine knows."""
    is_wanted = "tpu" in environment.get("JAX_PLATFORMS", "tpu")
    has_chips = any(any(pathlib.Path("/dev").glob(pattern)) for pattern in ("accel[0-9]*", "vfio/[0-9]*"))
    return is_wanted and has_chips and importlib.util.find_spec("libtpu") is not None


def _check_address(name: str, value: str) -> None:
    host, _, port = value.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    _check(bool(host) and is_port, name, repr(value), "HOST:PORT, such as 10.0.0.1:1234")


def _parsed(name: str, value: str, *, is_number: bool) -> str | int:
    if not is_number:
        return value
    is_good = value.isascii() and value.isdecimal()
    _check(is_good, name, repr(value), "a whole number")
    return int(value)


def _check(condition: bool, name: str, value, expected: str) -> None:
    if not condition:
        raise UserError(f"{name}: {value} cannot work; expected {expected}")
