"""From a dataset section to a MindSpore dataset that fits the model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from mindspore import dataset as ds

from mindgpt.config.data_sections import DatasetSection
from mindgpt.config.errors import UserError
from mindgpt.config.layout import rows_of_step
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy
from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.data.dataset import DatasetInfo, build_dataset, check_row_length, inspect
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_modules import use_flash_kernel
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.runtime.collectives import data_parallel_ranks, strategy
from mindgpt.runtime.mindspore_errors import data_error_reason, is_reading_error
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.checks import data_folder

_ROWS_LOOKED_AT = 256


def rows_a_step(config: RunConfig) -> int:
    """Rows of a step on all processes together."""
    if strategy() is Strategy.SEMI_AUTO:
        return rows_of_step(config)
    return config.runner_config.batch_size * config.runner_config.gradient_accumulation_steps * data_parallel_ranks()


def training_data(config: RunConfig) -> tuple[ds.Dataset, DatasetInfo]:
    """The batches of a step, of `batch_size` x `gradient_accumulation_steps` rows of seq_length + 1 tokens, and what
    the data set is made of. Data-parallel processes have batches of their own; ranks of a sharded model all read the
    whole batch.

    Raises:
        UserError: no data set is named, or it does not fit the model.
    """
    ranks = data_parallel_ranks()
    info = _inspected(config, config.train_dataset, "train", training=True)
    dataset = _build(
        config,
        config.train_dataset,
        info,
        batch_size=rows_a_step(config) // ranks,
        shuffle=config.train_dataset.data_loader.shuffle,
        drop_remainder=must_drop(config),
        num_shards=ranks,
        shard_id=rank() if ranks > 1 else 0,
    )
    return dataset, info


def evaluation_data(config: RunConfig) -> tuple[ds.Dataset | None, DatasetInfo]:
    """The batches of an evaluation, of `batch_size` rows, and what the data set is made of.

    Each data-parallel process has a run of consecutive batches of those that one process would have, in rank order;
    None: there are fewer batches than processes, and this one has none.

    Raises:
        UserError: as `training_data`.
    """
    section, size, ranks = config.eval_dataset, config.runner_config.batch_size, data_parallel_ranks()
    info = _inspected(config, section, "eval", training=False)
    rows, shuffle = None, section.data_loader.shuffle
    total = min(info.num_rows, section.num_samples or info.num_rows)
    batches = total // size if section.drop_remainder else -(-total // size)
    if ranks > 1 and batches:
        first, end = (number * batches // ranks for number in (rank(), rank() + 1))
        if first == end:
            return None, info
        rows, shuffle = range(first * size, min(end * size, total)), False
    dataset = _build(
        config, section, info, batch_size=size, shuffle=shuffle, drop_remainder=section.drop_remainder, rows=rows
    )
    return dataset, info


@contextlib.contextmanager
def reading(info: DatasetInfo) -> Iterator[None]:
    """Within the block, a row that cannot be read raises a `UserError`.

    Only the first row is checked beforehand; checking all would take as long as an epoch of reading.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_reading_error(error):
            raise
        named = info.files[0] if len(info.files) == 1 else f"{info.files[0]} or one of the {len(info.files)} with it"
        reason = data_error_reason(error).rstrip(".")
        raise UserError(f"{named}: reading stopped: {reason}. Make the data again.") from error


def skip_padding_mask(model: PretrainedCell, *infos: DatasetInfo) -> None:
    """Let a new language model with flash attention do without padding masks if all its data is padded on the right.

    It then attends by one small causal mask, however long the rows are. On CPU nothing changes.
    """
    if not isinstance(model, GPT2LMHeadModel) or not use_flash_kernel(model.config):
        return
    unknown = [info.files[0] for info in infos if not info.padded_on_right]
    model.padded_on_right = not unknown
    if unknown:
        say(
            f"note: {unknown[0]} is not of mindgpt's tools, so padding may be anywhere in its rows, and attention "
            "takes a mask of seq_length x seq_length for each. If no row is padded, set input_columns: [input_ids]"
        )


def must_drop(config: RunConfig) -> bool:
    """Whether a training leaves out a last batch that is not full; also with `drop_remainder: False`."""
    accumulates = config.runner_config.gradient_accumulation_steps > 1
    return config.train_dataset.drop_remainder or strategy() is Strategy.SEMI_AUTO or accumulates


def _inspected(config: RunConfig, section: DatasetSection, name: str, training: bool) -> DatasetInfo:
    info = inspect(data_folder(section, name))
    lengths = [column for column in _columns(section, info) if column in info.columns]
    if "labels" in info.columns and "labels" not in lengths:
        say(
            f"note: {info.files[0]} has 'labels', and {name}_dataset.input_columns leaves them out: every token counts "
            "in the loss, prompts too"
        )
    if "labels" in lengths and info.row_shapes["labels"] in ((), (1,)):
        raise UserError(
            f"{info.files[0]}: 'labels' is one number a row, as for classification (trainer.type: "
            "TextClassificationTrainer); a language model's labels are as many as the tokens of the row."
        )
    check_row_length(info, config.model.config.seq_length, training=training, columns=lengths)
    check_vocabulary(config.model.config.token_count, info)
    _check_ends_of_documents(config.model.config, info)
    if "labels" in lengths and "vocab_size" not in info.metadata:
        _check_labels(config.model.config.token_count, info)
    return info


