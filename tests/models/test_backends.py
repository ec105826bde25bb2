"""Which kernel serves a call of attention, and that the kernels' programs compile for devices that are not here."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from nrt_jax.errors import UserError
from nrt_jax.models import KVCache, backends
from tests.models import tpu_programs

P, K, G, H = 2, 2, 2, 4


def abstract(dtype=jnp.bfloat16, length=256, head_dim=64, context=((1, 256),), scale=None):
    """q and segments, of caches of so many rows and slots each, as shapes."""
    shape = jax.ShapeDtypeStruct

    def cache(rows, num_slots, scale=None):
        kv = shape((P, G, rows, num_slots, head_dim), dtype)
        return KVCache(k=kv, v=kv, positions=shape((P, rows, num_slots), jnp.int32), k_scale=scale, v_scale=scale)

    q = shape((P, K, length, H, head_dim), dtype)
    return q, [*(cache(*sizes, scale) for sizes in context), cache(K, length)]


@pytest.mark.parametrize(
    ("case", "window", "served_by"),
    [
        ({}, None, {"splash", "cudnn"}),
        ({"context": ()}, None, {"splash", "cudnn"}),
        ({}, 512, {"splash", "cudnn"}),
        ({}, 511, set()),  # one slot short of seeing everything
        ({"length": 127}, None, set()),  # scoring: short against its caches
        ({"context": ((K, 256),)}, None, {"splash"}),
        ({"context": ((1, 256), (1, 256))}, None, {"splash"}),
        ({"scale": jax.ShapeDtypeStruct((P, G, 1, 256), jnp.float32)}, None, set()),
        ({"dtype": jnp.float32}, None, {"splash"}),
        ({"head_dim": 12}, None, {"splash"}),
        ({"head_dim": 256}, None, {"splash"}),
        ({"context": ((1, 1024),)}, None, {"splash"}),
    ],
)
def test_kernels_leave_to_xla_what_they_cannot_express(monkeypatch, case, window, served_by):
    served = set()
    for name in ("splash", "cudnn"):
        monkeypatch.setattr(backends, name, lambda q, *_, name=name: served.add(name))
    monkeypatch.setattr(backends.attention, "attend", lambda q, *_: None)
    q, segments = abstract(**case)
    for backend in ("auto", "xla", "cudnn", "splash"):  # The tests run on a CPU, where `auto` is XLA.
        backends.attend(q, segments[-1].positions, segments, window, backend)
    assert served == served_by


def test_auto_is_the_kernel_of_the_platform(monkeypatch):
    assert backends.resolve("auto") == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert backends.resolve("auto") == "splash"
    assert backends.resolve("xla") == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, expected in (("9.0", "cudnn"), ("8.0", "cudnn"), ("7.5", "xla"), ("gfx942", "xla")):
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert backends.resolve("auto") == expected


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_a_kernel_of_another_platform_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=rf"^attention: '{name}' needs .* JAX runs on cpu; expected 'auto' or 'xla'$"):
        backends.check(name, field="attention")
    backends.check("auto", field="attention")


@pytest.mark.parametrize("context", [(), ((1, 256),)])
def test_cudnn_takes_these_shapes(monkeypatch, context):
    """As far as a machine without a GPU can tell: the calls for it, forward and backward, are made."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, segments = abstract(context=context)

    def run(q, segments):
        mixed = backends.attend(q, segments[-1].positions, segments, None, "cudnn")
        return jnp.sum(mixed.astype(jnp.float32))

    program = jax.jit(jax.grad(run)).trace(q, segments).lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("__cudnn$fmhaSoftmax") == program.count("__cudnn$fmhaSoftmaxBackward") + 1 == 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, of the extra `tpu`, is not installed")
def test_programs_with_splash_compile_for_a_tpu():
    """Ahead of time, without a TPU: training's gradient, prefill, and a chunk of decoding."""
    command = [sys.executable, "-m", tpu_programs.__name__, str(length := 512), "splash"]
    quiet = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"gradient splash", "prefill splash", "decode"}
    scores = tpu_programs.K * tpu_programs.MODEL.num_heads * length * 2 * length
    assert found["gradient splash"]["temporaries"] < 2 * scores  # As many bytes as they take in bfloat16.
