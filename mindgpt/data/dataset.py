"""MindRecord files as a MindSpore dataset that the training or evaluation loop reads."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mindspore.dataset as ds
import numpy as np
from mindspore import dtype as mstype
from mindspore.mindrecord import FileReader

from mindgpt.config.errors import UserError
from mindgpt.data.mindrecord import find_mindrecord_files, read_header
from mindgpt.io.files import PathLike
from mindgpt.io.processes import available_cores
from mindgpt.runtime.mindspore_errors import data_error_reason

_ROWS_OF_FINGERPRINT = 16
_OLD_NAMES = {"input_mask": "attention_mask"}  # of columns, as early releases of MindFormers wrote them


@dataclass(frozen=True)
class DatasetInfo:
    """The files, columns and size of a data set.

    Attributes:
        files: MindRecord files, in reading order.
        columns: name -> {"type": ..., "shape": ...} as the files declare it; `input_mask` is called `attention_mask`.
        num_rows: rows of all files together.
        row_shapes: name -> shape of that column in the first row.
        metadata: written by mindgpt's tools (`block_length`, `vocab_size`, `text_vocab_size`, `eos_token_id`,
            `vocab_sha256`, `recipe`); empty if the files come from elsewhere, or do not agree.
        old_names: name -> the column's name in the files, if it is another one.
    """

    files: list[str]
    columns: dict[str, dict[str, Any]]
    num_rows: int
    row_shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, Any]
    old_names: dict[str, str] = field(default_factory=dict)

    @property
    def padded_on_right(self) -> bool:
        """Whether rows of tokens are known to have padding only after their last token: those of mindgpt's tools. Of
        other files it is not known; to check it would be to read all their rows."""
        return "recipe" in self.metadata


def inspect(path: PathLike) -> DatasetInfo:
    """Read the headers of a MindRecord file or a folder of them.

    Raises:
        UserError: there is no file, one is broken, the files differ in their columns, or they hold no rows.
    """
    files = find_mindrecord_files(path)
    headers = [read_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        if set(header.columns) != set(headers[0].columns):
            raise UserError(
                f"{files[0]} has the columns {_list(headers[0].columns)}, but {file} has {_list(header.columns)}: "
                "files that are read together need the same columns."
            )
    num_rows = sum(header.num_rows for header in headers)
    if num_rows == 0:
        raise UserError(f"{path} holds no rows.")
    first_file = next(file for file, header in zip(files, headers, strict=True) if header.num_rows)
    notes = [{k: v for k, v in header.metadata.items() if k != "set"} for header in headers]
    renamed = {
        old: new for old, new in _OLD_NAMES.items() if old in headers[0].columns and new not in headers[0].columns
    }
    return DatasetInfo(
        files=files,
        columns={renamed.get(name, name): column for name, column in headers[0].columns.items()},
        num_rows=num_rows,
        row_shapes={renamed.get(name, name): np.shape(value) for name, value in _first_row(first_file).items()},
        metadata=notes[0] if all(note == notes[0] for note in notes) else {},
        old_names={new: old for old, new in renamed.items()},
    )


def _first_row(file: str) -> dict[str, Any]:
    try:
        reader = FileReader(file, num_consumer=1)
        try:
            return next(iter(reader.get_next()))
        finally:
            reader.close()
    except (RuntimeError, StopIteration) as error:
        raise UserError(f"{file} cannot be read: {data_error_reason(error)} Make it again.") from error


def fingerprint(info: DatasetInfo) -> str:
    """A checksum of some of the rows, from the first to the last, to detect other data: eight hexadecimal digits. Paths
    and file names do not matter.

    Raises:
        RuntimeError: a row cannot be read.
    """
    chosen = sorted(
        {number * (info.num_rows - 1) // (_ROWS_OF_FINGERPRINT - 1) for number in range(_ROWS_OF_FINGERPRINT)}
    )
    dataset = ds.MindDataset(info.files, num_parallel_workers=1, sampler=ds.SubsetSampler(chosen))
    checksum = 0
    for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True):
        for column in sorted(row):
            checksum = zlib.crc32(row[column].tobytes(), checksum)
    return f"{checksum:08x}"


def check_row_length(
    info: DatasetInfo, seq_length: int, *, training: bool, columns: Sequence[str] = ("input_ids", "attention_mask")
) -> None:
    """Check that the rows fit the model: seq_length + 1 tokens to train on (the inputs and the targets one position
    later); seq_length or seq_length + 1 to evaluate. Checks the first row; mindgpt writes rows of equal length.

    Raises:
        UserError: they do not fit.
    """
    allowed = (seq_length + 1,) if training else (seq_length, seq_length + 1)
    for column in columns:
        shape = info.row_shapes.get(column)
        if shape is None or shape in [(length,) for length in allowed]:
            continue
        have = f"{shape[0]} tokens" if len(shape) == 1 else f"the shape {shape}"
        raise UserError(
            f"{info.files[0]}: rows of '{column}' have {have}, but {'training' if training else 'evaluation'} with "
            f"seq_length {seq_length} takes {' or '.join(map(str, allowed))}. Make the data again with --max_length "
            f"{allowed[0]}, or set model.model_config.seq_length to {shape[0] - 1 if len(shape) == 1 else '...'}."
        )


def build_dataset(
    path: PathLike | DatasetInfo,
    *,
    batch_size: int,
    columns: Sequence[str] = ("input_ids", "attention_mask"),
    shuffle: bool = False,
    seed: int = 0,
    drop_remainder: bool = True,
    num_shards: int = 1,
    shard_id: int = 0,
    num_samples: int | None = None,
    rows: range | None = None,
    repeat: int = 1,
    num_parallel_workers: int = 1,
    prefetch_size: int = 1,
) -> ds.Dataset:
    """A dataset of batches, each column int32 of shape (batch_size, row length).

    Each epoch has its own order, which depends only on `seed`; `dataset.set_init_step(n)` continues as an uninterrupted
    run would after n batches. MindSpore reads the seed from `mindspore.dataset.config`, which this function sets, when
    iteration starts: one process, one seed.

    Args:
        path: a MindRecord file, a folder of them, or what `inspect` returned.
        batch_size: rows in a batch of one shard.
        columns: columns to read, in this order.
        shuffle: whether the order is random.
        seed: of the order.
        drop_remainder: drop a last batch that is not full.
        num_shards, shard_id: read shard `shard_id` of `num_shards`. The n-th batches of all shards together are the
        n-th
            batch of an unsharded data set with `num_shards` times the batch size. If the last batch is kept and cannot
            be divided, rows from the front are repeated to fill it.
        num_samples: use only the first rows of the data set, so many over all shards; None: all.
        rows: read only these, in their order; None: all.
        repeat: passes over the data that count as one epoch.
        num_parallel_workers: threads for reading; at most the number of cores.
        prefetch_size: batches to prefetch.

    Raises:
        UserError: a column is missing or not of integers, the data set is smaller than one batch, or a value is not
            allowed.
    """
    info = path if isinstance(path, DatasetInfo) else inspect(path)
    _at_least_one(batch_size=batch_size, num_shards=num_shards, repeat=repeat, prefetch_size=prefetch_size)
    _at_least_one(
        num_parallel_workers=num_parallel_workers, **({} if num_samples is None else {"num_samples": num_samples})
    )
    if not 0 <= shard_id < num_shards:
        raise UserError(f"shard_id must be from 0 to num_shards - 1 = {num_shards - 1}; it is {shard_id}.")
    _check_columns(info, columns)
    chosen = (range(info.num_rows) if rows is None else rows)[:num_samples]
    if drop_remainder and len(chosen) < batch_size * num_shards:
        raise UserError(
            f"{info.files[0]}: {len(chosen)} rows are less than one batch of {batch_size} on {num_shards} shard(s) "
            "each, and drop_remainder leaves out batches that are not full: nothing would be read. Lower the batch "
            "size, set drop_remainder to False, or use more data."
        )
    batches = len(chosen) // (batch_size * num_shards)
    ds.config.set_seed(seed)
    workers = max(1, min(num_parallel_workers, available_cores()))
    dataset = ds.MindDataset(
        info.files,
        columns_list=[info.old_names.get(column, column) for column in columns],
        num_parallel_workers=workers,
        sampler=_sampler(
            info.num_rows, chosen, shuffle, num_shards, shard_id, batches * batch_size if drop_remainder else None
        ),
    )
    renamed = [column for column in columns if column in info.old_names]
    if renamed:
        dataset = dataset.rename([info.old_names[column] for column in renamed], renamed)
    for column in columns:
        if info.columns[column]["type"] != "int32":
            to_int32 = ds.transforms.TypeCast(mstype.int32)
            dataset = dataset.map(to_int32, input_columns=[column], num_parallel_workers=workers)
    dataset = dataset.batch(batch_size, drop_remainder=drop_remainder, num_parallel_workers=workers)
    dataset = dataset.project(list(columns))
    if repeat > 1:
        dataset = dataset.repeat(repeat)
    ds.config.set_prefetch_size(prefetch_size)
    return dataset


def _sampler(
    all_rows: int, chosen: range, shuffle: bool, num_shards: int, shard_id: int, rows_of_shard: int | None
) -> ds.Sampler:
    """The sampler of the chosen rows; shard i of n has every n-th row from the i-th on.

    MindDataset's own `num_samples` is not used: with `shuffle`, MindSpore 2.10 then samples each epoch from the rows of
    the epoch before, with repeats (of 10 rows it read 4 different ones, then 3 of those, then 2). Nor is a
    RandomSampler below a DistributedSampler: it would use one order for all epochs.
    """
    in_order = ds.SequentialSampler(chosen.start, len(chosen))
    if num_shards == 1 and not shuffle:
        return in_order
    sampler = ds.DistributedSampler(
        num_shards, shard_id, shuffle=shuffle, num_samples=rows_of_shard if num_shards > 1 else None
    )
    if len(chosen) < all_rows:
        sampler.add_child(in_order)
    return sampler


def _check_columns(info: DatasetInfo, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in info.columns]
    if missing:
        raise UserError(
            f"{info.files[0]} has no column {_list(missing)}; it has {_list(info.columns)}. Correct input_columns, or "
            "make the data again with --data_columns."
        )
    for column in columns:
        kind = info.columns[column]["type"]
        if kind not in ("int32", "int64"):
            raise UserError(f"{info.files[0]}: column '{column}' should hold whole numbers (int32); it is {kind}.")


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1; it is {value}.")


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
