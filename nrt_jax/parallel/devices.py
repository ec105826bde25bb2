"""The devices of this process."""

import contextlib

import jax

from nrt_jax.errors import UserError


def use_devices(count: int, *, field: str, spare: int = 0) -> list[jax.Device]:
    """The first `count` devices of this process; call it before JAX has started.

    A CPU is one device that shares its cores between the operations of a program. Small programs, such as a step of
    decoding, gain nothing from that; if more devices are asked for, the CPU is made so many.

    Args:
        count: How many.
        field: Of the config, for the error.
        spare: How many more there must be behind them, for others.

    Raises:
        UserError: There are fewer.
    """
    if count + spare > 1:
        with contextlib.suppress(RuntimeError):  # JAX has started: what there is must do.
            jax.config.update("jax_num_cpu_devices", count + spare)
    devices = jax.local_devices()
    if len(devices) < count + spare:
        others = f" less {spare} for others" if spare else ""
        raise UserError(
            f"{field}: {count} cannot work; expected at most {max(len(devices) - spare, 0)}, the devices of this "
            f"process{others}"
        )
    return devices[:count]
