"""Texts while they are continued, step by step: by sampling or greedily, or by a beam search.

Shape letters: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mindgpt.generation.beam_search import Search, ShrinkingSearch, next_log_probs
from mindgpt.generation.sampling import next_tokens
from mindgpt.generation.settings import GenerationSettings
from mindgpt.generation.streaming import StopStrings, TextStream
from mindgpt.generation.text_generation import completion_of
from mindgpt.serving.token_logprobs import TokenLogprob, TokenTexts, candidates_of
from mindgpt.tokenizers.tokenizer import BaseTokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class PlannedPrompt:
    """A prompt that is to be continued.

    Attributes:
        ids: its tokens.
        text: what `echo` repeats.
        last: the last token of its text, which decides whether a space follows.
        limit: tokens of the prompt and its continuation at most.
        spelled: which tokens are a part of the text, and not special ones around it.
    """

    ids: list[int]
    text: str
    last: int
    limit: int
    spelled: range


@dataclass(frozen=True)
class CompletionPlan:
    """What a request asks for, checked.

    Attributes:
        prompts: in the request's order.
        settings: for all of them.
        n: texts of each prompt that are returned.
        best_of: texts of each prompt that are made.
        logprobs: likeliest tokens to show beside each token; None: no log-probabilities.
        echo: whether the prompt is repeated before its continuation.
        logit_bias: token -> what is added to its logit.
        continues: whether there are new tokens, and not only log-probabilities of the prompt.
    """

    prompts: list[PlannedPrompt]
    settings: GenerationSettings
    n: int = 1
    best_of: int = 1
    logprobs: int | None = None
    echo: bool = False
    logit_bias: dict[int, float] = field(default_factory=dict)
    continues: bool = True

    @property
    def rows(self) -> int:
        """Rows of the batch that one text takes."""
        return self.settings.num_beams


@dataclass
class TextPiece:
    """What has come of one text of a request: `index` is that of its choice."""

    index: int
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class SampledText:
    """One text of a plan, sampled or greedy.

    Attributes:
        ids: the prompt and the new tokens.
        finished: None while it goes on.
        total_logprob: of the new tokens, where the plan compares texts.
        kept: pieces that wait for the comparison.
    """

    def __init__(
        self, plan: CompletionPlan, place: int, copy: int, stream: np.random.Generator, tokenizer: BaseTokenizer
    ):
        prompt = plan.prompts[place]
        self.plan, self.prompt, self.place, self.index = plan, prompt, place, place * plan.n + copy
        self.kept: list[TextPiece] = []
        self.ids = list(prompt.ids)
        self.finished: FinishReason | None = None
        self.total_logprob = 0.0
        self._stream = stream
        self._tokenizer = tokenizer
        self._stops = StopStrings(plan.settings.stop_strings or ())
        self._text = TextStream(tokenizer, self._stops, prompt.last)
        self._texts = TokenTexts(tokenizer, prompt.last, len(prompt.text) if plan.echo else 0)
        self._given = self._texts.offset  # characters
        self._held: list[TokenLogprob] = []  # tokens whose text is held back
        self._bias = np.array(list(plan.logit_bias), np.int64), np.array(list(plan.logit_bias.values()), np.float32)

    @property
    def mean_logprob(self) -> float:
        """Of a new token."""
        return self.total_logprob / max(1, len(self.ids) - len(self.prompt.ids))

    @property
    def new_tokens(self) -> list[int]:
        """The tokens after the prompt."""
        return self.ids[len(self.prompt.ids) :]

    def advance(self, logits: np.ndarray) -> TextPiece:
        """One more token. logits: (V,) float32, after the last one

        Raises:
            UserError: the settings leave no token.
        """
        plan, start = self.plan, len(self.prompt.ids)
        biased = logits
        if plan.logit_bias:
            biased = logits.copy()
            biased[self._bias[0]] += self._bias[1]
        token = int(
            next_tokens(biased[None], [self.ids], [start], [self.prompt.limit], plan.settings, [self._stream])[0]
        )
        self.ids.append(token)
        new = self.ids[start:]
        ends = plan.settings.end_with(new)
        is_text = not ends or plan.settings.end_token is not None
        if plan.logprobs is not None or plan.best_of > plan.n:
            (found,) = candidates_of(logits[None], [token], plan.logprobs or 0)
            self.total_logprob += found.logprob
            if plan.logprobs is not None and is_text:
                self._held.append(self._texts.add(token, found, plan.logprobs > 0))
        text = self._text.add(token) if is_text else ""
        if ends or self._stops.end_with(self._tokenizer, new, self.prompt.last):
            return self.finish("stop", text)
        if len(self.ids) >= self.prompt.limit:
            return self.finish("length", text)
        return self._piece(text, None)

    def finish(self, reason: FinishReason, text: str = "") -> TextPiece:
        """End the text; `text` is what has come just now."""
        text += self._text.end()
        self.finished = "stop" if self._text.stopped else reason
        return self._piece(text, self.finished)

    def _piece(self, text: str, finished: FinishReason | None) -> TextPiece:
        self._given += len(text)
        whole = finished is not None and not self._text.stopped
        ready = [entry for entry in self._held if whole or entry.offset < self._given]
        self._held = self._held[len(ready) :]
        return TextPiece(self.index, text, ready, finished)


class SearchedText:
    """The beams of one prompt of a plan, and in the end its `n` best texts."""

    def __init__(self, plan: CompletionPlan, place: int, stream: np.random.Generator, tokenizer: BaseTokenizer):
        prompt = plan.prompts[place]
        self.plan, self.prompt, self.index = plan, prompt, place * plan.n
        self._tokenizer = tokenizer
        self._stops = StopStrings(plan.settings.stop_strings or ())
        kind = Search if plan.settings.end_token is None else ShrinkingSearch
        self._search = kind(prompt.ids, prompt.limit, plan.settings, stream, self._stop)
        self._steps = 0

    def _stop(self, new: Sequence[int]) -> bool:
        return self._stops.end_with(self._tokenizer, new, self.prompt.last)

    def advance(self, logits: np.ndarray) -> None:
        """One more token. logits: (num_beams, V) float32, after each beam

        Raises:
            UserError: the settings leave no token.
        """
        self._search.advance(next_log_probs(logits, [self._search], self.plan.settings))
        self._steps += 1

    @property
    def running(self) -> list[list[int]]:
        """The beams, each with its prompt; none at the end of the search."""
        return [beam.text for beam in self._search.running]

    @property
    def sources(self) -> list[int] | None:
        """Which of the beams before the last step each of the beams continues; None: all were the prompt yet."""
        return self._search.sources if self._steps > 1 else None

    def texts(self) -> list[list[int]]:
        """The new tokens of the `n` best texts; those of the running beams if the search is not over."""
        texts = self._search.texts() if self._search.finished else []
        texts += [text[len(self.prompt.ids) :] for text in self.running]
        return (texts + texts[-1:] * self.plan.n)[: self.plan.n]

    def pieces(self) -> list[TextPiece]:
        """Each of the `texts` as one piece."""
        found = []
        for copy, ids in enumerate(self.texts()):
            stream = TextStream(self._tokenizer, self._stops, self.prompt.last)
            one = completion_of(self.prompt.text, ids, self.plan.settings, stream)
            reason: FinishReason = "length" if one.finish_reason == "length" else "stop"
            found.append(TextPiece(self.index + copy, one.text, finish_reason=reason))
        return found
