"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_OPERATION = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(-start)?\((.*)")  # the result may be a tuple
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """All operations of one kind and group size.

    Attributes:
      kind: such as "all-reduce".
      group: devices that take part in one.
      count: how often it stands in the program; in the body of a loop, once.
      bytes: their results, in all, on one device (of a reduce-scatter, what goes in).
    """

    kind: str
    group: int
    count: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that leave a device when each is done in a ring, which no algorithm betters in bandwidth."""
        turns = {"all-reduce": 2.0, "collective-permute": math.inf}.get(self.kind, 1.0)
        return self.bytes if turns == math.inf else turns * (self.group - 1) / self.group * self.bytes


def collectives(hlo: str, devices: int) -> tuple[Collective, ...]:
    """The collectives of a program's text, `compiled.as_text()`; starts of asynchronous ones count, their ends do not.

    Args:
      hlo: the text.
      devices: of the program, the group where an operation names none.

    >>> line = "%r = f32[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add"
    >>> collectives(line, 4)
    (Collective(kind='all-reduce', group=2, count=1, bytes=128),)
    """
    sizes_of: dict[tuple[str, int], list[int]] = {}
    for line in hlo.splitlines():
        operation = _OPERATION.search(line)
        if operation:
            result, kind, start, rest = operation.groups()
            group = _group_size(rest, devices)
            sizes_of.setdefault((kind, group), []).append(_payload(result, kind, bool(start), group))
    return tuple(Collective(*key, len(sizes), sum(sizes)) for key, sizes in sorted(sizes_of.items()))


def _payload(result: str, kind: str, start: bool, group: int) -> int:
    """Bytes of the result alone: the start of an asynchronous operation gives its operands too, before them."""
    sizes = [_size(dtype, shape) for dtype, shape in _ARRAY.findall(result)]
    if start and kind == "collective-permute":
        sizes = sizes[1:2]
    elif start and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes) * (group if kind == "reduce-scatter" else 1)


def _size(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # pyright: ignore[reportOptionalSubscript]
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def _group_size(attributes: str, devices: int) -> int:
    """Of replica_groups={{0,1},{2,3}}, [2,4]<=[8] (2 groups of 4) or mesh['data'=4,'fsdp'=2] {'fsdp'}."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return devices
