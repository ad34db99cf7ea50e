"""examples/gpt2_chinese/tfidf_baseline.py against scikit-learn 1.9, of which the numbers below are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[1] / "examples" / "gpt2_chinese" / "tfidf_baseline.py"
TRAIN = [("房间很干净", 1), ("很好  很好 WiFi", 1), ("房间太吵", 0), ("声音大，太热", 0)]
TEST = [("房间很吵很吵", 1), ("wifi 好", 1)]


@pytest.fixture(scope="module")
def baseline():
    spec = importlib.util.spec_from_file_location("tfidf_baseline", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("c", "decisions"),  # LogisticRegression(C=c, tol=1e-10, max_iter=2000).decision_function
    [(1, [0.03826352863050077, 0.28421983735471446]), (10, [0.13799151394786122, 1.112967611514184])],
)
def test_decisions_are_those_of_scikit_learn(baseline, c, decisions):
    texts, labels = zip(*TRAIN, strict=True)
    columns, idf = baseline.fit_idf(texts)
    weights, bias = baseline.fit_logistic_regression(
        baseline.Features(texts, columns, idf), np.array(labels, np.float64), c
    )
    scores = baseline.Features([text for text, _ in TEST], columns, idf).times(weights) + bias
    np.testing.assert_allclose(scores, decisions, atol=1e-7)


def test_accuracy_is_printed(baseline, tmp_path, capsys):
    for name, rows in (("train.tsv", TRAIN), ("test.tsv", [*TEST, ("太热", 1)])):
        lines = ["label\ttext_a", *(f"{label}\t{text}" for text, label in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert baseline.main([str(tmp_path / "train.tsv"), str(tmp_path / "test.tsv")]) == 0
    assert "(C = 1): accuracy 0.6667" in capsys.readouterr().out
