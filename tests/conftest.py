"""Settings that every test shares: eight virtual CPU devices (most use one), and programs kept between runs."""

import importlib.metadata
import os
import pathlib

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    # The older emitters compile in two thirds of the time. Where XLA does not know a flag, it ends at once.
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the tolerances are those of float32 on a CPU

import hypothesis
import jax
import pytest

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax"

jax.devices()  # They start now: a test that asks for fewer first would leave fewer for the others.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A first example may wait for a compilation; the same examples every time make a failure repeatable.
hypothesis.settings.register_profile("nrt", deadline=None, derandomize=True, max_examples=12)
hypothesis.settings.load_profile("nrt")

MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 20_000  # Linux gives a process 65,530, and XLA ends in a segmentation fault when it gets no more.


#: Minutes long: a worker that began them last would go on alone. (xdist by itself begins with files of many tests.)
LONG = ("test_hosts.py", "test_readme.py")


def pytest_collection_modifyitems(items):
    """Long files come first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Lets go of compiled programs, each of which holds maps of memory, before there are too many of them."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
