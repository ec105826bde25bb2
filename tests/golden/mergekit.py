"""Records what mergekit makes of small tensors, for tests/test_merging.py, which also asks it where it is installed.

python -m tests.golden.mergekit    writes mergekit.npz beside this file; needs mergekit 0.1.5 or later
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
WEIGHTS, SCALE = (1.0, 0.2, 0.1), 0.7


def models(num: int = 3, size: int = 400, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """A base and models around it, of three scales, in float32."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((4, size // 4)).astype(np.float32)
    deltas = [rng.standard_normal(base.shape) * scale for scale in (0.1, 0.3, 1.0)][:num]
    return base, [(base + delta).astype(np.float32) for delta in deltas]


def pairs(x: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What slerp is asked of: two directions, one direction, and a zero."""
    return [(x[0], x[2]), (x[0], x[0] * 1.5), (x[0] * 0, x[1])]


def answers() -> dict[str, np.ndarray]:
    """mergekit's own, by method and numbers.

    Raises:
        ImportError: It is not installed, or is older than 0.1.5.
    """
    import torch
    from mergekit.merge_methods.base import TensorGroup
    from mergekit.merge_methods.registry import get

    def merge(name, tensors, base_index, **parameters):
        group = TensorGroup.from_tensors([torch.tensor(tensor) for tensor in tensors], base_index=base_index)
        return get(name)([group], parameters=parameters)[0].numpy()

    base, x = models()
    found = {}
    for normalize in (True, False):
        numbers = {"weight": dict(enumerate(WEIGHTS, start=1)), "normalize": normalize, "lambda": SCALE}
        found[f"task {normalize}"] = merge("task_arithmetic", [base, *x], 0, **numbers)
        for density in (1.0, 0.4, 0.1):
            of_all = dict.fromkeys(numbers["weight"], density)
            found[f"ties {normalize} {density}"] = merge("ties", [base, *x], 0, density=of_all, **numbers)
        found[f"linear {normalize}"] = merge("linear", x, None, weight=dict(enumerate(WEIGHTS)), normalize=normalize)
    for t in (0.0, 0.3, 1.0):
        for i, pair in enumerate(pairs(x)):
            found[f"slerp {t} {i}"] = merge("slerp", pair, 0, t=t)
    return found


if __name__ == "__main__":
    base, x = models()
    np.savez_compressed(FILE, base=base, **{f"x{i}": tensor for i, tensor in enumerate(x)}, **answers())
