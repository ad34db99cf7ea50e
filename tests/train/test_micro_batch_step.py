"""Interleaved parts of a batch: the loss and gradients of a sharded model, computed without sharding."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.train.micro_batch_step import InterleavedNetwork

pytestmark = pytest.mark.usefixtures("cpu")


def test_interleaved_parts_give_the_mean_loss_and_its_gradient():
    """Rows of equal length: the mean over parts is the mean over all, which the network alone is the oracle for."""
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "vocab_size": 50, "seq_length": 8}
    dropouts = {"embedding_dropout_rate": 0.0, "hidden_dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, initializer_range=0.5)).set_train(True)
    ids = Tensor(np.random.default_rng(0).integers(0, 50, (6, 9)).astype(np.int32))
    parameters = model.trainable_params()
    expected, gradients = ms.value_and_grad(model, None, parameters)(ids)
    interleaved = InterleavedNetwork(model, 3).set_train(True)
    loss, of_parts = ms.value_and_grad(interleaved, None, parameters)(ids)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    largest = max(np.abs(gradient.asnumpy()).max() for gradient in gradients)
    assert largest > 0.1
    for one, other in zip(of_parts, gradients, strict=True):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=1e-5 * largest)
