"""Datasets: order, shards, limits, and errors for data that does not fit."""

import os

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.dataset import build_dataset, check_row_length, fingerprint, inspect
from mindgpt.data.mindrecord import MindRecordWriter


def write(path, numbers, length=3, columns=("input_ids", "attention_mask"), **arguments):
    """Rows [n, n, n] with mask 1."""
    ids = np.repeat(np.asarray(numbers, np.int32)[:, None], length, axis=1)
    with MindRecordWriter(path, columns, **arguments) as writer:
        writer.write({column: ids if column == "input_ids" else np.ones_like(ids) for column in columns})


def epochs(dataset, count=1):
    """The first id of each row, by epoch."""
    iterator = dataset.create_dict_iterator(num_epochs=count, output_numpy=True)
    return [[number for batch in iterator for number in batch["input_ids"][:, 0].tolist()] for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten rows, 0-9, in two files."""
    folder = tmp_path_factory.mktemp("ten")
    write(folder / "a.mindrecord", range(7))
    write(folder / "b.mindrecord", range(7, 10))
    return folder


def test_rows_in_order(folder):
    dataset = build_dataset(folder, batch_size=4, drop_remainder=False, columns=["attention_mask", "input_ids"])
    batches = list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert [len(mask) for mask, _ in batches] == [4, 4, 2]
    for mask, ids in batches:
        assert mask.dtype == ids.dtype == np.int32
        assert (mask == 1).all()
    expected = np.repeat(np.arange(10)[:, None], 3, axis=1)
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in batches]), expected)
    assert epochs(build_dataset(folder, batch_size=4)) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert epochs(build_dataset(folder / "b.mindrecord", batch_size=1)) == [[7, 8, 9]]
    assert epochs(build_dataset(folder, batch_size=5, repeat=2)) == [[*range(10), *range(10)]]
    assert build_dataset(folder, batch_size=4).get_dataset_size() == 2


def test_shuffling_depends_on_the_seed_and_the_epoch(folder):
    one = epochs(build_dataset(folder, batch_size=2, shuffle=True, seed=1), 3)
    again = epochs(build_dataset(folder, batch_size=2, shuffle=True, seed=1, num_parallel_workers=4), 3)
    other = epochs(build_dataset(folder, batch_size=2, shuffle=True, seed=2), 3)
    assert one == again != other
    assert one[0] != one[1] != one[2] != list(range(10))
    assert [sorted(epoch) for epoch in one] == [list(range(10))] * 3


def test_resuming_continues_as_an_uninterrupted_run(folder):
    unbroken = epochs(build_dataset(folder, batch_size=2, shuffle=True, seed=3), 3)
    resumed = build_dataset(folder, batch_size=2, shuffle=True, seed=3)
    resumed.set_init_step(7)  # one epoch of 5 batches, and 2
    iterator = resumed.create_dict_iterator(num_epochs=3, output_numpy=True)
    rest = [[n for batch in iterator for n in batch["input_ids"][:, 0].tolist()] for _ in range(2)]
    assert rest == [unbroken[1][4:], unbroken[2]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_shards_cover_the_rows_evenly(folder, shuffle):
    parts = [
        epochs(build_dataset(folder, batch_size=1, shuffle=shuffle, seed=5, num_shards=3, shard_id=shard,
                             drop_remainder=False), 2)
        for shard in range(3)
    ]  # fmt: skip
    for epoch in range(2):
        rows = sum((part[epoch] for part in parts), [])
        assert [len(part[epoch]) for part in parts] == [4, 4, 4]
        assert set(rows) == set(range(10))
    if shuffle:
        assert parts[0][0] != parts[0][1]
    else:
        assert [part[0] for part in parts] == [[0, 3, 6, 9], [1, 4, 7, 0], [2, 5, 8, 1]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_sharded_batches_together_equal_a_larger_batch(folder, shuffle):
    """10 rows, 2 shards of batches of 2: two steps of 4 rows, and the remainder is left out."""

    def batches(size, **shard):
        dataset = build_dataset(folder, batch_size=size, shuffle=shuffle, seed=5, **shard)
        iterator = dataset.create_dict_iterator(num_epochs=3, output_numpy=True)
        return [[sorted(batch["input_ids"][:, 0].tolist()) for batch in iterator] for _ in range(3)]

    whole = batches(4)
    first, second = (batches(2, num_shards=2, shard_id=n) for n in range(2))
    joined = [[sorted(a + b) for a, b in zip(*parts, strict=True)] for parts in zip(first, second, strict=True)]
    assert joined == whole
    assert [len(epoch) for epoch in whole] == [2, 2, 2]
    assert (whole[0] != whole[1]) == shuffle


def test_a_range_of_rows(folder):
    dataset = build_dataset(folder, batch_size=2, rows=range(4, 9), drop_remainder=False)
    assert epochs(dataset) == [[4, 5, 6, 7, 8]]


@pytest.mark.parametrize("shards", [1, 2])
def test_num_samples_is_the_same_first_rows_in_every_epoch(folder, shards):
    arguments = {"batch_size": 1, "shuffle": True, "num_samples": 4, "num_shards": shards}
    parts = [epochs(build_dataset(folder, **arguments, shard_id=shard), 4) for shard in range(shards)]
    for epoch in range(4):
        assert sorted(sum((part[epoch] for part in parts), [])) == [0, 1, 2, 3]
    assert epochs(build_dataset(folder, batch_size=1, num_samples=4)) == [[0, 1, 2, 3]]
    assert epochs(build_dataset(folder, batch_size=1, num_samples=99)) == [list(range(10))]


def test_inspect(folder):
    info = inspect(folder)
    assert info.files == [str(folder / "a.mindrecord"), str(folder / "b.mindrecord")]
    assert info.num_rows == 10
    assert set(info.columns) == {"input_ids", "attention_mask"}
    assert info.row_shapes == {"input_ids": (3,), "attention_mask": (3,)}
    assert info.metadata == {}


def test_the_fingerprint_depends_on_rows_not_on_the_path(tmp_path, folder):
    for name, numbers in (("same", range(10)), ("first", [99, *range(1, 10)]), ("last", [*range(9), 99])):
        write(tmp_path / f"{name}.mindrecord", numbers)
    same, first, last = (fingerprint(inspect(tmp_path / f"{name}.mindrecord")) for name in ("same", "first", "last"))
    assert fingerprint(inspect(folder)) == same
    assert len({same, first, last}) == 3


def test_row_length(folder):
    info = inspect(folder)
    check_row_length(info, 2, training=True)
    check_row_length(info, 2, training=False)
    check_row_length(info, 3, training=False)
    with pytest.raises(
        UserError, match="3 tokens, but training with seq_length 3 takes 4.*--max_length 4.*length to 2"
    ):
        check_row_length(info, 3, training=True)
    with pytest.raises(UserError, match="3 tokens, but evaluation with seq_length 4 takes 4 or 5"):
        check_row_length(info, 4, training=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["input_ids", "labels"]}, "no column 'labels'; it has 'attention_mask', 'input_ids'"),
        ({"batch_size": 11}, "10 rows are less than one batch of 11 on 1 shard"),
        ({"batch_size": 5, "num_shards": 3}, "10 rows are less than one batch of 5 on 3 shard"),
        ({"batch_size": 5, "num_samples": 4}, "4 rows are less"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_shards": 2, "shard_id": 2}, "shard_id must be from 0 to num_shards - 1 = 1"),
    ],
)
def test_invalid_arguments_are_explained(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        build_dataset(folder, **{"batch_size": 1, **arguments})


def test_files_with_different_columns_are_refused(tmp_path):
    write(tmp_path / "a.mindrecord", [1])
    write(tmp_path / "b.mindrecord", [1], columns=["input_ids"])
    with pytest.raises(UserError, match="need the same columns"):
        inspect(tmp_path)


def test_files_of_other_tools(tmp_path):
    """Shards, 64-bit columns and a free description, as MindSpore's FileWriter makes them."""
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "x.mindrecord"), 2)
    writer.add_schema({name: {"type": "int64", "shape": [-1]} for name in ("input_ids", "labels")}, "lm-schema")
    writer.set_page_size(1 << 15)  # several pages
    rows = [{"input_ids": np.full(5000, n, np.int64), "labels": np.array([n], np.int64)} for n in range(20)]
    for start in range(0, 20, 5):
        writer.write_raw_data(rows[start : start + 5])
    writer.commit()
    assert sorted(name for name in os.listdir(tmp_path) if not name.endswith(".db")) == [
        "x.mindrecord0",
        "x.mindrecord1",
    ]
    for path in (tmp_path, tmp_path / "x.mindrecord1"):
        info = inspect(path)
        assert info.num_rows == 20
        assert info.metadata == {}
        assert info.row_shapes == {"input_ids": (5000,), "labels": (1,)}
        dataset = build_dataset(info, batch_size=4, columns=["input_ids", "labels"])
        seen = [
            (i[0], n[0])
            for batch in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
            for i, n in zip(*batch, strict=True)
        ]
        assert sorted(seen) == [(n, n) for n in range(20)]
        assert next(dataset.create_tuple_iterator(output_numpy=True))[0].dtype == np.int32


