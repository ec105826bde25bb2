"""Devices and how work is laid out over them."""

from nrt_jax.parallel.devices import use_devices
from nrt_jax.parallel.mesh import Layout, MeshConfig
from nrt_jax.parallel.rules import beside, constrain, constrain_tree, num_shards, on, shardings, spec_in_use

__all__ = [
    "Layout",
    "MeshConfig",
    "beside",
    "constrain",
    "constrain_tree",
    "num_shards",
    "on",
    "shardings",
    "spec_in_use",
    "use_devices",
]
