"""A folder as Chinese GPT-2 models are published in: config.json, weights, vocab.txt, and no more of a tokenizer."""

import json
import shutil

import pytest

CLS, SEP, UNK = 101, 102, 100


def publish(folder, vocab_file, positions=128, seed=0, lean=3.6):
    """Write a random toy model of transformers with the whole vocabulary; returns it.

    Its final layer norm leans towards [SEP], so that some texts end by themselves. config.json says about generation
    what the published ones say: it ends with 50256, which is no token, and the pipeline samples.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    shutil.copy(vocab_file, folder / "vocab.txt")
    vocab_size = len(vocab_file.read_bytes().split(b"\n")) - 1
    no_ends = {"bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
    torch.manual_seed(seed)
    shape = {"vocab_size": vocab_size, "n_positions": positions, "n_embd": 32, "n_layer": 2, "n_head": 2}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **no_ends)).eval()
    with torch.no_grad():
        towards = network.transformer.wte.weight[SEP]
        network.transformer.ln_f.bias += lean * towards / towards.norm()
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": 50256, "eos_token_id": 50256, "tokenizer_class": "BertTokenizer"}
    config["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 320}}
    (folder / "config.json").write_text(json.dumps(config))
    return network


def greedy(network, ids, new):
    """The new ids of transformers, with the [SEP] that ends them."""
    import torch

    row = torch.tensor([ids])
    with torch.no_grad():
        done = network.generate(  # never token_type_ids, which would add an embedding to every position
            row, attention_mask=torch.ones_like(row), max_new_tokens=new, do_sample=False, eos_token_id=SEP,
            pad_token_id=0,
        )  # fmt: skip
    return done[0, len(ids) :].tolist()
