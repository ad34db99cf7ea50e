"""Texts that join and leave a running batch, against each alone."""

import numpy as np
import pytest

from mindgpt.generation import GenerationSettings
from mindgpt.generation.inference_graphs import InferenceGraphs
from mindgpt.generation.running_batch import RunningBatch

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROWS, NEW = 4, 14


@pytest.mark.parametrize("cells", ["operators", "kernels"])
def test_what_joins_and_leaves_at_random_is_continued_as_alone(request, cells, model, generator, prompts):
    alone = generator.generate(prompts[:20], GenerationSettings(max_new_tokens=NEW))
    assert len({tuple(row) for row in alone}) > 12
    request.getfixturevalue(cells)
    batch = RunningBatch(InferenceGraphs(model.backbone, model.head), ROWS, 96)
    random = np.random.default_rng(0)
    waiting, texts, places, done = list(range(20)), {}, {}, {}
    with generator.running():
        while waiting or texts:
            while waiting and batch.free and (not texts or random.random() < 0.5):
                place = waiting.pop(0)
                (number,), logits = batch.join(prompts[place])
                texts[number], places[number] = [*prompts[place], int(logits.argmax())], place
            logits = batch.decode(list(texts), list(texts.values()))
            for row, number in zip(logits, list(texts), strict=True):
                texts[number].append(int(row.argmax()))
                place = places[number]
                new = texts[number][len(prompts[place]) :]
                if len(new) >= 2 + place % (NEW - 1):  # they leave at different lengths
                    done[place] = new
                    del texts[number]
                    batch.leave([number])
            assert batch.free == ROWS - len(texts)
    assert done == {place: alone[place][: 2 + place % (NEW - 1)] for place in range(20)}


def test_copies_of_a_text_share_its_prompt_and_go_apart(model, generator, prompts, kernels):
    batch = RunningBatch(InferenceGraphs(model.backbone, model.head), ROWS, 96)
    with generator.running():
        batch.warm_up()
        numbers, _ = batch.join(prompts[2], 3)
        texts = [[*prompts[2], token] for token in (65, 97, 101)]
        logits = batch.decode(numbers, texts)
        batch.reorder(numbers, [numbers[1], numbers[1], numbers[0]])  # as in a beam search
        texts = [[*texts[source], 32] for source in (1, 1, 0)]
        again = batch.decode(numbers, texts)
        for text, row in zip([[*prompts[2], token] for token in (65, 97, 101)], logits, strict=True):
            (_,), wanted = batch.join(text)
            np.testing.assert_allclose(row, wanted, atol=1e-4)
            batch.leave([number for number in batch.rows if number not in numbers])
        np.testing.assert_array_equal(again[0], again[1])
        (number,), wanted = batch.join(texts[2])
        np.testing.assert_allclose(again[2], wanted, atol=1e-4)