def _build(config: RunConfig, section: DatasetSection, info: DatasetInfo, **options: Any) -> ds.Dataset:
    """`build_dataset` with the settings of the section and further `options`."""
    return build_dataset(
        info,
        columns=_columns(section, info),
        seed=config.seed,
        num_samples=section.num_samples,
        repeat=section.repeat,
        num_parallel_workers=section.num_parallel_workers,
        prefetch_size=section.prefetch_size,
        **options,
    )


def _columns(section: DatasetSection, info: DatasetInfo) -> list[str]:
    """The columns to read. If the configuration names none, `labels` is read where the data has it: without it a model
    would be trained on the prompts of instruction data, too."""
    if section.input_columns is not None:
        return _in_the_models_order(section.input_columns)
    return ["input_ids", "attention_mask", *(["labels"] if "labels" in info.columns else [])]


def _in_the_models_order(columns: list[str]) -> list[str]:
    """The columns in the order of the model's arguments.

    Raises:
        UserError: a column that the model does not know, or a gap before a later argument.
    """
    known = ["input_ids", "attention_mask", "labels"]
    ordered = [column for column in known if column in columns]
    if sorted(ordered) != sorted(columns) or ordered != known[: len(ordered)]:
        raise UserError(
            f"input_columns: must be ['input_ids'], ['input_ids', 'attention_mask'] or {known}, not {columns}"
        )
    return ordered


def check_vocabulary(vocab_size: int, info: DatasetInfo, ids: np.ndarray | None = None) -> None:
    """Check that the tokenizer of the data fits the embedding table.

    Metadata of data that mindgpt's tools wrote has the vocabulary size; else `ids` are checked, or the first rows.

    Raises:
        UserError: it does not fit.
    """
    needed = info.metadata.get("vocab_size")
    source = "was made with a tokenizer"
    if needed is not None and info.metadata.get("text_vocab_size", needed) <= vocab_size < needed:
        # Only padding tokens are outside the table; check all rows for a text that spells them.
        needed, source = 1 + (_highest_id(info, info.num_rows) if ids is None else int(ids.max())), "holds token ids"
    if needed is None:
        needed, source = 1 + (_highest_id(info) if ids is None else int(ids.max())), "holds token ids"
    if needed > vocab_size:
        raise UserError(
            f"{info.files[0]} {source} of {needed} tokens, but model.model_config.vocab_size is {vocab_size}. Set it "
            f"to {needed}, or make the data again with the tokenizer of this model."
        )


def _highest_id(info: DatasetInfo, count: int = _ROWS_LOOKED_AT) -> int:
    """The highest token id in the first `count` rows.

    Raises:
        UserError: these rows have different lengths, or hold something else than token ids.
    """
    lengths, lowest, highest = set(), 0, 0
    for row in _first_rows(info, "input_ids", count):
        lengths.add(len(row))
        lowest, highest = min(lowest, int(np.min(row))), max(highest, int(np.max(row)))
    if len(lengths) > 1:
        raise UserError(
            f"{info.files[0]}: rows have {min(lengths)} to {max(lengths)} tokens; they must be of one length."
        )
    if lowest < 0:
        raise UserError(f"{info.files[0]}: 'input_ids' holds {lowest}, which is no token id. Make the data again.")
    return highest


def _check_ends_of_documents(network: GPT2Section, info: DatasetInfo) -> None:
    """Check that documents end with the token by which `reset_attention_mask` and `reset_position_ids` tell them apart.

    Raises:
        UserError: the metadata says that they end with none, or with another.
    """
    asked = [name for name in ("reset_attention_mask", "reset_position_ids") if getattr(network, name)]
    if not asked:
        return
    if info.metadata.get("special_tokens") == "none":
        raise UserError(
            f"{info.files[0]}: no token ends its documents (it was made with special_tokens none), so {asked[0]} "
            f"cannot tell them apart. Make the data again with such a token, or set {asked[0]} to False."
        )
    end, (wanted,) = info.metadata.get("eos_token_id"), network.eos_token_ids
    if end is not None and end != wanted:
        raise UserError(
            f"{info.files[0]}: documents end with token {end}, but model.model_config.eos_token_id is {wanted}, by "
            f"which {asked[0]} tells them apart. Set it to {end}."
        )


def _check_labels(vocab_size: int, info: DatasetInfo) -> None:
    """Check that the labels in the first rows are token ids, or `IGNORED_LABEL`.

    Raises:
        UserError: they are not.
    """
    labels = np.concatenate(list(_first_rows(info, "labels")))
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= vocab_size))]
    if wrong.size:
        raise UserError(
            f"{info.files[0]}: 'labels' holds {wrong[0]}; a label is a token id below vocab_size {vocab_size}, or "
            f"{IGNORED_LABEL} where nothing is to be learnt. Make the data again."
        )


def _first_rows(info: DatasetInfo, column: str, count: int = _ROWS_LOOKED_AT) -> Iterator[np.ndarray]:
    dataset = build_dataset(info, batch_size=1, columns=[column], num_samples=min(info.num_rows, count))
    with reading(info):
        for (batch,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield batch[0]
