"""Beam search with a cache, and beam sampling.

Several continuations of a prompt, its beams, are pursued at once. In each step every beam is continued with every
token; of these candidates the likeliest stay. How candidates, finished texts and the end of the search are chosen is
that of Hugging Face transformers, so that the texts are the same:

- With n beams, max(2, 1 + e) n candidates are looked at, where e is the number of end-of-text tokens, so that n of them
  go on even if others end. Those that end count as finished only if they are among the best n.
- A finished text is scored by log P / length ** length_penalty (Wu et al. 2016, section 7, without their constants),
  where the length is that of the new tokens. The best n are kept.
- The search ends with n finished texts if early_stopping is True; else when the best beam, scored at its present length
  (if False; at the greatest length if "never" and length_penalty is above 0), is no better than the worst of them.

Beam sampling samples the candidates without replacement instead, in proportion to their probability, by Gumbel's trick
(Kool et al. 2019, section 2.3).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mindgpt.generation.rules import process, warp
from mindgpt.generation.sampling import check_choice
from mindgpt.generation.settings import GenerationSettings


class Beam(NamedTuple):
    """A text and its log-probability, or its score if it is finished."""

    score: np.float32
    text: list[int]


class Search:
    """The beams of one prompt.

    Attributes:
        running: the `num_beams` beams that go on, best first; none at the end of the search. Of a prompt there is but
            one at first, and rules may leave fewer later: the others have the score -inf and are never continued.
        sources: for each of them, which of the beams before the last step it continues.
        finished: the texts that have ended, best first, `num_beams` at most.
    """

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        settings: GenerationSettings,
        stream: np.random.Generator,
        stop: Callable[[Sequence[int]], bool] | None,
    ):
        self.start = len(prompt)
        self.limit = limit
        self.settings = settings
        self.stream = stream
        self.stop = stop
        self.running = self._filled_up([Beam(np.float32(0), prompt)])
        self.sources: list[int] = []
        self.finished: list[Beam] = []

    def advance(self, log_probs: np.ndarray) -> None:
        """One more token. log_probs: (len(running), V) float32, by which a beam's next token is added to its score"""
        scores = np.array([beam.score for beam in self.running], np.float32)[:, None] + log_probs
        going_on, sources = [], []
        for rank, (row, token) in enumerate(self._candidates(scores)):
            beam = Beam(scores[row, token], [*self.running[row].text, token])
            if not self._ends(beam.text):
                going_on.append(beam)
                sources.append(row)
            elif rank < self.settings.num_beams:
                self._finish(beam)
        best = sorted(range(len(going_on)), key=lambda i: -going_on[i].score)[: self.settings.num_beams]
        if not best or self._is_over(going_on[best[0]]):
            self.running = []
            return
        self.running = self._filled_up([going_on[i] for i in best])
        self.sources = [sources[i] for i in best] + [sources[best[0]]] * (self.settings.num_beams - len(best))

    def _candidates(self, scores: np.ndarray) -> list[tuple[int, int]]:
        """(beam, token) of those that are looked at, best first, or as they were sampled"""
        number = max(2, 1 + len(self.settings.eos_token_ids)) * self.settings.num_beams
        possible = np.flatnonzero(scores > -np.inf)
        keys = scores.reshape(-1)[possible]
        if self.settings.do_sample:
            keys = keys + self.stream.gumbel(size=len(keys))
        if len(possible) > number:
            kept = np.argpartition(-keys, number)[:number]
            possible, keys = possible[kept], keys[kept]
        order = np.lexsort((possible, -keys))
        return [divmod(int(place), scores.shape[1]) for place in possible[order]]

    def _ends(self, text: list[int]) -> bool:
        new = text[self.start :]
        if self.settings.end_with(new) or len(text) >= self.limit:
            return True
        return self.stop is not None and self.stop(new)

    def _finish(self, beam: Beam) -> None:
        score = beam.score / np.float32(len(beam.text) - self.start) ** np.float32(self.settings.length_penalty)
        self.finished.append(Beam(score, beam.text))
        self.finished.sort(key=lambda finished: -finished.score)
        del self.finished[self.settings.num_beams :]

    def _filled_up(self, beams: list[Beam]) -> list[Beam]:
        return beams + [Beam(np.float32(-np.inf), beams[0].text)] * (self.settings.num_beams - len(beams))

    def _is_over(self, best: Beam) -> bool:
        if len(self.finished) < self.settings.num_beams:
            return False
        if self.settings.early_stopping is True:
            return True
        penalty = self.settings.length_penalty
        at_the_end = self.settings.early_stopping == "never" and penalty > 0
        length = np.float32((self.limit if at_the_end else len(best.text)) - self.start)
        return not best.score / length ** np.float32(penalty) > self.finished[-1].score

    def texts(self) -> list[list[int]]:
        """The new tokens of the best `num_return_sequences`; the last again and again if the rules left fewer."""
        number = self.settings.num_return_sequences
        texts = [beam.text[self.start :] for beam in self.finished[:number]]
        return texts + texts[-1:] * (number - len(texts))


class ShrinkingSearch(Search):
    """The beam search of bert4keras (`AutoRegressiveDecoder.beam_search` in bert4keras/snippets.py), which an
    `end_token` brings with it.

    The likeliest candidates go on, as many as there are beams. As soon as the likeliest of all is at its end, it is the
    text. Others that are at their end are dropped, and there are fewer beams from then on. What counts is the
    log-probability, whatever the length.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.width = self.settings.num_beams

    def advance(self, log_probs: np.ndarray) -> None:
        """See `Search`."""
        scores = np.array([beam.score for beam in self.running], np.float32)[:, None] + log_probs
        candidates = self._candidates(scores)[: self.width]
        beams = [Beam(scores[row, token], [*self.running[row].text, token]) for row, token in candidates]
        kept = [place for place, beam in enumerate(beams) if not self._ends(beam.text)]
        if 0 not in kept:
            self.finished, self.running = beams[:1], []
            return
        self.width = len(kept)
        self.running = self._filled_up([beams[place] for place in kept])
        self.sources = [candidates[place][0] for place in kept]
        self.sources += self.sources[:1] * (self.settings.num_beams - self.width)


def next_log_probs(logits: np.ndarray, searches: list[Search], settings: GenerationSettings) -> np.ndarray:
    """(rows, V) logits of all beams -> what each token adds to its beam's score, under the rules"""
    beams = [(search, beam) for search in searches for beam in search.running]
    log_probs = process(
        log_softmax(logits),
        [beam.text for _, beam in beams],
        [search.start for search, _ in beams],
        [search.limit for search, _ in beams],
        settings,
    )
    for part, search in zip(np.split(log_probs, len(searches)), searches, strict=True):
        alive = [beam.score > -np.inf for beam in search.running]
        check_choice(part[alive].max(axis=0, keepdims=True))  # one beam that can go on is enough
    return warp(log_probs, settings) if settings.do_sample else log_probs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(rows, V) float32 logits -> (rows, V) float32 log-probabilities"""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
