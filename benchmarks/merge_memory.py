"""How much memory a merge takes, beside the size S of one model: synthetic models, merged by each method.

    python benchmarks/merge_memory.py --gigabytes 0.2 --dtype bfloat16

Makes a base and three models, sharded, as convert_memory.py does, merges them in processes of their own and prints the
peaks. They are a few times the largest tensor and do not grow with S: run it for two sizes.
"""

import shutil
import tempfile
from pathlib import Path

import safetensors
import tyro
from convert_memory import Config, run, synthetic

METHODS = ("linear", "task", "slerp", "ties", "dare", "dare_ties")


def largest_tensor(folder: Path) -> int:
    """Bytes of the largest tensor of a folder."""
    largest = 0
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="numpy") as file:
            largest = max(largest, *(file.get_tensor(name).nbytes for name in file.keys()))  # noqa: SIM118 - no dict
    return largest


def main(config: Config) -> None:
    """Prints one line a method."""
    root = Path(tempfile.mkdtemp(dir=config.folder or None))
    try:
        for seed, name in enumerate(("base", "a", "b", "c")):
            synthetic(config, root / name, seed)
        size = sum(file.stat().st_size for file in (root / "a").glob("*.safetensors"))
        largest = largest_tensor(root / "a")
        idle, _ = run("-c", "import launch.merge, transformers")
        print(f"S = {size / 1e9:.2f} GB of {config.dtype}, its largest tensor {largest / 1e9:.3f} GB")
        print(f"an idle process takes {idle / 1e9:.2f} GB")
        for method in METHODS:
            models = [str(root / name) for name in ("ab" if method == "slerp" else "abc")]
            numbers = ("--base", str(root / "base"), "--density", "0.2", "--output", str(root / "merged"))
            peak, seconds = run("-m", "launch.merge", "--method", method, "--models", *models, *numbers)
            above = (peak - idle) / largest
            print(f"{method:9} peak {peak / 1e9:.2f} GB = idle + {above:.1f} largest tensors, {seconds:.0f} s")
            shutil.rmtree(root / "merged")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__.splitlines()[0]))
