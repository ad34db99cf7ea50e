"""What a conversion of weights prints, and its progress."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindgpt.checkpoints.conversion_source import OpenedWeights
from mindgpt.checkpoints.layer_norm_conversion import NormChange
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, tensors


def say_notes(notes: list[str], change: NormChange) -> None:
    """Print the notes, once everything is checked."""
    for note in [*notes, *([change.note] if change.note else [])]:
        print(f"note: {note}")


def say_skipped(opened: OpenedWeights) -> None:
    """Print what was left out. Of a checkpoint that is much, and all of it is training's."""
    if opened.kind != "checkpoint":
        for rule, count in sorted(Counter[str](getattr(opened.source, "skipped", {}).values()).items()):
            print(f"skipped: {count} x {rule}")


def with_progress(source: TensorSource, dtype: str | None, target: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of `source` as `dtype`, or as they are, with a progress bar of the bytes written to `target`."""
    total = sum(TensorInfo(info.shape, dtype or info.dtype).nbytes for info in source.entries.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, file=sys.stderr) as bar:
        for name, array in tensors(source, dtype):
            yield name, array
            bar.update(array.nbytes)


def summary(view: TensorSource, sizes: dict[str, int], dtype: str | None) -> str:
    count = sum(TensorInfo(info.shape, "int8").nbytes for info in view.entries.values())
    stored = {info.dtype for info in view.entries.values()}
    dtype = dtype or ", ".join(sorted(stored))
    was = f" (was {', '.join(sorted(stored))})" if stored != {dtype} else ""
    return f"{len(view.entries)} tensors, {count:,} parameters, {sizes['L']} layers, {dtype}{was}"
