"""Names of LoRA's factors in a checkpoint, and the orientation of the matrices that they update. No MindSpore here.

A linear layer at path `p` keeps `p.weight` and `p.bias` and gains `p.mindpet_delta_lora_a` [r, in] and
`p.mindpet_delta_lora_b` [out, r]: the names and shapes of MindFormers 1.5 and its library mindpet.
"""

import re
from collections.abc import Iterable, Mapping

FACTOR_A, FACTOR_B = "mindpet_delta_lora_a", "mindpet_delta_lora_b"
SCORE = "score.weight"  # a classification head is new, so it is always trained

_FACTOR = re.compile(rf"(.+)\.(?:{FACTOR_A}|{FACTOR_B})")
_STORED_OUT_IN = re.compile(r".*\.attention\.dense[123]")
_LAYER = re.compile(r"\.blocks\.(\d+)\.")


def is_factor(name: str) -> bool:
    """Whether a parameter is a factor A or B, by its name."""
    return _FACTOR.fullmatch(name) is not None


def linears_with_factors(names: Iterable[str]) -> list[str]:
    """The paths of the linear layers whose factors are among `names`, in their order."""
    return list(dict.fromkeys(match[1] for name in names if (match := _FACTOR.fullmatch(name))))


def stored_out_in(linear: str) -> bool:
    """Whether the weight of the linear layer at this path is stored [out, in] (query, key, value), else [in, out]."""
    return _STORED_OUT_IN.fullmatch(linear) is not None


def by_layers(paths: Iterable[str]) -> dict[tuple[int, ...], list[str]]:
    """Names of layers within a block, grouped by the blocks that have them.

    {(0, 1): ["attention.dense1", "output.mapping"]} for the same two layers of blocks 0 and 1. Paths outside the blocks
    are grouped under ().
    """
    blocks: dict[str, list[int]] = {}
    for path in paths:
        match = _LAYER.search(path)
        blocks.setdefault(path[match.end() :] if match else path, []).extend([int(match[1])] if match else [])
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in blocks.items():
        groups.setdefault(tuple(sorted(numbers)), []).append(name)
    return groups


def shown_paths(paths: Iterable[str]) -> str:
    """Many paths in short form: `backbone.blocks.0-11.attention.dense1, ...`."""
    words = []
    for numbers, names in by_layers(paths).items():
        prefix = f"backbone.blocks.{_ranges(numbers)}." if numbers else ""
        words += [prefix + name for name in names]
    return ", ".join(words)


def pattern_of(paths: Iterable[str]) -> str:
    """A `target_modules` that matches exactly these linear layers."""
    parts = []
    for numbers, names in by_layers(paths).items():
        inside = "|".join(re.escape(name) for name in names)
        parts.append(rf"backbone\.blocks\.({'|'.join(map(str, numbers))})\.({inside})" if numbers else f"({inside})")
    return "|".join(parts)


def _ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> "0-2,5" """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def check_pairs(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Problems of factors: one of a pair is missing, or their ranks differ. shapes: name -> shape."""
    problems = []
    for linear in linears_with_factors(shapes):
        a, b = shapes.get(f"{linear}.{FACTOR_A}"), shapes.get(f"{linear}.{FACTOR_B}")
        if a is None or b is None:
            problems.append(
                f"{linear} has {FACTOR_B if a is None else FACTOR_A} and no {FACTOR_A if a is None else FACTOR_B}"
            )
        elif len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            problems.append(f"{linear}: factors of shapes {list(a)} and {list(b)} are not [r, in] and [out, r]")
    return problems