def test_input_mask_is_the_attention_mask(repo, tmp_path):
    """As early releases of MindFormers called the column."""
    from mindgpt.config.loader import load_config
    from mindgpt.tasks.datasets import evaluation_data, training_data

    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    mask = (ids % 3 < 2).astype(np.int32)
    with MindRecordWriter(tmp_path / "x.mindrecord", ("input_ids", "input_mask")) as writer:
        writer.write({"input_ids": ids, "input_mask": mask})
    info = inspect(tmp_path / "x.mindrecord")
    assert list(info.columns) == list(info.row_shapes) == ["input_ids", "attention_mask"]
    assert len(fingerprint(info)) == 8
    config, _ = load_config(
        repo / "configs" / "gpt2" / "pretrain_gpt2_quickstart.yaml",
        {
            "model.model_config.seq_length": 2,
            "runner_config.batch_size": 2,
            "train_dataset.data_loader": {"dataset_dir": str(tmp_path), "shuffle": False},
            "eval_dataset.data_loader.dataset_dir": str(tmp_path),
            "eval_dataset.input_columns": ["input_ids", "input_mask"],
        },
    )
    for make in (training_data, evaluation_data):
        dataset, _ = make(config)
        assert dataset.get_col_names() == ["input_ids", "attention_mask"]
        batches = list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
        np.testing.assert_array_equal(np.concatenate([batch[0] for batch in batches]), ids)
        np.testing.assert_array_equal(np.concatenate([batch[1] for batch in batches]), mask)


