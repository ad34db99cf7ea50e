"""Resized embedding tables: which rows stay, what the new ones are, and what the model computes with them."""

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints.resizing import POSITIONS, TOKENS, ResizedEmbeddings
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError

pytestmark = pytest.mark.usefixtures("cpu")

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "seq_length": 16}
IDS = np.array([[1, 5, 39, 0, 7, 7, 20, 3], [9, 8, 7, 6, 5, 4, 3, 2]], np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tables are all but random around zero: with a mean, as trained ones have."""
    path = tmp_path_factory.mktemp("model")
    model = GPT2LMHeadModel(GPT2Config(**SIZES, hidden_dropout_rate=0.0, attention_dropout_rate=0.0))
    draw = np.random.default_rng(1)
    for name, parameter in model.parameters_dict().items():
        shift = draw.standard_normal(parameter.shape[-1]) if "embedding_table" in name else 0.0
        values = 0.2 * draw.standard_normal(parameter.shape) + shift + ("gamma" in name)
        parameter.set_data(Tensor(values.astype(np.float32)))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tables(folder):
    source = open_weights(folder).source
    return {name: source.read(name) for name in (POSITIONS, TOKENS)}


def of(model, name):
    return model.parameters_dict()[name].asnumpy()


def logits(model, ids=IDS):
    return model(Tensor(ids)).asnumpy()


def test_fewer_positions_are_the_first_and_change_no_logit(folder, tables):
    whole = GPT2LMHeadModel.from_pretrained(folder)
    cut = GPT2LMHeadModel.from_pretrained(folder, resize_embeddings=True, max_position_embeddings=8)
    assert (cut.config.max_position_embeddings, cut.config.seq_length) == (8, 8)
    assert of(cut, POSITIONS).tobytes() == tables[POSITIONS][:8].tobytes()
    assert of(cut, TOKENS).tobytes() == tables[TOKENS].tobytes()
    np.testing.assert_array_equal(logits(cut), logits(whole))
    with pytest.raises(ValueError, match="9 tokens in a row, but the position table holds 8"):
        cut(Tensor(np.zeros((1, 9), np.int32)))


def test_more_positions_repeat_the_old(folder, tables):
    longer = GPT2LMHeadModel.from_pretrained(folder, resize_embeddings=True, seq_length=40)
    assert (longer.config.max_position_embeddings, longer.config.seq_length) == (40, 40)
    old = tables[POSITIONS]
    assert of(longer, POSITIONS).tobytes() == np.concatenate([old, old, old[:8]]).tobytes()
    np.testing.assert_allclose(logits(longer), logits(GPT2LMHeadModel.from_pretrained(folder)), atol=2e-5)
    ids = np.random.default_rng(2).integers(0, 40, (1, 40), dtype=np.int32)
    assert np.isfinite(logits(longer, ids)).all()


def test_new_tokens_are_near_the_mean_and_distinct(folder, tables):
    larger = GPT2LMHeadModel.from_pretrained(folder, resize_embeddings=True, vocab_size=1040)
    table, old = of(larger, TOKENS), tables[TOKENS]
    assert table[:40].tobytes() == old.tobytes()
    noise = (table[40:] - old.mean(axis=0)) / old.std(axis=0)
    assert noise.std() == pytest.approx(0.01, rel=0.02)  # 32,000 draws: a relative deviation of 0.4 %
    assert abs(noise.mean()) < 3e-4
    assert len(np.unique(table, axis=0)) == 1040
    whole = logits(GPT2LMHeadModel.from_pretrained(folder))
    np.testing.assert_allclose(logits(larger)[..., :40], whole, atol=2e-5)
    new, mean = logits(larger)[..., 40:], whole.mean(axis=-1, keepdims=True)
    assert np.abs(new - mean).max() < 0.1 * whole.std(axis=-1).max()  # no new token is likelier than the best old one


def test_new_rows_follow_from_the_seed(folder):
    source = open_weights(folder).source
    first, again, other = (ResizedEmbeddings(source, 16, 50, seed).read(TOKENS) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first[40:] != other[40:]).all()


def test_other_tensors_are_unchanged(folder):
    source = open_weights(folder).source
    view = ResizedEmbeddings(source, 20, 41)
    assert view.changes == [
        "positions: from 16 to 20; new rows are copies of the old ones, from the first on",
        "vocabulary: from 40 to 41 tokens; new rows are the mean of the old ones with a little noise",
    ]
    assert (view.entries[POSITIONS].shape, view.entries[TOKENS].shape) == ((20, 32), (41, 32))
    for name in source.entries.keys() - {POSITIONS, TOKENS}:
        assert view.entries[name] == source.entries[name]
        np.testing.assert_array_equal(view.read(name), source.read(name))
    assert ResizedEmbeddings(source, 16, 40).changes == []


def test_a_smaller_vocabulary_is_refused(folder):
    with pytest.raises(UserError, match="vocabulary of 40 tokens cannot be cut to 39.*Set vocab_size to 40"):
        GPT2LMHeadModel.from_pretrained(folder, resize_embeddings=True, vocab_size=39)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": 32}, "max_position_embeddings is 16 there and 32 here"),
        ({"n_positions": 8}, "max_position_embeddings is 16 there and 8 here"),
        ({"vocab_size": 41, "seq_length": 8}, "vocab_size is 40 there and 41 here"),
    ],
)
def test_resizing_must_be_requested(folder, changes, message):
    with pytest.raises(UserError, match=f"{message}.*resize_embeddings=True.*shorter than 16 tokens need no resizing"):
        GPT2LMHeadModel.from_pretrained(folder, **changes)


def test_shorter_rows_need_no_resizing(folder, tables):
    model = GPT2LMHeadModel.from_pretrained(folder, seq_length=8)
    assert (model.config.seq_length, model.config.max_position_embeddings) == (8, 16)
    assert of(model, POSITIONS).tobytes() == tables[POSITIONS].tobytes()


def test_half_precision_tables_keep_their_dtype(folder):
    source = open_weights(folder).source

    class Half:
        path = source.path
        entries = {name: info._replace(dtype="float16") for name, info in source.entries.items()}

        def read(self, name):
            return source.read(name).astype(np.float16)

    view = ResizedEmbeddings(Half(), 20, 50)
    assert view.read(TOKENS).dtype == view.read(POSITIONS).dtype == np.float16
    np.testing.assert_array_equal(view.read(TOKENS)[:40], source.read(TOKENS).astype(np.float16))
