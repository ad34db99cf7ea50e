"""Weights begin on cache lines, and stay where they are."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.weights import load_weights, open_weights
from mindgpt.evaluation.perplexity import PerplexityCell
from mindgpt.models.cpu.operators import align
from mindgpt.runtime.alignment import CACHE_LINE, aligned

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.mark.parametrize("behind", [0, 1, 4, 15])
def test_what_is_moved(behind):
    room = np.arange(1000, dtype=np.float32)
    first = -room.ctypes.data % CACHE_LINE // 4 + behind
    values = room[first : first + 600].reshape(20, 30)
    for array in (values, values.T, values[:, 3], values.astype(np.int8)):
        assert aligned(array).ctypes.data % CACHE_LINE == 0
        np.testing.assert_array_equal(aligned(array), array)
    parameter = Parameter(Tensor(np.zeros((20, 30), np.float32)))
    parameter.set_data(Tensor.from_numpy(values))
    align([parameter])
    assert parameter.data_ptr() % CACHE_LINE == 0
    assert (parameter.data_ptr() == values.ctypes.data) == (behind == 0)
    np.testing.assert_array_equal(parameter.asnumpy(), values)


def places(model):
    return [parameter.data_ptr() for parameter in model.get_parameters()]


def test_new_and_loaded_weights_lie_on_cache_lines_and_stay(tmp_path):
    """An optimizer that was compiled before a model is evaluated, or continues a text, goes on with the same memory."""
    model = GPT2LMHeadModel(GPT2Config(num_layers=2, hidden_size=20, num_heads=2, vocab_size=23, seq_length=8))
    assert not any(place % CACHE_LINE for place in places(model))
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, ((name, value.asnumpy()) for name, value in model.parameters_dict().items()))
    load_weights(model, open_weights(path))
    loaded = places(model)
    assert not any(place % CACHE_LINE for place in loaded)
    PerplexityCell(model.set_train(False))(Tensor(np.arange(8, dtype=np.int32)[None]))
    model.generate([[1, 2, 3]], max_new_tokens=2)
    assert places(model) == loaded
