"""The baseline of chnsenticorp.sh: TF-IDF of one and two characters with logistic regression, in NumPy.

The formulas, and so the accuracy, are those of scikit-learn's TfidfVectorizer(analyzer="char", ngram_range=(1, 2)) and
LogisticRegression(C=C), once that has converged.

    python examples/gpt2_chinese/tfidf_baseline.py TRAIN_TSV TEST_TSV [C]
"""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np


def read_reviews(path: str) -> tuple[list[str], np.ndarray]:
    """Texts and labels, (rows,) float64 of 0 and 1, of a table with the columns `label` and `text_a`."""
    lines = [line for line in Path(path).read_text(encoding="utf-8").split("\n")[1:] if line]
    rows = [line.split("\t") for line in lines]
    return [row[1] for row in rows], np.array([float(row[0]) for row in rows])


def count_grams(text: str) -> Counter[str]:
    """How often each character and each pair of characters occurs; small letters, runs of white space as one space."""
    text = re.sub(r"\s\s+", " ", text.lower())
    return Counter(text) + Counter(map("".join, zip(text, text[1:], strict=False)))


class Features:
    """The sparse matrix (texts, grams) of count times idf, each row divided by its length; grams not in `columns` are
    left out."""

    def __init__(self, texts: list[str], columns: dict[str, int], idf: np.ndarray):
        entries = [
            (row, columns[gram], count)
            for row, text in enumerate(texts)
            for gram, count in count_grams(text).items()
            if gram in columns
        ]
        self.rows, self.columns, counts = (np.array(part) for part in zip(*entries, strict=True))
        self.shape = (len(texts), len(columns))
        values = counts * idf[self.columns]
        lengths = np.sqrt(np.bincount(self.rows, values**2, minlength=len(texts)))
        self.values = values / lengths[self.rows]

    def times(self, weights: np.ndarray) -> np.ndarray:
        """(grams,) -> (texts,)"""
        return np.bincount(self.rows, self.values * weights[self.columns], minlength=self.shape[0])

    def transposed_times(self, factors: np.ndarray) -> np.ndarray:
        """(texts,) -> (grams,)"""
        return np.bincount(self.columns, self.values * factors[self.rows], minlength=self.shape[1])


def fit_idf(texts: list[str]) -> tuple[dict[str, int], np.ndarray]:
    """The column of each gram, and its idf: log((1 + number of texts) / (1 + number of texts that have it)) + 1."""
    texts_with = Counter(gram for text in texts for gram in count_grams(text))
    columns = {gram: column for column, gram in enumerate(texts_with)}
    return columns, np.log((1 + len(texts)) / (1 + np.array(list(texts_with.values())))) + 1


def solve(product, right: np.ndarray, iterations: int = 200) -> np.ndarray:
    """x with product(x) = right, by conjugate gradients; `product` is that of a positive definite matrix."""
    x, residual = np.zeros_like(right), right
    direction, norm = right, right @ right
    for _ in range(iterations):
        image = product(direction)
        step = norm / (direction @ image)
        x, residual = x + step * direction, residual - step * image
        previous, norm = norm, residual @ residual
        if norm <= 1e-20 * (right @ right):
            break
        direction = residual + norm / previous * direction
    return x


def fit_logistic_regression(features: Features, labels: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    """Weights and bias that minimise |weights|^2 / 2 + c * (sum of the rows' cross-entropies), by Newton's method."""
    parameters = np.zeros(features.shape[1] + 1)
    for _ in range(50):
        weights, bias = parameters[:-1], parameters[-1]
        p = 1 / (1 + np.exp(-features.times(weights) - bias))
        error, curvature = c * (p - labels), c * p * (1 - p)
        gradient = np.append(weights + features.transposed_times(error), error.sum())
        if np.abs(gradient).max() < 1e-6:
            break

        def hessian_times(x: np.ndarray, curvature: np.ndarray = curvature) -> np.ndarray:
            image = curvature * (features.times(x[:-1]) + x[-1])
            return np.append(x[:-1] + features.transposed_times(image), image.sum())

        parameters = parameters - solve(hessian_times, gradient)
    return parameters[:-1], float(parameters[-1])


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    c = float(arguments[2]) if len(arguments) == 3 else 1.0
    (texts, labels), (test_texts, test_labels) = read_reviews(arguments[0]), read_reviews(arguments[1])
    columns, idf = fit_idf(texts)
    weights, bias = fit_logistic_regression(Features(texts, columns, idf), labels, c)
    scores = Features(test_texts, columns, idf).times(weights) + bias
    accuracy = np.mean((scores > 0) == (test_labels == 1))
    print(f"TF-IDF of 1 and 2 characters, logistic regression (C = {c:g}): accuracy {accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
