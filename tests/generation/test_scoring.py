"""Scores of texts against transformers' log-probabilities."""

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.generation.scoring import score

torch = pytest.importorskip("torch")


def test_equals_transformers_in_any_company(model, peer, corpus, prompts):
    window = model.config.max_position_embeddings
    texts = [*prompts[:12], corpus[:window].tolist(), corpus[5 : window + 6].tolist()]
    scores = score(model, texts)
    assert [values.shape for values in scores] == [(len(text) - 1,) for text in texts]
    for text, values in zip(texts, scores, strict=True):
        with torch.no_grad():
            logits = peer(torch.tensor([text[:-1] or text])).logits[0].double()
        expected = logits.log_softmax(-1)[range(len(text) - 1), text[1:]].numpy()
        # MindSpore's fused kernels approximate: their exp and log put log P off by up to 7e-5, their tanh adds to it
        np.testing.assert_allclose(values, expected, rtol=0, atol=5e-4)
        np.testing.assert_array_equal(values, score(model, [text])[0])
        assert values.dtype == np.float32


def test_logits_after_every_token_equal_transformers(each_generator, peer, corpus):
    """Of a text that is read in two chunks where operators read it; each place comes up, and logits may come again."""
    text = corpus[7:97].tolist()
    found = np.full((len(text), 256), np.nan)
    with each_generator.running():
        for places, logits in each_generator.graphs.logits_within(text):
            found[places] = logits
    with torch.no_grad():
        np.testing.assert_allclose(found, peer(torch.tensor([text])).logits[0].numpy(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no prompts"),
        ([1, 2, 3], r"put a single one in brackets: \[ids\]"),
        ([[1], []], "1 is empty"),
        ([[999]], "id 999, outside"),
        ([[1] * 98], "Text 0 has 98 tokens; with a context length of 96 .* 97 can be scored"),
    ],
)
def test_bad_input(model, texts, message):
    with pytest.raises(UserError, match=message):
        score(model, texts)
