"""A toy GPT-2 of transformers, PEFT adapters on it, and our model with the same weights."""

import numpy as np
import pytest

TOY = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 97, "n_positions": 40, "n_inner": 1024}
NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="parity with PEFT needs torch")


@pytest.fixture(scope="session")
def peft():
    pytest.importorskip("transformers", reason="parity with PEFT needs transformers")
    return pytest.importorskip("peft", reason="parity needs peft")


@pytest.fixture(scope="session")
def base(torch, tmp_path_factory):
    """The folder of a transformers GPT-2 whose random weights are larger than its initialisation makes them.

    Its feed-forward rows lie 4 KiB apart, so that `Linear` turns the matrix round from 128 rows on.
    """
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    torch.manual_seed(0)
    settings = {**TOY, **NO_DROPOUT, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ids():
    """(4, 33) int32: the network sees 4 x 32 tokens of it in training."""
    return np.random.default_rng(0).integers(0, TOY["vocab_size"], (4, 33)).astype(np.int32)


@pytest.fixture(scope="session")
def with_lora():
    """A function: base folder and settings -> our model with LoRA, its factors random so that they matter."""
    from mindspore import Tensor

    from mindgpt import GPT2LMHeadModel
    from mindgpt.config.model_sections import PetSection
    from mindgpt.pet.lora import add_lora
    from mindgpt.pet.names import is_factor

    def build(folder, **settings):
        model = GPT2LMHeadModel.from_pretrained(folder)
        section = PetSection(**settings)
        add_lora(model, section)
        model.config.pet_config = section
        draw = np.random.default_rng(1)
        for parameter in model.trainable_params():
            if is_factor(parameter.name):
                parameter.set_data(Tensor(draw.normal(0, 0.1, parameter.shape).astype(np.float32)))
        return model.set_train(False)

    return build
