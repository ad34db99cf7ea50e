"""Length bucketing: batches of rows of similar length, padded to a few lengths.

Each batch shape is compiled once in graph mode, and each padded token costs time. So rows are sorted into a few
buckets, each as long as its longest row. A batch comes from one bucket and is always full: rows that do not fill a
batch move to the next longer bucket, and the remainder of the longest is dropped, or filled up with rows without a
label.

The order of batches is a pure function of seed and epoch (`batches_of_epoch`), so a resumed run continues exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mindspore.dataset as ds
import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.data.dataset import DatasetInfo, build_dataset

MULTIPLE = 8  # bucket lengths are multiples of this, for the sake of the kernels
COLUMNS = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a classification data set, in memory and without padding.

    Attributes:
        ids, masks: (tokens,) int32, all rows concatenated; row i is `[starts[i]:starts[i + 1]]`.
        starts: (rows + 1,) int64.
        labels: (rows,) int32.
    """

    ids: np.ndarray
    masks: np.ndarray
    starts: np.ndarray
    labels: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64: number of tokens of each row."""
        return np.diff(self.starts)

    def batch(self, rows: np.ndarray, length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows padded on the right to `length`, and filled up to `size` rows with copies of the first without a label.

        Args:
            rows: indices of the rows.
            length: tokens of a row.
            size: rows of the batch.

        Returns:
            ids and mask (size, length), and labels (size,), all int32; -100 for no label.
        """
        ids, mask = np.zeros((2, size, length), np.int32)
        labels = np.full(size, IGNORED_LABEL, np.int32)
        for place in range(size):
            row = rows[place] if place < len(rows) else rows[0]
            span = slice(self.starts[row], self.starts[row + 1])
            ids[place, : span.stop - span.start] = self.ids[span]
            mask[place, : span.stop - span.start] = self.masks[span]
        labels[: len(rows)] = self.labels[rows]
        return ids, mask, labels


def read_rows(info: DatasetInfo, num_samples: int | None = None) -> LabelledRows:
    """Read a classification data set, or its first `num_samples` rows. MindFormers' rows, padded to 1024, work too.

    Raises:
        UserError: a column is missing, or a row has only padding, several labels, or a mask of another length.
    """
    dataset = build_dataset(info, batch_size=1, columns=COLUMNS, drop_remainder=False, num_samples=num_samples)
    ids, masks, labels = [], [], []
    for row, mask, label in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
        row, mask, label = row.reshape(-1), mask.reshape(-1), label.reshape(-1)
        number = len(labels) + 1
        if label.size != 1:
            raise UserError(
                f"{info.files[0]}: row {number} has {label.size} labels; classification takes one. Make the data with "
                "tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py."
            )
        if mask.size != row.size:
            raise UserError(f"{info.files[0]}: row {number} has {row.size} ids, but {mask.size} in its attention_mask.")
        real = np.flatnonzero(mask)
        if not real.size:
            raise UserError(f"{info.files[0]}: row {number} has no real token: its attention_mask is 0 throughout.")
        ids.append(row[: real[-1] + 1])
        masks.append(mask[: real[-1] + 1])
        labels.append(label[0])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    return LabelledRows(np.concatenate(ids), np.concatenate(masks), starts, np.array(labels, np.int32))


# ---- bucket lengths --------------------------------------------------------------------------------------------------


