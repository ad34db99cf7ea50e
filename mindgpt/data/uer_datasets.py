"""Reads the `.pt` data sets that UER-py's and TencentPretrain's `preprocess.py --data_processor lm` writes.

Such a file is a sequence of pickles, one for each window of seq_length + 1 tokens. n is seq_length for a full window,
else the number of its tokens. The layout changed over the years:

    ((ids, padding_count), [n])     since May 2022
    ((ids, padding_count), n)       April and May 2022
    (padded_ids, n)                 before

A pickle can run commands when it is read. Here it cannot: one that names anything but numbers, lists and tuples is
refused before anything in it is looked up.
"""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import BlocksSummary, check_max_length, metadata_of, progress_bar, write_rows
from mindgpt.data.document_tokens import document_format
from mindgpt.data.packing import Rows, in_batches
from mindgpt.io.files import PathLike, open_to_read
from mindgpt.tokenizers.tokenizer import BaseTokenizer

RECIPE = "uer dataset"
SUFFIX = ".pt"
_PADDING = 0  # [PAD] in every vocabulary of UER-py
_LONGEST = 1 << 20  # tokens; a longer window is a broken file
_TORCH_FILE = b"PK\x03\x04"


class _NotNumbersError(Exception):
    """A pickle names a class or a function."""


class _NumbersOnly(pickle.Unpickler):
    """Reads pickles of numbers, lists and tuples."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _NotNumbersError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NotNumbersError("an object outside the file")


def write_uer_datasets(
    files: Sequence[Path],
    tokenizer: BaseTokenizer,
    output_file: PathLike,
    *,
    max_length: int | None = None,
    padding_target: bool = False,
    columns: Sequence[str] = ("input_ids", "attention_mask"),
    num_splits: int = 1,
    overwrite: bool = False,
    total_bytes: int | None = None,
    show_progress: bool = True,
) -> BlocksSummary:
    """Write the windows of UER-py's data sets as MindRecord rows, one each, in constant memory.

    Args:
        files: the data sets, whose windows have one length.
        tokenizer: with the vocabulary that made them.
        max_length: their length, seq_length + 1; None: as in the files.
        output_file, padding_target, columns, num_splits, overwrite, total_bytes, show_progress: as of
            `mindgpt.data.blocks.write_blocks`.

    Raises:
        UserError: a file is not such a data set, its windows have another length, its ids are not in the vocabulary,
            or files cannot be read or written.
    """
    lengths = {file: window_length(file) for file in files}
    length = lengths[files[0]] if max_length is None else max_length
    check_max_length(length)
    for file, found in lengths.items():
        if found != length:
            raise UserError(
                f"{file} holds windows of {found} tokens (seq_length {found - 1}), not of {length}, and they are "
                f"not split again. Set --max_length to {found}, or leave it out; another length is made from the text."
            )
    summary = BlocksSummary()
    layout = document_format(tokenizer)
    with progress_bar(total_bytes, show_progress) as progress:
        windows = (ids for file in files for ids in read_windows(file, progress))
        rows = in_batches(windows, length, layout.padding)
        write_rows(
            _checked(rows, summary, tokenizer, files, num_splits),
            output_file,
            summary,
            metadata=metadata_of(tokenizer, RECIPE, length),
            padding_target=padding_target,
            columns=columns,
            num_splits=num_splits,
            overwrite=overwrite,
            text_bytes=total_bytes,
        )
    return summary


def _checked(
    batches_of_rows: Iterator[Rows],
    summary: BlocksSummary,
    tokenizer: BaseTokenizer,
    files: Sequence[Path],
    num_splits: int,
) -> Iterator[Rows]:
    """The rows; counts their tokens. Raises a UserError for an id outside the vocabulary, and for too few rows."""
    size = tokenizer.vocab_size
    for rows in batches_of_rows:
        highest = int(rows.ids.max())
        if highest >= size:
            raise UserError(
                f"{files[0]}: holds the token id {highest}, but the tokenizer has {size} tokens. Name the tokenizer "
                "whose vocabulary the data was made with, by --tokenizer_type."
            )
        summary.tokens += int(np.sum(rows.lengths))
        yield rows
    if summary.blocks < num_splits:
        raise UserError(f"{summary.blocks} rows are too few for {num_splits} file(s). Lower num_splits.")


def window_length(file: PathLike) -> int:
    """The tokens of the first window, padding included.

    Raises:
        UserError: as `read_windows`.
    """
    with open_to_read(file) as opened:
        value = _next_value(opened, file, 1)
        ids, padding = _window(value, file, 1)
        return len(ids) + padding


def read_windows(file: PathLike, progress: tqdm | None = None) -> Iterator[list[int]]:
    """The ids of each window, without padding.

    Args:
        file: see the module docstring.
        progress: counts the bytes read.

    Raises:
        UserError: the file is empty or not such a data set, its windows differ in length, or a pickle in it holds
            something else than numbers (with the number of the window).
    """
    with open_to_read(file) as opened:
        number, length, done = 0, None, 0
        while number == 0 or opened.peek(1):
            number += 1
            ids, padding = _window(_next_value(opened, file, number), file, number)
            length = length or len(ids) + padding
            if len(ids) + padding != length:
                raise _broken(file, number, f"has {len(ids) + padding} tokens, and those before have {length}")
            yield ids
            if progress is not None:
                place = opened.tell()
                progress.update(place - done)
                done = place


def _next_value(opened: IO[bytes], file: PathLike, number: int) -> Any:
    """The value of the next pickle."""
    start = opened.peek(len(_TORCH_FILE))
    if number == 1 and not start:
        raise UserError(f"{file} is empty (0 bytes).")
    if number == 1 and start.startswith(_TORCH_FILE):
        raise UserError(
            f"{file} is not a data set but a file of torch.save, as model weights are. A data set is what UER-py's "
            "preprocess.py writes."
        )
    try:
        return _NumbersOnly(opened).load()
    except _NotNumbersError as error:
        raise UserError(
            f"{file}: window {number} holds {error}, where UER-py's data sets hold numbers only. Nothing of the file "
            "was executed. Do not use it unless you trust who made it; make the data again from the text."
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise _broken(file, number, "is truncated, or no pickle") from error


def _window(value: Any, file: PathLike, number: int) -> tuple[list[int], int]:
    """The ids of a window without padding, and how many padding tokens follow.

    Raises:
        UserError: the value is no window of the lm processor.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        raise _broken(file, number, "is not of preprocess.py's --data_processor lm")
    source, count = value
    count = count[0] if isinstance(count, list) and len(count) == 1 else count
    if isinstance(source, tuple) and len(source) == 2:
        ids, padding = source
    else:
        ids, padding = source, None
    if not isinstance(ids, list) or not ids or set(map(type, ids)) != {int} or type(count) is not int or min(ids) < 0:
        raise _broken(file, number, "is not of preprocess.py's --data_processor lm")
    if padding is None:
        # n tells a full window from one that lacks a single token only if the last id is looked at.
        real = len(ids) if count == len(ids) - 1 and ids[-1] != _PADDING else count
        ids, padding = ids[:real], len(ids) - real
    if type(padding) is not int or not 0 <= padding <= _LONGEST or not ids or count != len(ids) - (padding == 0):
        raise _broken(file, number, f"counts {count} tokens, but holds {len(ids)} and {padding} of padding")
    return ids, padding


def _broken(file: PathLike, number: int, problem: str) -> UserError:
    return UserError(f"{file}: window {number} {problem}. Make the data again from the text.")
