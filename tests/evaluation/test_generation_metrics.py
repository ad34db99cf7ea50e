"""ROUGE and BLEU of generated texts against their formulas."""

import math
from collections import Counter

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.evaluation import generation_metrics
from mindgpt.evaluation.generation_metrics import GenerationMetric, check_metric_packages, words

pytest.importorskip("rouge_score")
pytest.importorskip("nltk")


def f1(hits, texts, targets):
    return 2 * hits / (texts + targets) if hits else 0.0


def common_subsequence(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def bleu(pairs, orders):
    """Of a whole data set; an order without a match counts 1/2, the next such order 1/4, and so on."""
    logs, halving = [], 1
    for n in range(1, orders + 1):
        hits = total = 0
        for text, target in pairs:
            grams, wanted = (Counter(zip(*(row[i:] for i in range(n)), strict=False)) for row in (text, target))
            hits += sum((grams & wanted).values())
            total += max(1, sum(grams.values()))
        if not hits:
            hits, halving = 1 / 2**halving, halving + 1
        logs.append(math.log(hits / total))
    texts, targets = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    return min(1.0, math.exp(1 - targets / texts)) * math.exp(sum(logs) / orders)


def test_words():
    assert words("GPT-3模型，is good。\n第2章：“好”·《abc》￥5") == [
        *["GPT-3", "模", "型", "，", "is", "good", "。", "第", "2", "章", "：", "“", "好", "”", "·", "《", "abc", "》"],
        *["￥", "5"],
    ]  # fmt: skip
    assert words("ＡＢ１ 𠀀x") == ["ＡＢ１", "𠀀", "x"]
    assert words(" \n") == []


@pytest.mark.parametrize("alphabet", ["春眠不觉晓", "abcdefghijklmnopqrstuvwxyz"], ids=["repetitive", "few matches"])
def test_scores(alphabet):
    draw = np.random.default_rng(len(alphabet))
    texts, targets = (
        [" ".join(draw.choice(list(alphabet), draw.integers(low, 9))) for _ in range(8)] for low in (0, 1)
    )
    texts[0] = ""
    metric = GenerationMetric()
    metric.update(texts[:3], targets[:3])
    metric.update(texts[3:], targets[3:])
    pairs = [(text.split(), target.split()) for text, target in zip(texts, targets, strict=True)]
    rouge_1 = [f1(sum((Counter(a) & Counter(b)).values()), len(a), len(b)) for a, b in pairs]
    rouge_l = [f1(common_subsequence(a, b), len(a), len(b)) for a, b in pairs]
    wanted = {"rouge-1": np.mean(rouge_1), "rouge-l": np.mean(rouge_l)}
    wanted |= {"bleu-1": bleu(pairs, 1), "bleu-4": bleu(pairs, 4)}
    assert 0 < wanted["bleu-4"] < wanted["rouge-l"] <= wanted["rouge-1"] < 1
    assert metric.eval() == pytest.approx(wanted, rel=1e-12)
    metric.clear()
    metric.update(["春眠不觉晓。"], ["春眠不觉晓。"])
    assert metric.eval() == {"rouge-1": 1, "rouge-l": 1, "bleu-1": 1, "bleu-4": 1}
    metric.clear()
    metric.update([""], ["春"])
    assert set(metric.eval().values()) == {0}


def test_without_the_packages(monkeypatch):
    monkeypatch.setattr(generation_metrics, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the packages rouge-score and nltk, .* pip install rouge-score nltk"):
        check_metric_packages()
    monkeypatch.setattr(generation_metrics, "find_spec", lambda name: True if name == "nltk" else None)
    with pytest.raises(UserError, match="the package rouge-score, not installed here: pip install rouge-score"):
        GenerationMetric()
