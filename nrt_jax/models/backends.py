"""One attention, by the device's kernel: cuDNN on GPU, Pallas splash attention on TPU, plain XLA everywhere else.

A kernel reads one array of keys a row. So the segments are laid side by side, those that a group shares once for each
of its K rows, and padded to whole tiles:

    slots   [ X of the prompt | S of the trace | T own | padding ]    of each of P K rows
    query t                                       ^ sees what stands at or before its own slot, or by position

`attention.attend` says what is computed and is what the kernels are tested against.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from nrt_jax.errors import UserError
from nrt_jax.models import attention
from nrt_jax.models.attention import SAVED, KVCache
from nrt_jax.parallel import num_shards, spec_in_use

Backend = Literal["auto", "xla", "cudnn", "splash"]
TILE = 128  # A kernel's lengths are multiples of this; fewer queries (scoring, decoding) are left to XLA.
MOST_UNUSED = 2  # Queries of the prompt, computed and dropped, that cuDNN may spend on each of the tokens at hand.


def resolve(backend: Backend) -> Backend:
    """The kernel that `auto` stands for on this process's devices; any other name stands for itself.

    Compiling ahead of time for a device that is not here needs the name.
    """
    if backend != "auto":
        return backend
    if jax.default_backend() == "gpu":
        return "cudnn" if _has_flash(jax.local_devices()[0]) else "xla"
    return "splash" if jax.default_backend() == "tpu" else "xla"


def check(backend: Backend, *, field: str) -> None:
    """Raises UserError if programs that this process runs cannot use the backend; `field` names it to the user."""
    platform = {"cudnn": "gpu", "splash": "tpu"}.get(backend)
    found = jax.default_backend()
    if platform not in (None, found) or (backend == "cudnn" and not _has_flash(jax.local_devices()[0])):
        device = "a TPU" if platform == "tpu" else "an NVIDIA GPU of compute capability 8.0 or above"
        raise UserError(f"{field}: {backend!r} needs {device} and JAX runs on {found}; expected 'auto' or 'xla'")


def _has_flash(device: jax.Device) -> bool:
    """NVIDIA's Ampere and later; AMD's GPUs give no number."""
    capability = str(getattr(device, "compute_capability", ""))
    return capability.replace(".", "").isdigit() and float(capability) >= 8


def attend(
    q: jax.Array, positions: jax.Array, segments: Sequence[KVCache], window: int | None, backend: Backend
) -> jax.Array:
    """`attention.attend` by a kernel, or by XLA where the kernel cannot express it or would not be worth it.

    Kernels mask by slot, XLA by position. The two agree where of two tokens the later one stands at a higher slot, as
    in all of this framework's calls, and where the last segment is the queries' own. A sliding window shorter than the
    slots is left to XLA: padding may stand between two tokens, so that distances in slots are none in positions. So are
    int8 caches, and few queries. cuDNN takes bfloat16 and float16, heads of up to 128 in steps of 8, and no more than
    one cache, which is the prompt's and not much longer than the queries.

    Args:
        q: [P, K, T, H, d].
        positions: [P, K, T].
        segments: Caches of one layer.
        window: Number of last positions that a query sees.
        backend: See `resolve`.
    """
    backend, length = resolve(backend), q.shape[2]
    num_slots = sum(segment.num_slots for segment in segments)
    is_plain = (window is None or window >= num_slots) and all(segment.k_scale is None for segment in segments)
    if length >= TILE and is_plain:
        if backend == "cudnn" and _fits_cudnn(q, segments):
            return on_mesh(lambda q, _, segments: cudnn(q, segments), q, positions, segments)
        if backend == "splash":
            return on_mesh(splash, q, positions, segments)
    return attention.attend(q, positions, segments, window)


def on_mesh(kernel: Callable[..., jax.Array], q: jax.Array, positions: jax.Array, segments: Sequence[KVCache]):
    """A kernel of one device, on each device's prompts and heads of the mesh in use: the compiler cannot split it.

    Args:
        kernel: Of q, positions and segments.
        q: [P, K, T, H, d].
        positions: [P, K, T].
        segments: Caches of one layer.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(q, positions, segments)
    num_kv_heads = segments[0].k.shape[1]
    heads, of_kv = num_shards("heads", q.shape[3]), num_shards("kv_heads", num_kv_heads)
    heads_axis, kv_axis = "heads", "kv_heads"
    if heads != of_kv:
        if heads % num_kv_heads == 0:  # Each device's queries have one head of keys, which several devices hold.
            repeats = heads // num_kv_heads
            segments = [s.replace(k=jnp.repeat(s.k, repeats, 1), v=jnp.repeat(s.v, repeats, 1)) for s in segments]
        else:
            heads_axis = kv_axis = None
    of_q = spec_in_use(("prompts", None, None, heads_axis), q.shape)

    def of_segment(segment):
        of_values = spec_in_use(("prompts", kv_axis), segment.k.shape)
        return KVCache(k=of_values, v=of_values, positions=spec_in_use(("prompts",), segment.positions.shape))

    specs = (of_q, spec_in_use(("prompts",), positions.shape), [of_segment(segment) for segment in segments])
    return jax.shard_map(kernel, in_specs=specs, out_specs=of_q, check_vma=False)(q, positions, list(segments))


