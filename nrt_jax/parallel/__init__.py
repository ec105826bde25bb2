"""Devices and how work is laid out over them."""

from nrt_jax.parallel.devices import use_devices
from nrt_jax.parallel.distributed import DistributedConfig, first, num_processes, share, start
from nrt_jax.parallel.exchange import fetch, fetch_alike, gather_rows, pad_alike, put
from nrt_jax.parallel.mesh import Layout, MeshConfig
from nrt_jax.parallel.rules import (
    beside,
    constrain,
    constrain_tree,
    num_shards,
    on,
    shardings,
    spec_in_use,
    split_vocab,
)
from nrt_jax.parallel.watch import ends_together

__all__ = [
    "DistributedConfig",
    "Layout",
    "MeshConfig",
    "beside",
    "constrain",
    "constrain_tree",
    "ends_together",
    "fetch",
    "fetch_alike",
    "first",
    "gather_rows",
    "num_processes",
    "num_shards",
    "on",
    "pad_alike",
    "put",
    "shardings",
    "share",
    "spec_in_use",
    "split_vocab",
    "start",
    "use_devices",
]
