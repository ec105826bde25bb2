"""Two processes of four devices against one of eight, with hints, a verifier, formats and KL to a reference.

python -m tests.soak.hosts    some five minutes of one core
"""

import os
import pathlib
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from tests.training import test_hosts


def main() -> None:
    """Raises AssertionError where they differ."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        test_hosts.compare(folder, test_hosts.SHARED | test_hosts.WITH_HINTS | test_hosts.make_inputs(folder))
    print("two processes: the same curve, answers and weights as one")


if __name__ == "__main__":
    main()
