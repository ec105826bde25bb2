"""When one process of a run ends, the others end too, at once and with one line, instead of waiting for it for ever.

Every process keeps a connection to the first one, which nothing is sent over until the run is over:

    process 1 ----> process 0 <---- process 2      process 1 is killed; its connection is closed by its system;
                                                   process 0 reads that, says so and ends, and then so does process 2

A host that vanishes closes nothing. Then JAX's own heartbeats fail, and JAX ends the process with a message of its own.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

EXIT_CODE = 1
_GOODBYE = b"."
_GRACE = 5.0  # Seconds in which a failed collective turns out to be another process's end.
_SAME_ERROR = 1.0  # Seconds in which an error that all processes have reaches each. JAX aborts the others without 0.

_connections: list[socket.socket] = []
_is_first = False
_is_over = threading.Event()


def begin(host: str, index: int, count: int, share: Callable[[list], list]) -> None:
    """Connects the processes of a run, and watches the connections from a thread.

    Args:
        host: An address of process 0.
        index: The number of this process.
        count: How many there are.
        share: `distributed.share`.
    """
    global _is_first
    _is_first = index == 0
    if _is_first:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as server:
            secret = secrets.token_hex(16)
            share([server.getsockname()[1], secret])
            while len(_connections) < count - 1:
                connection, _ = server.accept()
                connection.settimeout(60)
                with contextlib.suppress(OSError):
                    if connection.recv(len(secret), socket.MSG_WAITALL) == secret.encode():
                        _connections.append(connection)
    else:
        port, secret = share(None)[0]
        _connections.append(socket.create_connection((host, port), timeout=60))
        _connections[0].sendall(secret.encode())
    for connection in _connections:
        connection.settimeout(None)
        threading.Thread(target=_watch, args=(connection,), daemon=True).start()


def _watch(connection: socket.socket) -> None:
    said = b""
    with contextlib.suppress(OSError):
        said = connection.recv(1)
    if said != _GOODBYE and not _is_over.is_set():
        if _is_first:
            time.sleep(_SAME_ERROR)
        _end(EXIT_CODE, "error: another process of this run has ended; start all of them again to resume the run")


@contextlib.contextmanager
def ends_together() -> Iterator[None]:
    """A command: if it fails in one of several processes, that one ends at once, and by that the others.

    JAX waits at exit for the other processes, which may wait for this one.
    """
    try:
        yield
    except SystemExit as end:
        if _connections and end.code:
            if _is_first:
                time.sleep(_SAME_ERROR)
            _end(end.code)
        _say_goodbye()
        raise
    except BaseException:
        if _connections:
            time.sleep(_GRACE)
            traceback.print_exc()
            _end(EXIT_CODE)
        raise
    _say_goodbye()


def _say_goodbye() -> None:
    _is_over.set()
    for connection in _connections:
        with contextlib.suppress(OSError):
            connection.sendall(_GOODBYE)


def _end(code: int, line: str = "") -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if line:
        os.write(2, f"{line}\n".encode())
    os._exit(code)
