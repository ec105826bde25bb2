"""Checksums of a folder's files: arrays that are read are those that were written, or they are refused.

Orbax notices a file that is missing or cut short; a flipped bit in an array's data it reads without a word.
"""

import concurrent.futures
import errno
import hashlib
import json
from pathlib import Path

from nrt_jax import json_file

FILE = "checksums.json"


def write(folder: str | Path) -> None:
    """Writes the SHA-256 of every file below `folder` into `folder/checksums.json`."""
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    names = [path.relative_to(folder).as_posix() for path in paths]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        digests = dict(zip(names, threads.map(_digest, paths), strict=True))
    (folder / FILE).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def find_damage(folder: str | Path) -> str | None:
    """What is wrong with a folder since `write`, in a few words that name a file; None if nothing is.

    Files that came later do not count.
    """
    folder = Path(folder)
    try:
        digests = json_file.read(folder / FILE)
        if not isinstance(digests, dict):
            raise ValueError(f"is {type(digests).__name__}, no object")
        names = [folder / name for name in digests]
        with concurrent.futures.ThreadPoolExecutor() as threads:
            found = list(threads.map(_digest, names))
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    except ValueError:
        return f"{folder / FILE}: is no list of checksums"
    changed = [name for name, digest, now in zip(names, digests.values(), found, strict=True) if digest != now]
    return f"{changed[0]}: has changed since it was written" if changed else None


def _digest(path: Path) -> str:
    if path.exists() and not path.is_file():  # A pipe would wait for a writer.
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
