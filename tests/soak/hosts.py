"""Two processes of four devices against one of eight: hints, a verifier, formats, KL; a judge apart; kills and signals.

python -m tests.soak.hosts    some minutes of two cores
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
        inputs = test_hosts.make_inputs(folder)
        (folder / "judged").mkdir()
        test_hosts.compare(folder, test_hosts.SHARED | test_hosts.WITH_HINTS | inputs)
        with_judge = test_hosts.SHARED | test_hosts.WITH_JUDGE | inputs | {"judge.model": inputs["model"]}
        test_hosts.compare(folder / "judged", with_judge)
        print("two processes: the same curve, answers and weights as one")
        test_hosts.kill_stop_and_resume(folder, inputs)
        print("killed, resumed by two, stopped by SIGTERM, finished by one: the curve of a run that never stopped")


if __name__ == "__main__":
    main()
