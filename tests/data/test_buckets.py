"""Length bucketing: bucket lengths, batches, and exact resumption."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.data.buckets import (
    BucketedDataset,
    BucketPlan,
    LabelledRows,
    batches_of_epoch,
    bucket_lengths,
    read_rows,
)
from mindgpt.data.dataset import inspect
from mindgpt.data.mindrecord import MindRecordWriter


def rows_of(lengths):
    """Row n holds its own number, `lengths[n]` times."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return LabelledRows(ids, np.ones_like(ids), starts, np.arange(len(lengths), dtype=np.int32) % 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(1, 5))
def test_bucket_lengths_minimise_padding(lengths, most):
    lengths = np.array(lengths)
    chosen = bucket_lengths(lengths, most, 64)

    def padded(ends):
        return sum(min(end for end in ends if end >= length) for length in lengths)

    ends = sorted({-(-int(length) // 8) * 8 for length in lengths})
    tried = itertools.chain.from_iterable(itertools.combinations(ends, n) for n in range(1, most + 1))
    assert padded(chosen) == min(padded(choice) for choice in tried if choice[-1] == ends[-1])
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    assert chosen[-1] >= lengths.max()


def test_bucket_lengths_respect_the_limit():
    assert bucket_lengths(np.array([3, 27]), 2, 30) == [8, 30]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 32), min_size=1, max_size=50),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_each_epoch_uses_each_row_once_in_full_batches(lengths, size, shuffle, drop, shards, repeat):
    lengths = np.array(lengths)
    buckets = bucket_lengths(lengths, 3, 32)
    plan = BucketPlan(lengths, buckets, size, shuffle, 7, drop, shards, repeat)
    batches = batches_of_epoch(plan, 2)
    assert len(batches) == plan.batches
    for length, rows in batches:
        assert lengths[rows].max() <= length
        assert length in buckets
    used = np.bincount(np.concatenate([np.zeros(0, int), *(rows for _, rows in batches)]), minlength=len(lengths))
    left_out = len(lengths) % (size * shards) if drop else 0
    assert used.max(initial=0) <= repeat
    assert used.sum() == repeat * (len(lengths) - left_out)
    not_full = [rows for _, rows in batches if len(rows) < size * shards]
    assert len(not_full) <= (0 if drop else repeat)


def test_epochs_differ_and_depend_only_on_the_seed():
    lengths = np.random.default_rng(0).integers(1, 30, 40)
    plan = BucketPlan(lengths, bucket_lengths(lengths, 3, 32), 4, True, 5, True)

    def order(plan, epoch):
        return [tuple(rows) for _, rows in batches_of_epoch(plan, epoch)]

    assert order(plan, 1) == order(plan, 1)
    assert order(plan, 0) != order(plan, 1)
    assert order(plan, 0) != order(BucketPlan(lengths, plan.buckets, 4, True, 6, True), 0)
    batches = {frozenset(rows) for epoch in range(2) for rows in order(plan, epoch)}
    assert len(batches) > plan.batches, "which rows are together changes too"


LENGTHS = np.random.default_rng(1).integers(1, 40, 61)


def seen(dataset, epochs):
    """Batches of a run as (length, ids of the first column, labels)."""
    left = epochs - dataset.get_init_step() // dataset.get_dataset_size()
    iterator = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)
    return [(b[0].shape[1], tuple(b[0][:, 0]), tuple(b[2])) for _ in range(left) for b in iterator]


def dataset(shard_id=0, **changes):
    settings = {"batch_size": 6, "shuffle": True, "seed": 3, "drop_remainder": True, **changes}
    plan = BucketPlan(LENGTHS, bucket_lengths(LENGTHS, 3, 40), **settings)
    return BucketedDataset(rows_of(LENGTHS), plan, shard_id)


@pytest.mark.parametrize("done", [1, 9, 10, 17, 20, 29])
def test_set_init_step_resumes_exactly(done):
    whole = seen(dataset(), 3)
    assert len(whole) == len(set(whole)) == 30
    rest = dataset()
    rest.output_shapes()  # MindSpore looks at the data before it iterates; that must not count as an epoch
    rest.set_init_step(done)
    assert seen(rest, 3) == whole[done:]


def test_an_evaluation_can_be_repeated():
    data = dataset(shuffle=False, drop_remainder=False)
    first = seen(data, 1)
    assert seen(data, 1) == first
    labels = np.concatenate([labels for _, _, labels in first])
    assert (labels == -100).sum() == -61 % 6
    assert sorted(labels[labels != -100]) == sorted(np.arange(61) % 3)


def test_shards_read_different_rows_of_the_same_length_at_the_same_time():
    shards = [seen(dataset(shard_id=n, num_shards=2, drop_remainder=False), 1) for n in range(2)]
    assert [length for length, _, _ in shards[0]] == [length for length, _, _ in shards[1]]
    counted = [n for shard in shards for _, ids, labels in shard for n, y in zip(ids, labels, strict=True) if y >= 0]
    assert sorted(counted) == list(range(61))


def test_padding_is_on_the_right_and_masked():
    ids, mask, labels = rows_of([2, 3]).batch(np.array([1, 0]), 4, 3)
    assert ids.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert labels.tolist() == [1, 0, -100]


def write(path, rows, mask="attention_mask"):
    names = ("input_ids", mask, "labels")
    with MindRecordWriter(path, names) as writer:
        columns = [[np.array(row[place], np.int32) for row in rows] for place in range(3)]
        writer.write(dict(zip(names, columns, strict=True)))
    return inspect(path)


def test_padding_of_rows_is_removed(tmp_path):
    padded = [([5, 6, 50256, 50256], [1, 1, 0, 0], [1]), ([50256, 7, 8, 9], [0, 1, 1, 1], [0])]
    rows = read_rows(write(tmp_path / "x.mindrecord", padded))
    assert rows.lengths.tolist() == [2, 4]
    assert rows.ids.tolist() == [5, 6, 50256, 7, 8, 9]
    assert rows.masks.tolist() == [1, 1, 0, 1, 1, 1]
    assert rows.labels.tolist() == [1, 0]
    assert read_rows(inspect(tmp_path / "x.mindrecord"), num_samples=1).labels.tolist() == [1]
    old = read_rows(write(tmp_path / "old.mindrecord", padded, mask="input_mask"))  # early MindFormers' name
    assert old.masks.tolist() == rows.masks.tolist()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (([1, 2], [0, 0], [1]), "row 2 has no real token"),
        (([1, 2], [1, 1], [1, 0]), "row 2 has 2 labels"),
        (([1, 2], [1], [1]), "row 2 has 2 ids, but 1 in its attention_mask"),
    ],
)
def test_invalid_rows_are_refused(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        read_rows(write(tmp_path / "x.mindrecord", [([1], [1], [0]), row]))
