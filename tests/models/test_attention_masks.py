"""Masks of attention: what padding on the right changes, and who may see whom in packed rows."""

import numpy as np
import pytest
from mindspore import Tensor, value_and_grad

from mindgpt import GPT2Config, GPT2LMHeadModel, UserError
from mindgpt.data.dataset import DatasetInfo
from mindgpt.tasks import datasets

pytestmark = pytest.mark.usefixtures("cpu")

TOY = {"num_layers": 2, "num_heads": 4, "hidden_size": 48, "vocab_size": 61, "seq_length": 24, "eos_token_id": 7}
NO_DROPOUT = dict.fromkeys(("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"), 0.0)


def model_of(**settings):
    """A model in training mode, each time with the same weights, so large that attention is not uniform."""
    model = GPT2LMHeadModel(GPT2Config(**TOY, **NO_DROPOUT, **settings))
    random = np.random.default_rng(0)
    for weight in model.get_parameters():
        noise = random.standard_normal(weight.shape)
        values = 0.1 * noise if weight.ndim > 1 else weight.asnumpy() + 0.02 * noise
        weight.set_data(Tensor(values.astype(np.float32)))
    return model.set_train()


def loss_and_gradients(model, *batch):
    """The sum of the losses, the number of predicted tokens, and the gradient of the sum for each weight."""
    weights = model.trainable_params()
    gradient = value_and_grad(model.summed_loss, None, weights, has_aux=True)
    (total, count), gradients = gradient(*map(Tensor, batch))
    return total.asnumpy(), count.asnumpy(), [value.asnumpy() for value in gradients]


def rows(shape, seed=1):
    """Ids without that of `eos_token_id`."""
    return np.random.default_rng(seed).integers(8, TOY["vocab_size"], shape).astype(np.int32)


def assert_close(ours, expected):
    """To 1e-5 of the largest value of each; the gradient of a key's bias is 0, since softmax does not see it."""
    for mine, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=max(1e-6, 1e-5 * np.abs(other).max()))


def test_padding_on_the_right_needs_no_mask_of_attention():
    """A causal token never sees it, and at padding nothing is predicted."""
    ids, mask = rows((3, 25)), (np.arange(25) < np.array([[25], [11], [2]])).astype(np.int32)
    model = model_of()
    total, count, gradients = loss_and_gradients(model, ids, mask)
    assert count == 24 + 10 + 1
    model.padded_on_right = True
    without = loss_and_gradients(model, ids, mask)
    assert without[1] == count
    assert_close([without[0], *without[2]], [total, *gradients])
    model.padded_on_right, left = False, np.ascontiguousarray(mask[:, ::-1])
    total_of_left = loss_and_gradients(model, ids, left)[0]
    model.padded_on_right = True
    assert abs(loss_and_gradients(model, ids, left)[0] / total_of_left - 1) > 1e-3  # which is why the side matters


@pytest.mark.parametrize("recipe", [{}, {"recipe": "documents"}], ids=["foreign", "of our tools"])
def test_only_rows_known_to_be_padded_on_the_right_go_without_their_mask(monkeypatch, capsys, recipe):
    ours = DatasetInfo(["ours.mindrecord"], {}, 1, {}, {"recipe": "documents"})
    info = DatasetInfo(["some.mindrecord"], {}, 1, {}, recipe)
    model = model_of(use_flash_attention=True)
    datasets.skip_padding_mask(model, ours)
    assert not model.padded_on_right  # on CPU, where there is no flash attention
    monkeypatch.setattr(datasets, "use_flash_kernel", lambda config: config.use_flash_attention)
    datasets.skip_padding_mask(model, ours, info)
    assert model.padded_on_right == bool(recipe)
    assert ("note: some.mindrecord is not of mindgpt's tools" in capsys.readouterr().out) == (not recipe)


LENGTHS = (9, 1, 14)  # of the documents of a row, their ends included


def packed_row():
    """24 tokens of three documents, and one more, which is only a target."""
    row = rows((1, 25), seed=2)
    row[0, np.cumsum(LENGTHS) - 1] = TOY["eos_token_id"]
    return row


@pytest.mark.parametrize("columns", [1, 2], ids=["without a mask", "with a mask"])
def test_documents_of_a_packed_row_are_as_if_each_were_alone(columns):
    """Loss and gradients of the row are the sums of its documents', each run by itself with the token after it."""
    row = packed_row()
    model = model_of(reset_attention_mask=True, reset_position_ids=True)
    packed = loss_and_gradients(model, *[row, np.ones_like(row)][:columns])
    alone, first = model_of(), 0
    runs = []
    for length in LENGTHS:
        runs.append(loss_and_gradients(alone, row[:, first : first + length + 1]))
        first += length
    assert packed[1] == 24 == sum(count for _, count, _ in runs)
    gradients = [sum(parts) for parts in zip(*(of_run for _, _, of_run in runs), strict=True)]
    assert_close([packed[0], *packed[2]], [sum(total for total, _, _ in runs), *gradients])
    assert abs(loss_and_gradients(alone, row)[0] / packed[0] - 1) > 1e-3  # without the two settings


@pytest.mark.parametrize("setting", ["reset_attention_mask", "reset_position_ids"])
def test_each_of_the_two_settings_by_itself(setting):
    """A change in the first document changes nothing in the others only if they do not see it."""
    model = model_of(**{setting: True}).set_train(False)
    row = packed_row()[:, :24]
    other = row.copy()
    other[0, 0] = 60 if row[0, 0] != 60 else 59
    changed = np.abs(model(Tensor(row)).asnumpy() - model(Tensor(other)).asnumpy()).max(-1)[0] > 0  # (T,)
    assert changed[: LENGTHS[0]].all()
    assert changed[LENGTHS[0] :].any() == (setting == "reset_position_ids")
    positions = model.backbone.documents.positions(
        model.backbone.documents(Tensor(row), model.backbone.attention_mask.causal(24))
    )
    assert positions.asnumpy().tolist() == [[position for length in LENGTHS for position in range(length)]]


def test_padding_is_neither_seen_nor_counted_in_packed_rows():
    """Padding is often the end-of-text token itself."""
    row, model = packed_row(), model_of(reset_attention_mask=True, reset_position_ids=True)
    mask = (np.arange(25) < 17)[None].astype(np.int32)
    row[0, 17:] = TOY["eos_token_id"]
    total, count, gradients = loss_and_gradients(model, row, mask)
    assert count == 16
    short = loss_and_gradients(model, row[:, :17])
    assert_close([total, *gradients], [short[0], *short[2]])


def test_they_need_the_token_that_ends_a_document():
    with pytest.raises(UserError, match="reset_position_ids: needs eos_token_id"):
        GPT2Config(reset_position_ids=True)


def test_data_whose_documents_end_otherwise_is_refused():
    network = GPT2Config(**TOY, reset_attention_mask=True)
    for metadata, message in (
        ({"special_tokens": "none", "eos_token_id": 7}, "no token ends its documents"),
        ({"eos_token_id": 3}, "documents end with token 3, but model.model_config.eos_token_id is 7"),
    ):
        info = DatasetInfo(["some.mindrecord"], {}, 1, {}, metadata)
        with pytest.raises(UserError, match=message):
            datasets._check_ends_of_documents(network, info)
        datasets._check_ends_of_documents(GPT2Config(**TOY), info)
    datasets._check_ends_of_documents(network, DatasetInfo(["x"], {}, 1, {}, {"eos_token_id": 7}))
