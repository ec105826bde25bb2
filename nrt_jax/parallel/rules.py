"""Where arrays lie on a mesh: one table from logical axis names to mesh axes.

Every axis of a parameter has a name (`Model.logical_axes`), and so have the axes of activations that are laid out
(`constrain`). The decode layout is the same table on a mesh without `fsdp`, see `mesh`. On a mesh 2 x 2 x 2:

    q         [layers, embed, heads, head_dim]    ->  [all, fsdp, tensor, all]
    hidden    [prompts, traces, T, D]             ->  [data x fsdp, tensor, all, all]    between layers

The names mean something inside `on(arrays)`, for arrays on a mesh; everywhere else these functions do nothing.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

RULES: dict[str, tuple[str, ...]] = {
    "prompts": ("data", "fsdp"),  # of activations; a prompt's K traces stay together
    "embed": ("fsdp",),  # of parameters alone: an activation's D is whole on each device
    "traces": ("tensor",),  # between layers, which is what the backward pass keeps
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "head_dim": (),
    "lora": (),
}


def spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The mesh axes of each dimension; one that they do not divide, such as few KV heads, lies whole on each device.

    A vocabulary that they do not divide leaves them to the same matrix's width (see `split_vocab`).

    Args:
        axes: A name for each dimension, None where it is not split; the last ones may be left out.
        shape: Of the array.
        mesh: With any of the axes that `RULES` names.
    """
    split = [_mesh_axes(axis, size, mesh) for axis, size in zip(axes, shape, strict=False)]
    if "vocab" in axes and "embed" in axes and not split[axes.index("vocab")]:
        width = axes.index("embed")
        both = split[width] + _names("vocab", mesh)
        split[width] = both if shape[width] % _product(both, mesh) == 0 else split[width]
    entries = [names if len(names) > 1 else names[0] if names else None for names in split]
    while entries and entries[-1] is None:  # As JAX writes them: others would be compiled again.
        entries.pop()
    return PartitionSpec(*entries)


def _mesh_axes(axis: str | None, size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    names = _names(axis, mesh) if axis else ()
    return names if size % _product(names, mesh) == 0 else ()


def _names(axis: str, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    return tuple(name for name in RULES[axis] if mesh.shape.get(name, 1) > 1)


def _product(names: Sequence[str], mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in names)


def shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for each leaf.

    Args:
        axes: A pytree of `PartitionSpec`s of logical names.
        shapes: The same pytree of arrays or `jax.ShapeDtypeStruct`s.
        mesh: Where they shall lie.
    """
    return jax.tree.map(lambda x, names: NamedSharding(mesh, spec(names, x.shape, mesh)), shapes, axes)


def num_shards(axis: str, size: int) -> int:
    """Into how many parts the mesh in use splits an axis of this size; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _mesh_axes(axis, size, mesh))


def spec_in_use(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """`spec` on the mesh in use."""
    return spec(axes, shape, jax.sharding.get_abstract_mesh())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x laid out by the names of its first dimensions on the mesh in use; without a mesh, x."""
    is_alone = jax.sharding.get_abstract_mesh().empty
    return x if is_alone else jax.lax.with_sharding_constraint(x, spec_in_use(axes, x.shape))


def split_vocab(matrix: jax.Array) -> jax.Array:
    """A matrix [V, D] of parameters with its rows split over the mesh in use, where it divides V and where it does not.

    Arrays that come into a program or leave it must divide; those inside need not, and their last part is shorter.
    Delimiters that are added to a tokenizer make vocabularies that no mesh divides.
    """
    mesh = jax.sharding.get_abstract_mesh()
    vocab, embed = _names("vocab", mesh), _mesh_axes("embed", matrix.shape[1], mesh)
    if matrix.shape[0] % _product(vocab, mesh) == 0:
        return matrix
    for width in (embed, ()):  # In two steps: in one, XLA makes the matrix whole on each device.
        matrix = jax.lax.with_sharding_constraint(matrix, PartitionSpec(vocab, width))
    return matrix


def constrain_tree(tree: Any, axes: Any) -> Any:
    """`constrain` of every leaf, by a pytree of `PartitionSpec`s of logical names."""
    return jax.tree.map(lambda x, names: constrain(x, *names), tree, axes)


def sharding_of(arrays: Any) -> Sharding:
    """Where the first of some arrays lies."""
    return jax.tree.leaves(arrays)[0].sharding


def on(arrays: Any) -> contextlib.AbstractContextManager:
    """The mesh that some arrays lie on is in use in the block: programs that take them are called in it."""
    sharding = sharding_of(arrays)
    is_split = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
    return jax.set_mesh(sharding.mesh) if is_split else contextlib.nullcontext()


def beside(arrays: Any) -> Sharding:
    """Where arrays go that are used with these: whole, on each of their devices."""
    sharding = sharding_of(arrays)
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
