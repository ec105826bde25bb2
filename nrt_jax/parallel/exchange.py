"""Arrays between the processes of a run; with one process there is nothing to exchange.

Each process samples and scores its own part of a step's prompts. What the learner needs of them is small, and every
process gets all of it, in the order of the prompts: lengths, plan, minibatches and metrics are then computed alike
everywhere, as by one process. From there each device takes its part of every micro-batch.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from nrt_jax.parallel.distributed import share


def pad_alike(tree: Any) -> Any:
    """Host arrays, zero-padded at the end of each axis but the first to the longest of all processes."""
    if jax.process_count() == 1:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    shapes = zip(*share([np.shape(x) for x in leaves]), strict=True)
    sizes = [[max(of_axis) for of_axis in zip(*of_leaf, strict=True)] for of_leaf in shapes]
    return jax.tree.unflatten(treedef, [_pad(x, shape) for x, shape in zip(leaves, sizes, strict=True)])


def _pad(x: np.ndarray, shape: list[int]) -> np.ndarray:
    room = [(0, 0 if axis == 0 else size - x.shape[axis]) for axis, size in enumerate(shape)]
    return np.pad(x, room) if any(after for _, after in room) else x


def gather_rows(tree: Any) -> Any:
    """Arrays of each process's rows as host arrays of all rows, in the order of the processes."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(pad_alike(jax.device_get(tree)), tiled=True)


def put(tree: Any, shardings: Any) -> Any:
    """`jax.device_put` of arrays that each process holds whole, or that lie on the mesh already.

    Args:
        tree: Equal in all processes; JAX would spend a collective on making sure of that.
        shardings: For each leaf, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda x: _put(x, shardings), tree)
    return jax.tree.map(_put, tree, shardings)


def _put(x: Any, sharding: Sharding) -> jax.Array:
    is_whole = not isinstance(x, jax.Array) or x.is_fully_addressable
    if sharding.is_fully_addressable or not is_whole:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def fetch_alike(tree: Any) -> Any:
    """Arrays of a mesh as host arrays, in all processes, which call this together."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def fetch(params: Any) -> Any:
    """Arrays of a mesh as host arrays, in the first process; None for each elsewhere. One layer moves at a time."""
    if jax.process_count() == 1:
        return params
    return jax.tree.map(_fetch, params)


def _fetch(x: jax.Array) -> np.ndarray | None:
    is_stack, gathered = x.ndim > 2, []
    for part in (x[i] for i in range(len(x))) if is_stack else [x]:
        whole = multihost_utils.process_allgather(part, tiled=True)
        if jax.process_index() == 0:
            gathered.append(whole)
    return (np.stack(gathered) if is_stack else gathered[0]) if gathered else None