def test_a_padding_token_beyond_the_embedding_table_is_accepted(tmp_path):
    """The tokenizer has 12 tokens, the last of them only for padding, and the model 11."""
    from mindgpt.data.blocks import vocabulary_metadata
    from mindgpt.tasks.datasets import check_vocabulary
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    metadata = {"vocab_size": 12, "text_vocab_size": 11}
    write(tmp_path / "a.mindrecord", [10] * 300, metadata=metadata)
    check_vocabulary(11, inspect(tmp_path / "a.mindrecord"))
    check_vocabulary(11, inspect(tmp_path / "a.mindrecord"), ids=np.array([3, 10]))
    with pytest.raises(UserError, match="was made with a tokenizer of 12 tokens, but .* is 10"):
        check_vocabulary(10, inspect(tmp_path / "a.mindrecord"))
    with pytest.raises(UserError, match="holds token ids of 12 tokens, but .* is 11"):
        check_vocabulary(11, inspect(tmp_path / "a.mindrecord"), ids=np.array([11]))
    write(tmp_path / "b.mindrecord", [*[10] * 299, 11], metadata=metadata)  # a text spells its name, in the last row
    with pytest.raises(UserError, match="holds token ids of 12 tokens, but .* is 11"):
        check_vocabulary(11, inspect(tmp_path / "b.mindrecord"))

    tokenizer = GPT2Tokenizer.train(["a rose is a rose"], 262)
    assert "text_vocab_size" not in vocabulary_metadata(tokenizer)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    noted = vocabulary_metadata(tokenizer)
    assert (noted["vocab_size"], noted["text_vocab_size"]) == (size + 1, size)
