"""Metrics of generated texts against targets: ROUGE-1, ROUGE-L, BLEU-1 and BLEU-4, of Chinese by characters."""

import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.wordpiece_text import is_chinese as is_ideograph

_PUNCTUATION = (  # of Chinese: general, its own, vertical and small forms, full width
    (0x00B7, 0x00B7),
    (0x2013, 0x2027),
    (0x3000, 0x303F),
    (0xFE30, 0xFE6F),
    (0xFF00, 0xFFEF),
)
_PACKAGES = ("rouge_score", "nltk")


def check_metric_packages() -> None:
    """Raise a UserError if the packages that compute the metrics are not installed."""
    missing = [name.replace("_", "-") for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"metric.type GenerationMetric needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}, not "
            f"installed here: pip install {' '.join(missing)}."
        )


def words(text: str) -> list[str]:
    """The words that are compared: each Chinese character, ideograph or punctuation, is one; others are between white
    space. As ModelScope's `rebuild_chinese_str` splits texts."""
    return "".join(f" {character} " if _is_chinese(character) else character for character in text).split()


def _is_chinese(character: str) -> bool:
    code = ord(character)
    if is_ideograph(character):
        return True
    in_range = any(first <= code <= last for first, last in _PUNCTUATION)
    return in_range and unicodedata.category(character)[0] in "PS"


class GenerationMetric:
    """Compares generated texts with their targets.

    `rouge-1` and `rouge-l` are F1 of the words and of the longest common subsequence (Lin 2004), by the package
    `rouge-score`, averaged over all texts. `bleu-1` and `bleu-4` are of the whole data set (Papineni et al. 2002), by
    `nltk`, with the smoothing of NIST (method 3 of Chen & Cherry 2014) for orders without a match: the numbers that
    ModelScope's `TextGenerationMetric` gives. Its ROUGE, by the package `rouge`, counts each word of a text once
    however often it occurs, and so is higher.

    Raises:
        UserError: a package is not installed.
    """

    def __init__(self) -> None:
        check_metric_packages()
        from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
        from rouge_score.rouge_scorer import RougeScorer

        self._corpus_bleu, self._smoothing = corpus_bleu, SmoothingFunction().method3
        self._rouge = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())
        self.clear()

    def clear(self) -> None:
        """Forget all texts."""
        self.pairs: list[tuple[list[str], list[str]]] = []

    def update(self, predictions: Sequence[str], targets: Sequence[str]) -> None:
        """Add generated texts and what they should be."""
        self.pairs += [(words(text), words(target)) for text, target in zip(predictions, targets, strict=True)]

    def eval(self) -> dict[str, float]:
        """`rouge-1`, `rouge-l`, `bleu-1` and `bleu-4`, from 0 to 1; of at least one pair."""
        scores = [self._rouge.score(target, text) for text, target in self.pairs]
        references, texts = [[target] for _, target in self.pairs], [text for text, _ in self.pairs]
        return {
            "rouge-1": sum(score["rouge1"].fmeasure for score in scores) / len(scores),
            "rouge-l": sum(score["rougeL"].fmeasure for score in scores) / len(scores),
            "bleu-1": self._bleu(references, texts, (1.0, 0.0, 0.0, 0.0)),
            "bleu-4": self._bleu(references, texts, (0.25, 0.25, 0.25, 0.25)),
        }

    def _bleu(self, references: Any, texts: Any, weights: tuple[float, ...]) -> float:
        return float(self._corpus_bleu(references, texts, weights=weights, smoothing_function=self._smoothing))


class _Words:
    """The tokenizer that `rouge-score` asks for, of texts that are split already."""

    def tokenize(self, text: list[str]) -> list[str]:
        return text
