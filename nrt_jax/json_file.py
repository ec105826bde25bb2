"""JSON files that others made: descriptions of models, adapters and runs, read within bounds.

Python's parser takes any size and raises RecursionError, no ValueError, for deep nesting; what it lets through may be
too deep to print or to walk. Here whatever is wrong is a ValueError, and what is returned is small and shallow.
"""

import json
from pathlib import Path
from typing import Any

#: A config.json has kilobytes, the index of a checkpoint of thousands of tensors a few megabytes.
MAX_BYTES = 2**24
MAX_DEPTH = 100


def read(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        ValueError: It is no regular file, no UTF-8, no JSON, larger than MAX_BYTES or deeper than MAX_DEPTH.
    """
    path.stat()  # FileNotFoundError
    if not path.is_file():  # to open a pipe would wait for a writer
        raise ValueError("is no regular file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES:,} bytes")
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels") from error
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError if lists and objects stand deeper in each other than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [node for nodes in inner for node in nodes]
        if not level:
            return
    raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
