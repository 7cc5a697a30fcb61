"""What the devices of a compiled program send each other: read from the text of XLA's optimised module.

    collectives(jitted.lower(...).compile().as_text())

A ring over n devices sends, from each of them, for a collective whose result on a device has S bytes:

    all-reduce          2 S (n - 1) / n     a reduce-scatter, then an all-gather
    all-gather            S (n - 1) / n
    reduce-scatter        S (n - 1)         (what goes in is n times what comes out)
    all-to-all            S (n - 1) / n
    collective-permute    S
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_FREE = ("get-tuple-element", "parameter", "tuple", "constant", "bitcast")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}


@dataclass(frozen=True)
class Collective:
    """One instruction of a program.

    Attributes:
        kind: one of `KINDS`.
        dtypes: of what is sent, such as "bf16".
        result: bytes of the result on a device.
        group: devices that send each other, the first of such groups, numbered along the mesh; none of a permutation.
        pairs: of a permutation, who sends and who is sent to.
        times: that it runs each time the outermost loop goes round, or, outside of it, each time the program runs.
        looped: whether it is in that loop.
        source: the operation of the traced program that it comes from.
    """

    kind: str
    dtypes: str
    result: int
    group: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    times: int
    looped: bool
    source: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends, as by a ring, each time the loop goes round."""
        n, each = len(self.group), self.result * self.times
        if self.pairs:
            return float(each)
        factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0}
        return each * factors.get(self.kind, (n - 1) / n)


def collectives(text: str) -> list[Collective]:
    """Those of a compiled program, `compiled.as_text()`, in its order; one among a single device is left out.

    Of branches all are counted, and an inner loop whose trips are not known in advance counts as one.

    Raises:
        ValueError: on groups of devices written in a form that is not known here.
    """
    computations = dict(_computations(text))
    [entry] = [name for name in computations if name.startswith("ENTRY")]
    found = _walk(entry, computations, 1, False)
    return [one for one in found if len(one.group) > 1 or one.pairs]


def summary(found: list[Collective]) -> list[str]:
    """A line for each kind, type and number of devices: how many instructions, and the bytes sent each round."""
    count, sent = defaultdict[Any, int](int), defaultdict[Any, float](float)
    for one in found:
        among = f"{len(one.pairs)} pairs" if one.pairs else f"{len(one.group)} devices"
        key = (one.kind, one.dtypes, among, one.looped)
        count[key] += one.times
        sent[key] += one.sent
    return [
        f"{count[key]:>5} {key[0]} of {key[1]} over {key[2]}: {sent[key] / 1e6:,.1f} MB" + ("" if key[3] else ", once")
        for key in sorted(count, key=lambda key: -sent[key])
    ]


def kernels(text: str) -> int:
    """How many operations a GPU starts each time the longest loop goes round."""
    computations = dict(_computations(text))
    bodies = [
        name for lines in computations.values() for line in lines for name in re.findall(r"body=%?([\w.-]+)", line)
    ]
    longest = max((computations[name] for name in bodies), key=len, default=[])
    names = [match[1] for line in longest if (match := re.search(r" = .+? ([\w-]+)\(", line))]
    return sum(name not in _FREE and not name.endswith("-done") for name in names)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and instructions of each, the entry's name with ENTRY before it."""
    name, lines = None, []
    for line in text.splitlines():
        if name is None:
            if match := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
                name, lines = (match[1] or "") + match[2], []
        elif line.startswith("}"):
            yield name, lines
            name = None
        else:
            lines.append(line)


def _walk(name: str, computations: dict[str, list[str]], times: int, looped: bool) -> Iterator[Collective]:
    lines = computations.get(name, [])
    if name.startswith("all-reduce-scatter"):  # a TPU's reduce-scatter: a fusion of a sum and a slice of it
        lines = [_scattered(lines)]
    for line in lines:
        if match := re.search(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(", line):
            yield _read(match[2], match[1], bool(match[3]), line, times, looped)
        if " while(" in line:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            inner = times * (int(trips[1]) if looped and trips else 1)
            for called in re.findall(r"(?:body|condition)=%?([\w.-]+)", line):
                yield from _walk(called, computations, inner, True)
        else:
            for names in re.findall(r"(?:calls|to_apply|\w+_computations?)=(\{.*?\}|[^\s,]+)", line):
                for called in re.findall(r"[\w.-]+", names):
                    yield from _walk(called, computations, times, looped)


def _scattered(lines: list[str]) -> str:
    reduce = next(line for line in lines if " all-reduce(" in line)
    type_ = re.sub(r".* = (.+?) [\w-]+\(.*", r"\1", next(line for line in lines if "ROOT " in line))
    return re.sub(r" = .+? all-reduce\(", f" = {type_} reduce-scatter(", reduce)


def _read(kind: str, type_: str, started: bool, line: str, times: int, looped: bool) -> Collective:
    arrays = re.findall(r"\b(pred|bf16|[fcsu]\d+\w*)\[([\d,]*)\]", type_)
    given = len(re.findall(r"%[\w.-]+", line.split(f"{kind}-start(")[-1].split(")")[0])) if started else 0
    if started and kind == "collective-permute":
        arrays = arrays[1:2]  # and two counters
    elif started and len(arrays) == 2 * given:
        arrays = arrays[given:]  # (what goes in, what comes out)
    sizes = [math.prod(map(int, filter(None, shape.split(",")))) * _bits(dtype) // 8 for dtype, shape in arrays]
    dtypes = ", ".join(sorted({dtype for dtype, _ in arrays}))
    source = re.search(r'op_name="([^"]*)"', line)
    pairs = _pairs(line) if kind == "collective-permute" else ()
    group = () if kind == "collective-permute" else _group(line)
    return Collective(kind, dtypes, sum(sizes), group, pairs, times, looped, source[1] if source else "")


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z](\d+)", dtype)
    return int(digits[1]) if digits else 8


def _pairs(line: str) -> tuple[tuple[int, int], ...]:
    match = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    return tuple((int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", match[1] if match else ""))


def _group(line: str) -> tuple[int, ...]:
    """The first of the groups."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?),? ", line + " "):
        return tuple(_iota(match[3]).reshape(int(match[1]), int(match[2]))[0].tolist())
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return tuple(map(int, match[1].split(",")))
    if match := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line):
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
        ids = (_iota(match[2]) if match[2] else np.arange(math.prod(sizes.values()))).reshape(*sizes.values())
        taken: dict[str, Any] = dict.fromkeys(sizes, 0)
        for axis, before, n in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[3]):
            whole = sizes[axis]  # or a part of it: n steps, after an outer part of so many
            step = whole // (int(before) * int(n)) if n else 1
            taken[axis] = slice(0, step * int(n) if n else whole, step)
        return tuple(ids[tuple(taken.values())].reshape(-1).tolist())
    raise ValueError(f"groups of devices in a form that is not known: {line.strip()[:200]}")


def _iota(text: str) -> np.ndarray:
    """The numbers 0, 1, ... laid out as `[2,8]T(1,0)` says: in that shape, its axes then permuted."""
    shape, _, axes = text.partition("T")
    numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return numbers.transpose(_numbers(axes)) if axes else numbers


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
