"""Devices that are not here, by name, for programs that are compiled ahead of time.

`v5e:4x4` is 16 chips of TPU v5e, which libtpu describes (the extra `tpu`). `cpu:8` is 8 virtual CPU devices; `gpu:8`
the same, standing for GPUs whose memory the user knows.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator

import jax

from nrt_jax.errors import UserError
from nrt_jax.parallel.devices import use_devices


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at most.

    Attributes:
        flops: bfloat16 FLOP/s.
        hbm: Bytes of memory that programs may use.
        bandwidth: Bytes/s of that memory.
        links: Bytes/s to other chips, all links and both directions together.
    """

    flops: float
    hbm: float
    bandwidth: float
    links: float


_GIB = 2.0**30
#: From cloud.google.com/tpu/docs/v4, v5e, v5p and v6e; the memory is what is left by the runtime, as the compiler of
#: libtpu 0.0.4x says it when a program needs more.
CHIPS = {
    "v4": Chip(flops=275e12, hbm=30.75 * _GIB, bandwidth=1228e9, links=300e9),
    "v5e": Chip(flops=197e12, hbm=15.75 * _GIB, bandwidth=819e9, links=200e9),
    "v5p": Chip(flops=459e12, hbm=95.73 * _GIB, bandwidth=2765e9, links=600e9),
    "v6e": Chip(flops=918e12, hbm=31.24 * _GIB, bandwidth=1640e9, links=448e9),
}
#: A v4 chip is two cores, of which JAX makes one device.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
#: Slices whose chips share a host, least first.
_HOSTS = {"v4": ("2x2x1",), "v5e": ("2x2", "2x4"), "v5p": ("2x2x1",), "v6e": ("2x2", "2x4")}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some devices.

    Attributes:
        name: As the user wrote it.
        platform: `tpu`, `gpu` or `cpu`.
        devices: Neighbours that share a host next to each other.
        chip: What each can do; None where that is not known.
    """

    name: str
    platform: str
    devices: tuple[jax.Device, ...]
    chip: Chip | None

    @property
    def num_processes(self) -> int:
        """Hosts."""
        return len({device.process_index for device in self.devices})

    def part(self, count: int) -> tuple[jax.Device, ...]:
        """Devices for programs of so many of them, which share a host: a smaller slice of the same chips.

        The compiler numbers the chips of its target from 0, and would not find those of a larger slice there.
        """
        if self.platform != "tpu" or count == len(self.devices):
            return self.devices[:count]
        kind = self.name.partition(":")[0]
        whole = next(slice for slice in _HOSTS[kind] if math.prod(map(int, slice.split("x"))) >= count)
        return open_topology(f"{kind}:{whole}").devices[:count]


def open_topology(name: str, *, field: str = "topology") -> Topology:
    """Describes a topology; call it before JAX has started.

    Args:
        name: KIND:SIZE, see above; a TPU's size is a grid of chips.
        field: Of the config, for errors.

    Raises:
        UserError: No such kind or size, or libtpu is missing.
    """
    kind, _, size = name.partition(":")
    if kind in ("cpu", "gpu") and size.isdecimal() and 0 < int(size) <= 1024:
        return Topology(name, kind, tuple(use_devices(int(size), field=field)), None)
    if kind not in CHIPS or not all(part.isdecimal() and 0 < int(part) < 1000 for part in size.split("x")):
        known = ", ".join([*(f"{tpu}:2x2" for tpu in CHIPS if tpu not in ("v4", "v5p")), "v4:2x2x1", "v5p:2x2x1"])
        raise UserError(f"{field}: {name!r} is no topology; expected a kind and a size, such as {known}, cpu:8, gpu:8")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"{field}: {name!r} needs libtpu, which is not installed; pip install -e '.[tpu]'")
    # Without them libtpu asks the cloud's metadata server for a TPU, for minutes, and refuses to be loaded twice.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    from jax.experimental import topologies

    try:
        with quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **_OPTIONS.get(kind, {})).devices
    except Exception as error:  # of whatever type jaxlib has for it
        reason = " ".join(str(error).split()) or repr(error)
        raise UserError(f"{field}: {name!r} is not what libtpu can describe ({reason}); expected a slice") from error
    return Topology(name, "tpu", tuple(sorted(found, key=lambda d: (d.process_index, d.id))), CHIPS[kind])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what native code writes to stderr away: libtpu says at length that it finds no TPU here."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
