"""Statistics of a graph that MindSpore has compiled: collectives, matrix products, memory kept for the backward pass.

They are read from the text that MindSpore dumps after the last pass of its front end (`*_validate_*.ir`). A block is
one function that is called several times, so operations are counted through the calls, from the entry. Of the two
branches of a condition, the one with more work is counted (an update that happens, not one that is skipped).
"""

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DUMP_ENVIRONMENT = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": "validate"}
"""With these and `MS_DEV_SAVE_GRAPHS_PATH`, MindSpore dumps the text of each compiled graph after the last pass."""

COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter", "AlltoAll", "Broadcast", "Send", "Receive")
_BYTES = {"Float64": 8, "Int64": 8, "UInt64": 8, "Float32": 4, "Int32": 4, "UInt32": 4, "Bool": 1, "Int8": 1}
_BYTES |= {"UInt8": 1, "Float16": 2, "BFloat16": 2, "Int16": 2, "UInt16": 2}

_ENTRY = re.compile(r"# IR entry: @(\S+)")
_SUBGRAPH = re.compile(r"subgraph @([^(\s]+)\(")
_OPERATION = re.compile(r"\s+(%\d+)\([^=]*?\) = (?:PrimFunc_)?(\w+)\((.*)")
_CALL = re.compile(r"\s+%\d+\([^=]*?\) = call @([^(\s]+)\(")
_CALL_OF_VALUE = re.compile(r"\s+%\d+\([^=]*?\) = \S+?\[(@.+?)\]\(")
_CARDS = re.compile(r"(?:group_rank_ids|rank_list): \(([\d, ]+)\)")
_OTHER_CARD = re.compile(r"(?:dst|src)_global_rank: I64\((\d+)\)")
_GRADIENT_NAMES = ("irror", "reduce_gradient")  # in names of MindSpore, and of train/step.py
_OTHER_NAMES = ("all_reduce", "reduce_loss")  # in train/global_norm.py and train/step.py
_WEIGHT = re.compile(r'mirror_user_id: "([^"]+)"')
_INSTANCE = re.compile(r"\{instance name: (\w+)\}")
_PARAMETER = re.compile(r"%para\d+_(\S+): (<Ref\[.*)")
_TENSOR = re.compile(r"<(Ref\[)?Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
        kind: one of `COLLECTIVES`.
        purpose: "gradients" (of replicated weights), "weights" (gathering shards), "stages" (between pipeline stages),
            "activations" (of a sharded model, and their gradients), or "other" (norm, loss).
        cards: the ranks that take part; empty: all. For Send and Receive, the peer.
        bytes: of the whole tensor: before a ReduceScatter, after an AllGather.
    """

    kind: str
    purpose: str
    cards: tuple[int, ...]
    bytes: int


class GraphTensor(NamedTuple):
    """Type and shape of a value in a graph's text. `is_weight`: a parameter, not a result."""

    dtype: str
    shape: tuple[int, ...]
    is_weight: bool

    @property
    def bytes(self) -> int:
        """The size in memory."""
        return math.prod(self.shape) * _BYTES[self.dtype]


@dataclass
class _Subgraph:
    """One function of the text: its own operations, and its calls."""

    collectives: Counter[Collective] = field(default_factory=Counter)
    reduced: dict[str, int] = field(default_factory=dict)  # weight -> bytes of its gradient, where MindSpore names it
    operations: int = 0
    flops: int = 0
    kept_bytes: int = 0
    loaded: set[str] = field(default_factory=set)  # parameters that are read, not copied
    calls: list[tuple[str, ...]] = field(default_factory=list)  # each to one function, or to one of several branches


class CompiledGraph:
    """A compiled graph, read from the text at `path`.

    Attributes:
        parameters: every parameter that the graph reads or writes, as this rank's shard.

    Raises:
        ValueError: the text is in another format than that of MindSpore 2.9 and 2.10.
    """

    def __init__(self, path: str | Path):
        self.parameters: dict[str, GraphTensor] = {}
        self._functions: dict[str, _Subgraph] = {}
        self._entry = ""
        self._read(Path(path))
        if self._entry not in self._functions:
            raise ValueError(
                f"{path} is not the text of a graph: it has no entry among {len(self._functions)} functions"
            )

    def collectives(self, within: str = "") -> Counter[Collective]:
        """How often each collective runs when the graph runs once.

        Args:
            within: count only functions whose name contains this, such as "Block_construct".
        """
        total: Counter[Collective] = Counter()
        for name, times in self._times.items():
            if within in name:
                for collective, count in self._functions[name].collectives.items():
                    total[collective] += count * times
        return total

    @property
    def product_flops(self) -> int:
        """Floating-point operations of all matrix products, a multiplication and an addition counted as two.

        An attention kernel counts as the two products of plain attention in the forward pass and the four in the
        backward pass; what it recomputes is not counted.
        """
        return sum(self._functions[name].flops * times for name, times in self._times.items())

    @property
    def reduced_gradients(self) -> dict[str, int]:
        """Name of a weight -> bytes of its gradient that are summed over ranks, for those that MindSpore names."""
        return {name: size for function in self._times for name, size in self._functions[function].reduced.items()}

    def kept_bytes(self, within: str) -> int:
        """Bytes of activations that a function keeps for its backward pass, without parameters.

        Args:
            within: part of the function's name, such as "Block_construct"; of several, the largest value counts.
        """
        return max((self._functions[name].kept_bytes for name in self._times if within in name), default=0)

    @functools.cached_property
    def _times(self) -> Counter[str]:
        """How often each function runs when the entry does."""
        return self._below(self._entry, {})

    def _below(self, name: str, known: dict[str, Counter[str]]) -> Counter[str]:
        if name not in known:
            times = Counter({name: 1})
            for branches in self._functions[name].calls:
                times += max((self._below(branch, known) for branch in branches), key=self._work)
            known[name] = times
        return known[name]

    def _work(self, times: Counter[str]) -> tuple[int, int]:
        parts = [(self._functions[name], count) for name, count in times.items()]
        return sum(part.flops * n for part, n in parts), sum(part.operations * n for part, n in parts)

    def _read(self, path: Path) -> None:
        part, operation = _Subgraph(), None
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.lstrip().startswith("#"):
                    if not self._entry and (match := _ENTRY.match(line)):
                        self._entry = match[1]
                elif match := _PARAMETER.match(line):
                    self.parameters[match[1]] = _tensors(match[2])[0]
                elif match := _SUBGRAPH.match(line):
                    part = self._functions.setdefault(match[1], _Subgraph())
                elif match := _CALL.match(line):
                    part.calls.append((match[1],))
                elif match := _CALL_OF_VALUE.match(line):
                    part.calls.append(tuple(_branches(match[1])))
                elif match := _OPERATION.match(line):
                    operation = match.groups()
                    part.operations += 1
                elif operation and line.lstrip().startswith(": ("):
                    _add(part, *operation, line)
                    operation = None


def _branches(text: str) -> list[str]:
    """The functions that a call of a value may mean: `Partial(@a)`, `@@a`, `FuncUnion(Partial(@a), Partial(@b))`."""
    names = re.findall(r"@([^@(),\s]+)", text)
    return [name for name in names if name not in ("Partial", "FuncUnion")]


def _add(part: _Subgraph, result: str, kind: str, rest: str, types: str) -> None:
    """Add an operation to a function. types: `: (<inputs>) -> (<outputs>)`"""
    if kind not in (*COLLECTIVES, "Partial", "Load") and "MatMul" not in kind and "FlashAttention" not in kind:
        return
    before, _, after = types.partition(") -> (")
    inputs, outputs = _tensors(before), _tensors(after)
    if kind in COLLECTIVES:
        size = max(tensor.bytes for tensor in inputs + outputs)
        purpose = _purpose(kind, rest)
        part.collectives[Collective(kind, purpose, _cards(rest), size)] += 1
        if purpose == "gradients" and (match := _WEIGHT.search(rest)):
            part.reduced[match[1]] = size
    elif kind == "Load":
        part.loaded.add(result)
    elif kind == "Partial" and rest.startswith("@") and "◂" in rest.split(",")[0]:  # the mark of a backward pass
        part.kept_bytes += _kept(part, rest, before)
    elif kind != "Partial":
        part.flops += _product_flops(kind, rest, inputs, outputs)


def _kept(part: _Subgraph, arguments: str, types: str) -> int:
    """Bytes that a backward pass gets, without weights, which are recognised by type, by name, or as loaded."""
    total = 0
    for argument, of in zip(_split(arguments), _split(types.split(": (", 1)[1]), strict=False):
        is_weight = argument in part.loaded or (argument.startswith("%para") and "." in argument)
        total += 0 if is_weight else sum(tensor.bytes for tensor in _tensors(of) if not tensor.is_weight)
    return total


def _split(text: str) -> list[str]:
    """Split at commas outside brackets, up to a closing bracket that was not opened in `text`."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        if letter in "([{<":
            depth += 1
        elif letter in ")]}>":
            depth -= 1
        if depth < 0 or (letter == "," and depth == 0):
            parts.append(text[start:place].strip())
            start = place + 1
        if depth < 0:
            return parts
    return [*parts, text[start:].strip()]


def _tensors(text: str) -> list[GraphTensor]:
    return [
        GraphTensor(dtype, tuple(int(size) for size in shape.split(",") if size.strip()), bool(ref))
        for ref, dtype, shape in _TENSOR.findall(text)
    ]


def _cards(rest: str) -> tuple[int, ...]:
    if other := _OTHER_CARD.search(rest):
        return (int(other[1]),)
    match = _CARDS.search(rest)
    return tuple(int(card) for card in match[1].split(",") if card.strip()) if match else ()


def _purpose(kind: str, rest: str) -> str:
    if kind in ("Send", "Receive"):
        return "stages"
    match = _INSTANCE.search(rest)
    name = match[1] if match else ""
    if "parallel_optimizer" in name:
        return "gradients" if kind != "AllGather" else "weights"
    if any(part in name for part in _GRADIENT_NAMES):
        return "gradients"
    own = (
        name in _OTHER_NAMES and "forward_node_name" not in rest
    )  # some of MindSpore's backward pass has the same names
    return "other" if own else "activations"


def _product_flops(kind: str, rest: str, inputs: list[GraphTensor], outputs: list[GraphTensor]) -> int:
    if kind.startswith("FlashAttention"):
        batch, heads, tokens, size = inputs[0].shape
        forward = 4 * batch * heads * tokens * inputs[1].shape[2] * size
        return 2 * forward if kind.endswith("Grad") else forward
    arguments = rest.split(") {")[0]
    transposed = re.search(r"Bool\((\d)\), Bool\((\d)\)", arguments)
    if transposed is None or not outputs:
        raise ValueError(f"a matrix product in an unknown format: {kind}({rest[:200]}")
    inner = inputs[0].shape[-2 if transposed[1] == "1" else -1]
    return 2 * math.prod(outputs[0].shape) * inner