def _fits_cudnn(q: jax.Array, segments: Sequence[KVCache]) -> bool:
    *context, own = segments
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128
        and len(context) <= 1
        and all(cache.k.shape[2] == 1 and cache.num_slots <= MOST_UNUSED * own.num_slots for cache in context)
    )


def cudnn(q: jax.Array, segments: Sequence[KVCache], implementation: Literal["cudnn", "xla"] = "cudnn") -> jax.Array:
    """By a kernel that knows neither segments nor an offset between queries and slots.

        slots      x_1 x_2  -   -  z_1 z_2  -        moved together     x_1 x_2 z_1 z_2  -   -   -
        queries                    z_1 z_2  -                            .   .  z_1 z_2  -   .   .

    Moved together, plain causal attention is theirs: padding comes after all that a token sees. The queries of the
    prompt are zeros, whose outputs are dropped.

    Args:
        q: [P, K, T, H, d].
        segments: Perhaps the prompt's cache, and the queries' own; tokens come before padding in both.
        implementation: `xla` is for tests.
    """
    (num_prompts, group_size, length), tail = q.shape[:3], q.shape[3:]
    k, v, slots = _side_by_side(q, segments)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    q = q.reshape(-1, length, *tail)
    num_prompt_slots = sum(segment.num_slots for segment in segments[:-1])
    start = jnp.sum(slots[:, :num_prompt_slots] >= 0, axis=1)
    write = jax.vmap(lambda x, own, start: jax.lax.dynamic_update_slice_in_dim(x, own, start, axis=0))
    if num_prompt_slots:
        k, v = (write(x, x[:, num_prompt_slots:], start) for x in (k, v))
    q = write(jnp.zeros((*k.shape[:2], *tail), q.dtype), q, start)
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    mixed = jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, length, axis=0))(mixed, start)
    return mixed.reshape(num_prompts, group_size, length, *tail)


def splash(q: jax.Array, positions: jax.Array, segments: Sequence[KVCache], *, interpret: bool = False) -> jax.Array:
    """By Pallas splash attention: causal by slots, and padding sees padding alone.

    Every query must see something, or its softmax would divide by zero, and the gradients of all be NaN. A token sees
    itself, padding too, and the queries that fill up the last tile are like the first one.

    Args:
        q: [P, K, T, H, d].
        positions: [P, K, T].
        segments: Caches of one layer, the queries' own last.
        interpret: Run the kernel's program on any device, slowly, for tests.
    """
    (num_prompts, group_size, length), (num_heads, head_dim) = q.shape[:3], q.shape[3:]
    k, v, slots = _side_by_side(q, segments)
    q = jnp.swapaxes(q.reshape(-1, length, num_heads, head_dim), 1, 2) * head_dim**-0.5
    q = _pad(q, axis=2)
    is_token = (positions >= 0).astype(jnp.int32).reshape(-1, length)
    ids = splash_attention.SegmentIds(q=_pad(is_token, axis=1, like_first=True), kv=(slots >= 0).astype(jnp.int32))
    offset = sum(segment.num_slots for segment in segments[:-1])
    kernel = _splash_kernel(num_heads, q.shape[2], k.shape[2], offset, interpret)
    mixed = jnp.swapaxes(jax.vmap(kernel)(q, k, v, ids)[:, :, :length], 1, 2)
    return mixed.reshape(num_prompts, group_size, length, num_heads, head_dim)


def _splash_kernel(num_heads: int, length: int, num_slots: int, offset: int, interpret: bool):
    """A kernel that takes q [H, T, d], k and v [G, S, d] and segment ids."""
    mask = splash_attention.CausalMask((length, num_slots), offset=offset)
    block_q, block_kv = (max(b for b in (128, 256, 512) if n % b == 0) for n in (length, num_slots))
    sizes = {f"block_{name}": block_kv if name.startswith("kv") else block_q for name in _BLOCKS}
    return splash_attention.make_splash_mha_single_device(
        mask=splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_attention.BlockSizes(**sizes),
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )


_BLOCKS = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")


def _side_by_side(q: jax.Array, segments: Sequence[KVCache]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys and values [P K, G, S, d] in q's dtype and positions [P K, S] of all slots, S a multiple of `TILE`."""
    num_prompts, group_size = q.shape[:2]

    def rows(x: jax.Array, axis: int) -> jax.Array:
        """K at `axis`, 1 or K, to K rows that follow P."""
        x = jnp.moveaxis(x, axis, 1)
        x = jnp.broadcast_to(x, (num_prompts, group_size, *x.shape[2:]))
        return x.reshape(-1, *x.shape[2:])

    k, v = (
        jnp.concatenate([rows(getattr(s, name), 2).astype(q.dtype) for s in segments], axis=2) for name in ("k", "v")
    )
    slots = jnp.concatenate([rows(s.positions, 1) for s in segments], axis=1)
    return _pad(k, axis=2), _pad(v, axis=2), _pad(slots + 1, axis=1) - 1  # Empty slots are at -1.


def _pad(x: jax.Array, axis: int, *, like_first: bool = False) -> jax.Array:
    """Fills `axis` up to a multiple of `TILE` with zeros, or with the first element."""
    missing = -x.shape[axis] % TILE
    if like_first:
        first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
        return jnp.concatenate([x, jnp.repeat(first, missing, axis=axis)], axis=axis)
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
