"""How much memory a conversion takes, beside the size S of the checkpoint: from-hf and to-hf of a synthetic one.

    python benchmarks/convert_memory.py --gigabytes 2.2 --dtype bfloat16

Makes a sharded checkpoint of random weights with the proportions of a Llama, converts it to Orbax and back in processes
of their own, compares every byte of the tensors, and prints the peaks. The target is 1.3 S.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import tyro

from nrt_jax import hf
from nrt_jax.hf.table import parts_of, sizes_of, tensors_of
from nrt_jax.hf.weights import DTYPES, Tensor, write_sharded
from nrt_jax.models import Model, ModelConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        gigabytes: S, size of the checkpoint in 10^9 bytes.
        dtype: Of its tensors.
        shard_gigabytes: Size of its shards, in 10^9 bytes.
        folder: Where to put 3 S bytes of files; empty for a temporary folder.
    """

    gigabytes: float = 2.2
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    shard_gigabytes: float = 0.5
    folder: str = ""


def synthetic(config: Config, folder: Path, seed: int = 0) -> None:
    """Writes a checkpoint: as many Llama-like layers of width 2048 as fit into its size."""
    itemsize, shape = np.dtype(DTYPES[config.dtype]).itemsize, {}
    for layers in range(1, 1000):
        shape = ModelConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=7168,
            num_layers=layers,
            num_heads=16,
            num_kv_heads=4,
            head_dim=128,
        )
        if shape.num_parameters * itemsize >= config.gigabytes * 1e9:
            break
    rng, sizes = np.random.default_rng(seed), sizes_of(shape)
    tensors = [
        Tensor(
            name,
            spec.shape(sizes),
            DTYPES[config.dtype],
            lambda spec=spec: rng.standard_normal(spec.shape(sizes), np.float32),
        )
        for spec in tensors_of(shape)
        for name, _ in parts_of(spec, sizes)
    ]
    folder.mkdir()
    hf.write_description(folder, Model(shape))
    write_sharded(folder, tensors, int(config.shard_gigabytes * 1e9))


def run(*command: str) -> tuple[float, float]:
    """Runs a command; its peak resident memory in bytes, and seconds."""
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, *command], env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024.0, time.time() - started


def tensors(folder: Path) -> dict[str, bytes]:
    """A digest of each tensor of a folder."""
    import hashlib

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                found[name] = hashlib.sha256(np.ascontiguousarray(file.get_tensor(name)).view(np.uint8).data).digest()
    return found


def main(config: Config) -> None:
    """Prints one line a conversion."""
    root = Path(tempfile.mkdtemp(dir=config.folder or None))
    try:
        synthetic(config, root / "hf")
        size = sum(file.stat().st_size for file in (root / "hf").glob("*.safetensors"))
        idle, _ = run("-c", "import launch.convert, jax; jax.devices()")
        print(f"S = {size / 1e9:.2f} GB of {config.dtype}; an idle process takes {idle / 1e9:.2f} GB")
        for direction, source, target in (("from-hf", "hf", "orbax"), ("to-hf", "orbax", "again")):
            peak, seconds = run("-m", "launch.convert", direction, str(root / source), str(root / target))
            print(f"{direction:8} peak {peak / 1e9:.2f} GB = {peak / size:.2f} S, {seconds:.0f} s")
        same = tensors(root / "hf") == tensors(root / "again")
        print("every tensor is bit-identical after the round trip" if same else "THE ROUND TRIP CHANGED A TENSOR")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__.splitlines()[0]))