def bucket_lengths(lengths: np.ndarray, most: int, limit: int) -> list[int]:
    """The lengths, at most `most`, that minimise the total padding; ascending, the last one fits every row.

    Dynamic programming over the distinct lengths, rounded up to `MULTIPLE`.

    Args:
        lengths: (rows,) tokens of each row, none above `limit`.
        most: maximum number of buckets.
        limit: maximum length of a bucket, such as the context length of a model.
    """
    steps = np.minimum(-(-lengths // MULTIPLE) * MULTIPLE, limit)
    ends, counts = np.unique(steps, return_counts=True)
    # cost[j] after k rounds: fewest tokens of the rows of the first j ends, padded to at most k lengths.
    rows_up_to = np.concatenate([[0], np.cumsum(counts)])
    cost = np.full(len(ends) + 1, np.inf)
    cost[0] = 0
    choices = []
    for _ in range(min(most, len(ends))):
        choice = np.zeros(len(ends) + 1, np.int64)
        fewest = cost.copy()
        for j in range(1, len(ends) + 1):
            with_bucket = cost[:j] + (rows_up_to[j] - rows_up_to[:j]) * ends[j - 1]  # last bucket: ends i to j
            choice[j] = np.argmin(with_bucket)
            fewest[j] = with_bucket[choice[j]]
        cost = fewest
        choices.append(choice)
    chosen, j = [], len(ends)
    for choice in reversed(choices):
        if j == 0:
            break
        chosen.append(int(ends[j - 1]))
        j = choice[j]
    return chosen[::-1]


# ---- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BucketPlan:
    """How rows become batches.

    Attributes:
        lengths: (rows,) tokens of each row.
        buckets: lengths to pad to, from `bucket_lengths`.
        batch_size: rows of a batch of one shard.
        shuffle: whether rows and batches are in random order.
        seed: of that order.
        drop_remainder: drop the remaining rows; otherwise they become a last batch that is filled up.
        num_shards: processes that share a batch: each reads different rows of the same bucket.
        repeat: passes over the data that count as one epoch.
    """

    lengths: np.ndarray
    buckets: Sequence[int]
    batch_size: int
    shuffle: bool
    seed: int
    drop_remainder: bool
    num_shards: int = 1
    repeat: int = 1

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        rows, size = len(self.lengths), self.batch_size * self.num_shards
        return (rows // size if self.drop_remainder else -(-rows // size)) * self.repeat


def batches_of_epoch(plan: BucketPlan, epoch: int) -> list[tuple[int, np.ndarray]]:
    """The batches of an epoch (from 0), in order: (length, indices of rows), for all shards together."""
    return [batch for turn in range(plan.repeat) for batch in _one_pass(plan, epoch * plan.repeat + turn)]


def _one_pass(plan: BucketPlan, number: int) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng([plan.seed, number])
    order = rng.permutation(len(plan.lengths)) if plan.shuffle else np.arange(len(plan.lengths))
    bucket_of = np.searchsorted(plan.buckets, plan.lengths[order])
    size = plan.batch_size * plan.num_shards
    batches, left_over = [], np.zeros(0, np.int64)
    for bucket, length in enumerate(plan.buckets):
        rows = np.concatenate([left_over, order[bucket_of == bucket]])
        full = len(rows) // size * size
        batches += [(length, rows[start : start + size]) for start in range(0, full, size)]
        left_over = rows[full:]
    if len(left_over) and not plan.drop_remainder:
        batches.append((plan.buckets[-1], left_over))
    if plan.shuffle:
        batches = [batches[index] for index in rng.permutation(len(batches))]
    return batches


class BucketedDataset(ds.GeneratorDataset):
    """The batches of a plan as a MindSpore dataset: columns `input_ids`, `attention_mask` (batch_size, length), where
    length differs between batches, and `labels` (batch_size,), all int32.

    `set_init_step(n)` continues as an uninterrupted run would after n batches.

    Attributes:
        plan: of the batches.
        tokens_per_batch: tokens of a batch without padding, on average.
    """

    def __init__(self, rows: LabelledRows, plan: BucketPlan, shard_id: int = 0, prefetch_size: int = 1):
        self.plan = plan
        self.tokens_per_batch = float(rows.lengths.mean() * plan.batch_size)
        self._epochs = _Epochs(rows, plan, shard_id)
        ds.config.set_prefetch_size(prefetch_size)
        super().__init__(self._epochs, list(COLUMNS), shuffle=False, num_parallel_workers=1)

    def create_tuple_iterator(self, *arguments, **keywords):
        """As in MindSpore; from the epoch of `set_init_step` on."""
        self._epochs.next = self.get_init_step() // self.plan.batches
        return super().create_tuple_iterator(*arguments, **keywords)

    def create_dict_iterator(self, *arguments, **keywords):
        """As in MindSpore; from the epoch of `set_init_step` on."""
        self._epochs.next = self.get_init_step() // self.plan.batches
        return super().create_dict_iterator(*arguments, **keywords)


class _Epochs:
    """The source that MindSpore iterates: each pass is the next epoch. MindSpore itself skips batches of the first
    epoch after `set_init_step`."""

    def __init__(self, rows: LabelledRows, plan: BucketPlan, shard_id: int):
        self.rows = rows
        self.plan = plan
        self.shard_id = shard_id
        self.next = 0

    def __len__(self) -> int:
        return self.plan.batches

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        epoch, self.next = self.next, self.next + 1
        size = self.plan.batch_size
        for length, rows in batches_of_epoch(self.plan, epoch):
            mine = rows[self.shard_id :: self.plan.num_shards]  # so that micro-batches equal those of one process
            yield self._batch(mine, rows[0], length, size)

    def _batch(self, mine: np.ndarray, any_row: int, length: int, size: int) -> tuple[np.ndarray, ...]:
        """The batch of this shard; if no row is left for it, rows without a label."""
        if len(mine):
            return self.rows.batch(mine, length, size)
        ids, mask, labels = self.rows.batch(np.array([any_row]), length, size)
        return ids, mask, np.full_like(labels, IGNORED_LABEL)
