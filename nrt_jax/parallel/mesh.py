"""The mesh of a run, and the copies of the policy that sample.

Training splits parameters and optimizer state over `fsdp` and `tensor`, and prompts over `data` and `fsdp`. Decoding
would gather what is split over `fsdp` at every token. So once a step the parameters move, over the same devices:

    train    data x fsdp x tensor    2 x 2 x 2     [d0 d1] [d2 d3]    each bracket a row of `tensor`; d0 and d2 hold
                                                   [d4 d5] [d6 d7]    different parts, d4..d7 what d0..d3 hold
    decode   replica x tensor        4 x 2         [d0 d1] [d2 d3] [d4 d5] [d6 d7]    each bracket a whole policy

Each replica then samples alone: nothing crosses from one to another, and none waits for another's longest row.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nrt_jax.errors import UserError
from nrt_jax.parallel import rules
from nrt_jax.parallel.devices import use_devices
from nrt_jax.parallel.distributed import num_processes
from nrt_jax.parallel.exchange import put

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How a run is laid out over devices; all of them sample, score and train. All 1: one device trains.

    Attributes:
        data: Parts of the prompts; parameters are the same in each.
        fsdp: Parts of parameters and optimizer state along the model's width, and of the prompts.
        tensor: Parts of heads, feed-forward and vocabulary.
        decode_tensor: The same in sampling and scoring: devices that share one copy of the policy. 0 for `tensor`.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    decode_tensor: int = 0

    @property
    def num_devices(self) -> int:
        """Of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def replica_size(self) -> int:
        """Devices that hold one copy of the policy in sampling and scoring."""
        return self.decode_tensor or self.tensor

    def validate(self, field: str = "mesh") -> None:
        """Raises UserError for values that fit no number of devices."""
        for name in AXES:
            if getattr(self, name) < 1:
                raise UserError(f"{field}.{name}: {getattr(self, name)} cannot work; expected a number above 0")
        if self.decode_tensor < 0 or self.num_devices % self.replica_size:
            raise UserError(
                f"{field}.decode_tensor: {self.decode_tensor} cannot work; expected a divisor of {self.num_devices}, "
                "the number of devices, or 0 for that of tensor"
            )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The same devices as two meshes with the axes `AXES`.

    Attributes:
        train: As configured.
        decode: replicas x 1 x devices of a replica.
    """

    train: Mesh
    decode: Mesh

    @classmethod
    def of(
        cls,
        config: MeshConfig,
        *,
        field: str = "mesh",
        devices: Sequence[jax.Device] | None = None,
        spare: int = 0,
    ) -> "Layout | None":
        """Over the first devices of this process, or over those given; None for one. Call it before JAX has started.

        In a run of several processes (`distributed.start`) it is over all devices, those of a process one after the
        other, and each replica lies within a process. Of `spare` devices, the last ones of each process, it is not.

        Raises:
            UserError: There are other devices; the message names `field`.
        """
        config.validate(field)
        product = f"{field}.data x {field}.fsdp x {field}.tensor"
        if devices is not None:
            devices = list(devices)
            if len(devices) != config.num_devices:
                raise UserError(
                    f"{product}: {config.num_devices} cannot work; expected {len(devices)}, the number of devices"
                )
        elif num_processes() > 1:
            return cls._over(config, _devices_of_all(config, field, product, spare))
        if config.num_devices == 1:
            return None
        return cls._over(config, devices or use_devices(config.num_devices, field=product, spare=spare))

    @classmethod
    def _over(cls, config: MeshConfig, devices: Sequence[jax.Device]) -> "Layout":
        devices = np.array(devices)
        return cls(
            train=Mesh(devices.reshape(config.data, config.fsdp, config.tensor), AXES),
            decode=Mesh(devices.reshape(-1, 1, config.replica_size), AXES),
        )

    def place(self, tree: Any, axes: Any) -> Any:
        """A pytree laid out for training, by its logical axes."""
        return put(tree, rules.shardings(axes, tree, self.train))

    def copies(self, params: Any, axes: Any) -> list[Any]:
        """The parameters as each replica wants them: gathered over `fsdp` in one program, then taken apart.

        Args:
            params: Laid out for training.
            axes: Their logical axes.

        Returns:
            For each replica of this process params on its devices: on a mesh of them, or on its one device.
        """
        leaves, treedef = jax.tree.flatten(params)
        moved = self.mover(params, axes)(leaves)
        shards = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in moved]
        here = [row for row in self.decode.devices if row.flat[0].process_index == jax.process_index()]
        return [jax.tree.unflatten(treedef, _of_replica(row, moved, shards)) for row in here]

    def mover(self, params: Any, axes: Any) -> Any:
        """The program of `copies`, which takes the leaves."""
        return _mover(tuple(jax.tree.leaves(rules.shardings(axes, params, self.decode))))

    def abstract_copy(self, params: Any, axes: Any, devices: np.ndarray) -> Any:
        """One of `copies` as shapes, as a replica of these devices would have it."""
        mesh = Mesh(devices.reshape(1, 1, -1), AXES)

        def of_leaf(x, sharding):
            alone = jax.sharding.SingleDeviceSharding(devices.flat[0])
            there = alone if devices.size == 1 else jax.sharding.NamedSharding(mesh, sharding.spec)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)

        return jax.tree.map(of_leaf, params, rules.shardings(axes, params, self.decode))


def _devices_of_all(config: MeshConfig, field: str, product: str, spare: int) -> list[jax.Device]:
    """The devices of all processes, in the order of these, but for the spare ones."""
    processes = jax.process_count()
    count, here = jax.device_count() - spare, jax.local_device_count() - spare // processes
    if config.num_devices != count:
        others = f" less {spare} for others" if spare else ""
        raise UserError(
            f"{product}: {config.num_devices} cannot work; expected {count}, the devices of all {processes} "
            f"processes{others}"
        )
    if here % config.replica_size:
        raise UserError(
            f"{field}.decode_tensor: {config.replica_size} cannot work; expected a divisor of {here}, the devices of "
            "each process, within which a copy of the policy samples"
        )
    return without_spare(jax.devices(), spare)


def without_spare(devices: Sequence[jax.Device], spare: int) -> list[jax.Device]:
    """Devices in the order of their processes, without the last ones of each process, `spare` in all."""
    of_process: dict[int, list[jax.Device]] = {}
    for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
        of_process.setdefault(device.process_index, []).append(device)
    each = spare // len(of_process)
    return [device for found in of_process.values() for device in found[: len(found) - each]]


def _of_replica(devices: np.ndarray, leaves: list[jax.Array], shards: list[dict]) -> list[jax.Array]:
    """The leaves as arrays on a replica's devices [1, t] alone, made of their shards there."""
    if devices.size == 1:
        return [of_leaf[devices.flat[0]] for of_leaf in shards]
    mesh = Mesh(devices[None], AXES)
    return [
        jax.make_array_from_single_device_arrays(
            leaf.shape,
            jax.sharding.NamedSharding(mesh, leaf.sharding.spec),
            [of_leaf[device] for device in devices.flat],
        )
        for leaf, of_leaf in zip(leaves, shards, strict=True)
    ]


@functools.cache
def _mover(shardings: tuple[jax.sharding.NamedSharding, ...]):
    return jax.jit(lambda leaves: leaves, out_shardings=list(shardings))
