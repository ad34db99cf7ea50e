"""From a dataset section to batches of labelled rows that fit the classifier. Label names and class weights that the
configuration leaves open are resolved with the data.
"""

import numpy as np

from mindgpt.config.data_sections import DatasetSection
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy
from mindgpt.data.buckets import COLUMNS, BucketedDataset, BucketPlan, LabelledRows, bucket_lengths, read_rows
from mindgpt.data.dataset import DatasetInfo, inspect
from mindgpt.runtime.collectives import data_parallel_ranks, strategy
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.checks import data_folder
from mindgpt.tasks.datasets import check_vocabulary, must_drop, reading, rows_a_step

BUCKETS = 4
_ROWS_PER_LABEL_SHOWN = 8


def labelled_training_data(config: RunConfig) -> tuple[BucketedDataset, DatasetInfo, RunConfig]:
    """The data of a training.

    Returns:
        The batches of a step, of `batch_size` x `gradient_accumulation_steps` rows of similar length; if the model is
        sharded, of all rows of a step, padded to seq_length. What the data set is made of. The configuration with
        `label_names` and `class_weights: balanced` resolved.

    Raises:
        UserError: no data set is named, it does not fit the model, or it has one label only.
    """
    info, rows, config = _read(config, config.train_dataset, "train")
    counts = np.bincount(rows.labels, minlength=config.model.config.num_labels)
    if np.count_nonzero(counts) < 2:
        name = _shown_name(config, int(rows.labels[0]))
        raise UserError(
            f"{info.files[0]}: all {len(rows.labels)} rows have the label {name}: there is nothing to learn."
        )
    _say_counts(config, counts)
    if config.trainer.class_weights == "balanced":
        config = config.replaced({"trainer.class_weights": _balanced(config, info, counts)})
    size = rows_a_step(config) // data_parallel_ranks()
    return _batches(config, config.train_dataset, info, rows, size, must_drop(config)), info, config


def labelled_evaluation_data(config: RunConfig) -> tuple[BucketedDataset, DatasetInfo, RunConfig]:
    """The batches of an evaluation, of `batch_size` rows of similar length; the rest as `labelled_training_data`.

    Raises:
        UserError: as `labelled_training_data`, but data with one label only is allowed.
    """
    section = config.eval_dataset
    info, rows, config = _read(config, section, "eval")
    return _batches(config, section, info, rows, config.runner_config.batch_size, section.drop_remainder), info, config


def _read(config: RunConfig, section: DatasetSection, name: str) -> tuple[DatasetInfo, LabelledRows, RunConfig]:
    """Open and read a data set, check it against the model, and resolve the label names with it."""
    if section.input_columns is not None and sorted(section.input_columns) != sorted(COLUMNS):
        raise UserError(
            f"{name}_dataset.input_columns: classification reads {list(COLUMNS)}, not {section.input_columns}"
        )
    info = inspect(data_folder(section, name))
    config = _with_label_names(config, info)
    with reading(info):
        rows = read_rows(info, section.num_samples)
    check_vocabulary(config.model.config.token_count, info, rows.ids)
    longest, positions = int(rows.lengths.max()), config.model.config.seq_length
    if longest > positions:
        raise UserError(
            f"{info.files[0]}: the longest row has {longest} tokens, more than model.model_config.seq_length "
            f"{positions}. Make the data again with --max_length {positions}."
        )
    _check_labels(config, info, rows.labels)
    return info, rows, config


def _with_label_names(config: RunConfig, info: DatasetInfo) -> RunConfig:
    """The configuration with the label names of the data, if it has none; else they must be equal."""
    model, names = config.model.config, info.metadata.get("label_names")
    if not names:
        return config
    if len(names) != model.num_labels:
        raise UserError(
            f"{info.files[0]} has {len(names)} labels ({', '.join(names)}), but model.model_config.num_labels is "
            f"{model.num_labels}. Set it to {len(names)}, or name other data."
        )
    if model.label_names is not None and model.label_names != list(names):
        raise UserError(
            f"{info.files[0]} numbers its labels {', '.join(names)}, but the model has {', '.join(model.label_names)}. "
            f"Make the data again with --label_names {' '.join(model.label_names)}."
        )
    return config.replaced({"model.config.label_names": list(names)})


def _check_labels(config: RunConfig, info: DatasetInfo, labels: np.ndarray) -> None:
    most = config.model.config.num_labels - 1
    wrong = np.flatnonzero((labels < 0) | (labels > most))
    if wrong.size:
        raise UserError(
            f"{info.files[0]}: {wrong.size} row(s) have a label outside 0 to {most}, the first row {wrong[0] + 1}: "
            f"{labels[wrong[0]]}. Set model.model_config.num_labels to the number of labels (now {most + 1}), or make "
            "the data again."
        )


def _balanced(config: RunConfig, info: DatasetInfo, counts: np.ndarray) -> list[float]:
    """rows / (labels x rows of the label), as scikit-learn's `class_weight="balanced"`."""
    if not counts.all():
        name = _shown_name(config, int(np.argmin(counts)))
        raise UserError(f"trainer.class_weights: balanced: no row of {info.files[0]} has the label {name}")
    weights = [float(weight) for weight in counts.sum() / (len(counts) * counts)]
    say(f"class weights: {', '.join(f'{weight:.4g}' for weight in weights)}")
    return weights


def _batches(
    config: RunConfig, section: DatasetSection, info: DatasetInfo, rows: LabelledRows, size: int, drop: bool
) -> BucketedDataset:
    ranks = data_parallel_ranks()
    if drop and len(rows.labels) < size * ranks:
        each = f" in each of {ranks} processes" if ranks > 1 else ""
        raise UserError(
            f"{info.files[0]}: {len(rows.labels)} rows are less than one batch of {size}{each}, and drop_remainder "
            "leaves out batches that are not full: nothing would be read. Lower the batch size, set drop_remainder to "
            "False, or use more data."
        )
    buckets = _buckets(config, section, rows)
    plan = BucketPlan(
        lengths=rows.lengths,
        buckets=buckets,
        batch_size=size,
        shuffle=section.data_loader.shuffle,
        seed=config.seed,
        drop_remainder=drop,
        num_shards=ranks,
        repeat=section.repeat,
    )
    say(f"{info.files[0]}: {len(rows.labels)} rows, padded to {' or '.join(map(str, buckets))} tokens")
    return BucketedDataset(rows, plan, rank() if ranks > 1 else 0, prefetch_size=section.prefetch_size)


def _buckets(config: RunConfig, section: DatasetSection, rows: LabelledRows) -> list[int]:
    longest = config.model.config.seq_length
    if strategy() is Strategy.SEMI_AUTO:
        return [longest]
    return bucket_lengths(rows.lengths, section.num_buckets or BUCKETS, longest)


def _say_counts(config: RunConfig, counts: np.ndarray) -> None:
    names = config.model.config.label_names or [str(number) for number in range(len(counts))]
    shown = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    more = f" and {len(shown) - _ROWS_PER_LABEL_SHOWN} more" if len(shown) > _ROWS_PER_LABEL_SHOWN else ""
    say(f"labels: {', '.join(shown[:_ROWS_PER_LABEL_SHOWN])}{more}")


def _shown_name(config: RunConfig, number: int) -> str:
    names = config.model.config.label_names
    return repr(names[number]) if names else str(number)
