"""Files as an attacker or a bad disk would make them: mutations of valid ones, for every reader of the package.

A case is a number, the seed of one to three edits. Byte edits suit any file; JSON edits put hostile values into a valid
tree; header edits do so in a safetensors file. What a reader makes of a case is right, by an independent rule, or a
UserError.
"""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrt_jax.errors import UserError, one_line

Mutation = Callable[[random.Random, bytes], bytes]

BYTES = (
    b"\x00",
    b"\xff",
    b"\xff" * 8,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b'"',
    b"{",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"-1",
    b"1e999999",
    b"NaN",
    b"null",
    b"\\ud800",
    b"\\u0000",
    b"../",
    b"A" * 70000,
)


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


VALUES = (
    *(None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**63, 2**64, 10**9, 10**18, -(10**9), 10**400, 10**4000),
    *(0.0, -0.0, 0.5, -1.5, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
    *("", " ", "\0", "a\0b", "\ud800", "\ufeff", "\u2028", "\x1b[2J", "../..", "/etc/passwd", "F64", "9" * 5000),
    *("x" * 100_000, "os.system", "{{ 7 }}", "all-linear", "llama", "linear", "yarn", "llama3"),
    *([], {}, [[]], [None], [0, 0], [-8, 0], [0, 2**63], {"": None}, {"a": {"b": [None]}}, [2**40, 2**40]),
    *(_nested(80), _nested(200)),
)


def edit_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to three changes of bytes."""
    for _ in range(rng.randint(1, 3)):
        i, length, value = rng.randint(0, len(data)), rng.randint(1, 64), bytes([rng.randrange(256)])
        data = rng.choice(
            (
                lambda data, i=i, value=value: data[:i] + value + data[i + 1 :],
                lambda data, i=i, length=length, value=value: data[:i] + value * length + data[i:],
                lambda data, i=i, length=length: data[:i] + data[i + length :],
                lambda data, i=i, length=length: data[: i + length] + data[i:],
                lambda data, i=i: data[:i],
                lambda data, i=i: data[:i] + rng.choice(BYTES) + data[i:],
                lambda data, i=i, length=length: data[:i] + data[i : i + length][::-1] + data[i + length :],
            )
        )(data)
    return data


def edit_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with other values."""
    return json.dumps(_edit_tree(rng, json.loads(data))).encode()


def edit_json_line(rng: random.Random, data: bytes) -> bytes:
    """A JSONL file with other values in a line."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = edit_json(rng, lines[i])
    return b"\n".join(lines) + b"\n"


def edit_header(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header lies: its values, or its length."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.5:  # small lies: offsets and shapes that could be true
        tensor = header[rng.choice([name for name in sorted(header) if name != "__metadata__"])]
        tensor["data_offsets"][rng.randrange(2)] += rng.randint(-4, 4)
        tensor["shape"] = tensor["shape"][:: rng.choice([1, -1])]
    else:
        header = _edit_tree(rng, header)
    text = json.dumps(header).encode()
    lie = rng.choice([0, 1, 7, 2**20, 10**8, 2**31, 2**63, 2**64 - 1, rng.randint(0, 4000)])
    return rng.choice([len(text), len(text), lie]).to_bytes(8, "little") + text + data[8 + size :]


def edit_tensors(rng: random.Random, data: bytes) -> bytes:
    """A whole safetensors file of other tensors: lost, under another name, of another shape, dtype or value."""
    size = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    tensors = {name: (x["dtype"], x["shape"], values[slice(*x["data_offsets"])]) for name, x in header.items()}
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(tensors))
        dtype, shape, its = tensors[name]
        other, width = rng.choice((("F16", 2), ("BF16", 2), ("I32", 4), ("U8", 1), ("F8_E4M3", 1), ("F64", 8)))
        new = rng.choice(
            (
                None,
                (dtype, [], its[:4]),
                (dtype, [len(its) // 4], its),
                (dtype, shape[::-1], its),
                (dtype, [0, *shape[1:]], b""),
                (other, shape, (its * 8)[: len(its) // 4 * width]),
                (dtype, shape, its[:-1] + b"\x41"),
            )
        )
        if rng.random() < 0.3:
            tensors[rng.choice([*sorted(tensors), f"{name}.0"])] = tensors.pop(name)
        elif new is not None:
            tensors[name] = new
        elif len(tensors) > 1:
            del tensors[name]
    header, values = {}, b""
    for name, (dtype, shape, its) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(values), len(values) + len(its)]}
        values += its
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + values


def edit_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file that lies, or a true one of other tensors."""
    return rng.choice((edit_header, edit_tensors))(rng, data)


def or_bytes(mutate: Mutation) -> Mutation:
    """A third of the cases change bytes instead."""
    return lambda rng, data: (edit_bytes if rng.random() < 1 / 3 else mutate)(rng, data)


def _edit_tree(rng: random.Random, tree: Any) -> Any:
    """One to three changes of a JSON value: a hostile value somewhere, a key lost, a value under another key."""
    for _ in range(rng.randint(1, 3)):
        value = copy.deepcopy(rng.choice(VALUES))
        places = _places(tree)
        if not places:
            return value
        node, key = rng.choice(places)
        kind = rng.choice(("replace", "replace", "replace", "delete", "move", "wrap", "add"))
        if kind == "replace":
            node[key] = value
        elif kind == "delete":
            del node[key]
        elif kind == "move":
            source, its = rng.choice(places)
            node[key] = copy.deepcopy(source[its])
        elif kind == "wrap":
            node[key] = [node[key]]
        elif isinstance(node, dict):
            node[str(value)[:20]] = value
        else:
            node.append(value)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            found += [(node, key) for key in keys]
            waiting += [node[key] for key in keys]
    return found


@dataclasses.dataclass(frozen=True)
class Reader:
    """What is attacked.

    Attributes:
        name: In the table of results.
        make: Writes valid input into a folder, once.
        files: Which of its files are mutated, one in each case.
        mutate: How.
        read: Reads the folder and checks what it accepts; AssertionError for a wrong result.
    """

    name: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    mutate: Mutation
    read: Callable[[Path], Any]


class Target:
    """A reader's valid input in a folder, one file of which is mutated for each case and put back after it."""

    def __init__(self, reader: Reader, folder: Path):
        folder.mkdir()
        reader.make(folder)
        self._reader, self._folder = reader, folder
        self._valid = {name: (folder / name).read_bytes() for name in reader.files}
        reader.read(folder)  # valid input is accepted

    def mutated(self, case: int) -> tuple[str, bytes]:
        """A case: which file, and what it becomes."""
        rng = random.Random(case)
        name = rng.choice(self._reader.files)
        return name, self._reader.mutate(rng, self._valid[name])

    def accepts(self, case: int) -> bool:
        """Whether the reader takes the case: False for a UserError; any other exception is a failure."""
        name, data = self.mutated(case)
        path = self._folder / name
        path.write_bytes(data)
        try:
            self._reader.read(self._folder)
        except UserError as error:
            line = one_line(error)
            assert line.isprintable() and line, line
            return False
        finally:
            path.write_bytes(self._valid[name])
        return True
