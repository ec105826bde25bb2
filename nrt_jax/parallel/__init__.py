"""Devices and how work is laid out over them."""

from nrt_jax.parallel.devices import use_devices

__all__ = ["use_devices"]
