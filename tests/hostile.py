"""Files as an attacker or a bad disk would make them: mutations of valid ones, for every reader of the package.

A case is a list of edits. Byte edits suit any file; JSON edits put hostile values into a valid tree; header edits do so
in a safetensors file. What a reader makes of a case is either right, by an independent rule, or a UserError.
"""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from nrt_jax.errors import UserError, one_line

Mutation = Callable[[bytes], bytes]

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


def at_most(count: int) -> st.SearchStrategy:
    """Positions in a file or a tree, spread over it whatever its size."""
    return st.integers(0, count)


@st.composite
def byte_edits(draw) -> Mutation:
    """One to three changes of bytes."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["set", "insert", "delete", "repeat", "cut", "token", "token", "swap"]),
                at_most(2**16),
                st.integers(1, 64),
                st.integers(0, 255),
                st.sampled_from(BYTES),
            ),
            min_size=1,
            max_size=3,
        )
    )
    return lambda data: _edit_bytes(data, edits)


def _edit_bytes(data: bytes, edits: list) -> bytes:
    for kind, where, length, value, token in edits:
        i = where * (len(data) + 1) // (2**16 + 1)
        if kind == "set":
            data = data[:i] + bytes([value]) + data[i + 1 :]
        elif kind == "insert":
            data = data[:i] + bytes([value]) * length + data[i:]
        elif kind == "delete":
            data = data[:i] + data[i + length :]
        elif kind == "repeat":
            data = data[: i + length] + data[i:]
        elif kind == "cut":
            data = data[:i]
        elif kind == "token":
            data = data[:i] + token + data[i:]
        else:
            data = data[:i] + data[i : i + length][::-1] + data[i + length :]
    return data


@st.composite
def tree_edits(draw) -> Callable[[Any], Any]:
    """One to three changes of a JSON value: a hostile value somewhere, a key lost, a value under another key."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["replace", "replace", "replace", "delete", "move", "wrap", "add"]),
                at_most(2**16),
                at_most(2**16),
                st.sampled_from(VALUES),
            ),
            min_size=1,
            max_size=3,
        )
    )
    return lambda tree: _edit_tree(copy.deepcopy(tree), edits)


def _edit_tree(tree: Any, edits: list) -> Any:
    for kind, where, other, value in edits:
        places = _places(tree)
        if not places:
            return value
        node, key = places[where % len(places)]
        if kind == "replace":
            node[key] = value
        elif kind == "delete":
            del node[key]
        elif kind == "move":
            source, its = places[other % len(places)]
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


json_edits = tree_edits().map(lambda edit: lambda data: json.dumps(edit(json.loads(data))).encode())
json_lines_edits = st.tuples(tree_edits(), at_most(2**16)).map(lambda case: lambda data: _edit_line(data, *case))


def _edit_line(data: bytes, edit: Callable[[Any], Any], where: int) -> bytes:
    lines = data.splitlines()
    lines[where % len(lines)] = json.dumps(edit(json.loads(lines[where % len(lines)]))).encode()
    return b"\n".join(lines) + b"\n"


@st.composite
def header_edits(draw) -> Mutation:
    """A safetensors file whose header lies: its values, or its length."""
    edit = draw(tree_edits())
    length = draw(st.none() | st.sampled_from([0, 1, 7, 2**20, 10**8, 2**31, 2**63, 2**64 - 1]) | st.integers(0, 4000))
    honest, numbers = draw(st.booleans()), draw(st.lists(st.integers(-2, 600), min_size=3, max_size=3))

    def mutate(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        if honest:  # small lies: offsets and shapes that could be true
            name = sorted(header)[numbers[0] % len(header)]
            spec = header[name]
            if "shape" in spec:
                spec["data_offsets"][numbers[1] % 2] += numbers[2] % 9 - 4
                spec["shape"] = spec["shape"][::-1] if numbers[0] % 2 else spec["shape"]
        else:
            header = edit(header)
        text = json.dumps(header).encode()
        lied = len(text) if length is None else length
        return lied.to_bytes(8, "little") + text + data[8 + size :]

    return mutate


@dataclasses.dataclass(frozen=True)
class Reader:
    """What is attacked.

    Attributes:
        name: In the table of results.
        make: Writes valid input into a folder, once.
        files: Which of its files are mutated, one in each case.
        mutations: How.
        read: Reads the folder and checks what it accepts; AssertionError for a wrong result.
    """

    name: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    mutations: st.SearchStrategy
    read: Callable[[Path], Any]

    def cases(self) -> st.SearchStrategy:
        """(file, mutation) pairs."""
        return st.tuples(st.sampled_from(self.files), self.mutations)


class Target:
    """A reader's valid input in a folder, one file of which is mutated for each case and put back after it."""

    def __init__(self, reader: Reader, folder: Path):
        folder.mkdir()
        reader.make(folder)
        self._reader, self._folder = reader, folder
        self._valid = {name: (folder / name).read_bytes() for name in reader.files}
        reader.read(folder)  # valid input is accepted

    def accepts(self, case: tuple[str, Mutation]) -> bool:
        """Whether the reader takes the case: False for a UserError; any other exception is a failure."""
        name, mutate = case
        path = self._folder / name
        path.write_bytes(mutate(self._valid[name]))
        try:
            self._reader.read(self._folder)
        except UserError as error:
            line = one_line(error)
            assert line.isprintable() and line, line
            return False
        finally:
            path.write_bytes(self._valid[name])
        return True

    def mutated(self, case: tuple[str, Mutation]) -> bytes:
        """The file of a case, to look at."""
        return case[1](self._valid[case[0]])
