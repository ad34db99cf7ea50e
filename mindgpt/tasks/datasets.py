"""From a dataset section to a MindSpore dataset that fits the model."""

import contextlib
from collections.abc import Iterator

import numpy as np
from mindspore import dataset as ds

from mindgpt.config.data import DatasetSection
from mindgpt.config.errors import UserError
from mindgpt.config.run import RunConfig
from mindgpt.data.dataset import DatasetInfo, build_dataset, check_row_length, inspect
from mindgpt.data.mindrecord import reason_of

_ROWS_LOOKED_AT = 256


def training_data(config: RunConfig) -> tuple[ds.Dataset, DatasetInfo]:
    """The batches of a step, of `batch_size` x `gradient_accumulation_steps` rows of seq_length + 1 tokens, and what
    the data set is made of.

    Raises:
        UserError: no data set is named, or it does not fit the model.
    """
    runner = config.runner_config
    rows = runner.batch_size * runner.gradient_accumulation_steps
    info = _inspected(config, config.train_dataset, "train", training=True)
    return _build(config, config.train_dataset, info, rows, drop_remainder=_must_drop(config)), info


def evaluation_data(config: RunConfig) -> tuple[ds.Dataset, DatasetInfo]:
    """The batches of an evaluation, of `batch_size` rows, and what the data set is made of.

    Raises:
        UserError: as `training_data`.
    """
    section = config.eval_dataset
    info = _inspected(config, section, "eval", training=False)
    dataset = _build(config, section, info, config.runner_config.batch_size, drop_remainder=section.drop_remainder)
    return dataset, info


@contextlib.contextmanager
def reading(info: DatasetInfo) -> Iterator[None]:
    """For the block that goes through a data set: rows that turn out to be broken end in a `UserError`.

    Only the first row is looked at beforehand; looking at all would take as long as an epoch of reading.
    """
    try:
        yield
    except RuntimeError as error:
        if "dataset pipeline" not in str(error):  # MindSpore's words for an error while reading
            raise
        named = info.files[0] if len(info.files) == 1 else f"{info.files[0]} or one of the {len(info.files)} with it"
        raise UserError(f"{named}: reading stopped: {reason_of(error).rstrip('.')}. Make the data again.") from error


def _must_drop(config: RunConfig) -> bool:
    """A step of several micro-batches needs all its rows; otherwise the section decides."""
    return config.train_dataset.drop_remainder or config.runner_config.gradient_accumulation_steps > 1


def _inspected(config: RunConfig, section: DatasetSection, name: str, training: bool) -> DatasetInfo:
    if not section.data_loader.dataset_dir:
        raise UserError(
            f"{name}_dataset.data_loader.dataset_dir: no data set is named; give a MindRecord file or a folder of them "
            f"with --{name}_dataset_dir"
        )
    info = inspect(section.data_loader.dataset_dir)
    lengths = [column for column in section.input_columns if column in info.columns]
    check_row_length(info, config.model.config.seq_length, training=training, columns=lengths)
    _check_vocabulary(config.model.config.vocab_size, info)
    return info


def _build(
    config: RunConfig, section: DatasetSection, info: DatasetInfo, batch_size: int, drop_remainder: bool
) -> ds.Dataset:
    columns = _in_the_models_order(section.input_columns)
    return build_dataset(
        info,
        batch_size=batch_size,
        columns=columns,
        shuffle=section.data_loader.shuffle,
        seed=config.seed,
        drop_remainder=drop_remainder,
        num_samples=section.num_samples,
        repeat=section.repeat,
        num_parallel_workers=section.num_parallel_workers,
        prefetch_size=section.prefetch_size,
    )


def _in_the_models_order(columns: list[str]) -> list[str]:
    """The columns as the model takes them, by position.

    Raises:
        UserError: a column the model does not know, or none to stand before one it takes later.
    """
    known = ["input_ids", "attention_mask", "labels"]
    ordered = [column for column in known if column in columns]
    if sorted(ordered) != sorted(columns) or ordered != known[: len(ordered)]:
        raise UserError(
            f"input_columns: must be ['input_ids'], ['input_ids', 'attention_mask'] or {known}, not {columns}"
        )
    return ordered


def _check_vocabulary(vocab_size: int, info: DatasetInfo) -> None:
    """Whether the tokenizer the data was made with fits the embedding table.

    Data that mindgpt's tools wrote tell their vocabulary; of other data the first rows are looked at.
    """
    needed = info.metadata.get("vocab_size")
    source = "was made with a tokenizer"
    if needed is None:
        needed, source = 1 + _highest_id(info), "holds token ids"
    if needed > vocab_size:
        raise UserError(
            f"{info.files[0]} {source} of {needed} tokens, but model.model_config.vocab_size is {vocab_size}. Set it "
            f"to {needed}, or make the data again with the tokenizer of this model."
        )


def _highest_id(info: DatasetInfo) -> int:
    """The highest token id in the first rows.

    Raises:
        UserError: these rows are of different lengths, or hold what is no token id.
    """
    dataset = build_dataset(info, batch_size=1, columns=["input_ids"], num_samples=min(info.num_rows, _ROWS_LOOKED_AT))
    with reading(info):
        rows = [batch[0] for (batch,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise UserError(f"{info.files[0]}: rows have {lengths[0]} to {lengths[-1]} tokens; they must be of one length.")
    lowest = min(int(np.min(row)) for row in rows)
    if lowest < 0:
        raise UserError(f"{info.files[0]}: 'input_ids' holds {lowest}, which is no token id. Make the data again.")
    return max(int(np.max(row)) for row in rows)
