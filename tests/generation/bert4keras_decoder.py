"""bert4keras's `AutoRegressiveDecoder`, written from its description: what is kept, what ends a text, in which order
texts come back. The random numbers are given, so that two programs can be compared choice by choice."""

import numpy as np


def kept_probabilities(logits, topk=None, topp=None, temperature=1):
    """(V,) logits -> (V,) float64: softmax(logits / temperature), of it the `topk` likeliest, of these, renormalised,
    the smallest head whose sum is at least `topp`, renormalised."""
    probabilities = np.exp(np.asarray(logits, np.float64) / temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")[:topk]
    head = probabilities[order] / probabilities[order].sum()
    if topp is not None:
        size = next((n for n in range(1, len(head)) if head[:n].sum() >= topp), len(head))
        order, head = order[:size], head[:size] / head[:size].sum()
    kept = np.zeros(len(probabilities))
    kept[order] = head
    return kept


class AutoRegressiveDecoder:
    """Texts without a start token.

    Args:
        logits_of: (ids of the prompt, new ids) -> (V,) logits.
        prompt: ids.
        end_id, maxlen, minlen: as there; both count new ids.
    """

    def __init__(self, logits_of, prompt, end_id, maxlen, minlen=1):
        self.logits_of, self.prompt, self.end_id, self.maxlen, self.minlen = logits_of, prompt, end_id, maxlen, minlen

    def is_finished(self, ids, min_ends):
        return len(ids) >= self.minlen and ids[-1] == self.end_id and ids.count(self.end_id) >= min_ends

    def random_sample(self, uniforms, topk=None, topp=None, temperature=1, min_ends=1):
        """One text for each of `uniforms`, functions that return a number in [0, 1)."""
        running, results = [([], uniform) for uniform in uniforms], []
        for _ in range(self.maxlen):
            for ids, uniform in running:
                kept = kept_probabilities(self.logits_of(self.prompt, ids), topk, topp, temperature)
                ids.append(int(np.searchsorted(np.cumsum(kept), uniform() * kept.sum(), side="right")))
            results += [ids for ids, _ in running if self.is_finished(ids, min_ends)]
            running = [(ids, uniform) for ids, uniform in running if not self.is_finished(ids, min_ends)]
        return results + [ids for ids, _ in running]

    def beam_search(self, topk, min_ends=1):
        """The likeliest text if it is finished; what else is finished is dropped, with its place among the beams."""
        beams = [([], 0.0)]
        for _ in range(self.maxlen):
            candidates = []
            for ids, score in beams:
                probabilities = kept_probabilities(self.logits_of(self.prompt, ids))
                candidates += [([*ids, token], score + np.log(p)) for token, p in enumerate(probabilities) if p > 0]
            beams = sorted(candidates, key=lambda beam: -beam[1])[:topk]
            if self.is_finished(beams[0][0], min_ends):
                return beams[0][0]
            beams = [beam for beam in beams if not self.is_finished(beam[0], min_ends)]
            topk = len(beams)
        return beams[0][0]
