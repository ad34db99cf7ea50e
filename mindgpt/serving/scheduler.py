"""The thread that owns the model: it continues the texts of all requests together, a token of each in every step.

A request waits in line until there are free rows in the batch. Its prompt is then read, its texts join at the next step
and leave when they are done. Random numbers are each text's own, so that what a text becomes does not depend on others.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.generation.engine import Generator
from mindgpt.generation.requests import random_streams
from mindgpt.generation.running_batch import RunningBatch
from mindgpt.serving.api_errors import ApiError, shutting_down
from mindgpt.serving.continuations import CompletionPlan, SampledText, SearchedText, TextPiece
from mindgpt.serving.server_metrics import ServerMetrics
from mindgpt.serving.token_logprobs import TokenLogprob, TokenTexts, candidates_of
from mindgpt.tokenizers.tokenizer import BaseTokenizer

PREFILL_PER_STEP = 512
"""Tokens of new prompts after which those that are running get their next token."""

log = logging.getLogger("mindgpt.serving")

OnPiece = Callable[[TextPiece | ApiError | None], None]


class CompletionJob:
    """A request in the scheduler.

    Args:
        plan: what is asked for.
        on_piece: called in the scheduler's thread with each piece; at the end with None, or with an error. It must not
            block.
        deadline: `time.monotonic()` at which its texts end with what they have.
    """

    def __init__(self, plan: CompletionPlan, on_piece: OnPiece, deadline: float):
        self.plan, self.on_piece, self.deadline = plan, on_piece, deadline
        self.cancelled = False
        self.asked = time.monotonic()
        self.first_token: float | None = None
        self.new_tokens = 0
        self.streams = random_streams(plan.settings.seed, None, len(plan.prompts), plan.best_of)
        self.to_score = list(range(len(plan.prompts))) if plan.echo and plan.logprobs is not None else []
        copies = 1 if plan.rows > 1 else plan.best_of
        self.to_start = [(place, copy) for place in range(len(plan.prompts)) for copy in range(copies)]
        if not plan.continues:
            self.to_start = []
        self.running: list[SampledText | SearchedText] = []
        self.ended: dict[int, list[SampledText]] = {}  # of each prompt, where only the best of the texts are returned
        self.started = False

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is left to do."""
        return not (self.to_score or self.to_start or self.running)


class Scheduler:
    """See the module. `start` it, `submit` jobs, and `stop` it.

    Args:
        generator: of the model.
        tokenizer: the model's own.
        max_batch: texts at once, where each beam of a search counts as one.
        max_queue: requests that may wait.
        slots: tokens of a text at most, its prompt included.
        metrics: what is counted.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: BaseTokenizer,
        max_batch: int,
        max_queue: int,
        slots: int,
        metrics: ServerMetrics,
    ):
        self.generator, self.tokenizer = generator, tokenizer
        self.max_batch, self.max_queue = max_batch, max_queue
        self.metrics = metrics
        self.batch = RunningBatch(generator.graphs, max_batch, slots)
        self._rows: dict[SampledText | SearchedText, tuple[CompletionJob, list[int]]] = {}
        self._jobs: list[CompletionJob] = []  # in the order in which they came
        self._scoring: tuple[CompletionJob, int, Iterator[None]] | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    # ---- other threads -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compile the graphs, and start the thread."""
        with self.generator.reserved(), self.generator.running():
            self.batch.warm_up()
        self._thread.start()

    def submit(self, job: CompletionJob) -> None:
        """Put a job in line.

        Raises:
            ApiError: the line is full, or the server is about to end.
        """
        with self._changed:
            if self._stopping:
                raise shutting_down()
            waiting = sum(not other.started for other in self._jobs)
            if waiting >= self.max_queue + max(0, self.batch.free):
                raise ApiError(
                    429,
                    f"{waiting} requests are waiting already, and no more may (max_queue). Try again later.",
                    code="queue_full",
                    retry_after=1 + waiting // self.max_batch,
                )
            self._jobs.append(job)
            self.metrics.waiting.set(waiting + 1)
            self._changed.notify()

    def cancel(self, job: CompletionJob) -> None:
        """Drop a job, whose client is gone: its rows are free from the next step on."""
        job.cancelled = True
        with self._changed:
            self._changed.notify()

    @property
    def is_idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._jobs

    def stop(self) -> None:
        """End the thread after this step; the jobs that are left get an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # ---- the scheduler's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self.generator.reserved():
            while True:
                with self._changed:
                    while not self._stopping and not self._jobs:
                        self._changed.wait()
                    if self._stopping:
                        break
                    jobs = list(self._jobs)
                try:
                    self._turn(jobs)
                except UserError as error:  # of the whole batch: its logits are no numbers
                    self._fail_all(ApiError(500, str(error), code="broken_model"))
                except Exception:
                    log.exception("a step has failed; the requests that were running get an error")
                    self._fail_all(ApiError(500, "The server has failed on this request; see its log."))
        for job in list(self._jobs):
            self._end(job, shutting_down())

    def _turn(self, jobs: list[CompletionJob]) -> None:
        """A step of everything that is running, after letting in what there is room for."""
        with self.generator.running():
            self._drop(jobs)
            if self._scoring is None:
                self._admit()
            self._score()
            if self._rows:
                self._step()
        for job in jobs:
            if job.is_done:
                self._end(job, None)
        self.metrics.running.set(len(self.batch.rows))
        self.metrics.waiting.set(sum(not job.started for job in self._jobs))

    def _drop(self, jobs: list[CompletionJob]) -> None:
        """End the jobs whose client is gone or whose time is up."""
        now = time.monotonic()
        for job in jobs:
            if job.cancelled:
                self._end(job, None)
            elif now > job.deadline:
                self._time_is_up(job)

    def _time_is_up(self, job: CompletionJob) -> None:
        """End a job's texts with what they have; nothing is an error."""
        plan = job.plan
        if job.first_token is None or plan.best_of > plan.n:
            message = "The time for this request (timeout) was up before its text was there."
            self._end(job, ApiError(504, message, code="timeout"))
            return
        for text in list(job.running):
            for piece in text.pieces() if isinstance(text, SearchedText) else [text.finish("length")]:
                self._hand_on(job, text, piece)
            self._leave(text)
        for place, copy in job.to_start:
            for number in range(plan.n if plan.rows > 1 else 1):
                job.on_piece(TextPiece(place * plan.n + copy + number, finish_reason="length"))
        job.to_start = []

    def _admit(self) -> None:
        """Read prompts into free rows; those of requests with the fewest running texts first."""
        budget = PREFILL_PER_STEP
        while budget > 0 and self.batch.free:
            waiting = [job for job in self._jobs if (job.to_start or job.to_score) and not job.is_done]
            waiting = [job for job in waiting if not job.cancelled]
            if not waiting:
                return
            job = min(waiting, key=lambda job: len(job.running))  # of equal ones the first
            job.started = True
            if job.to_score:
                place = job.to_score[0]
                self._scoring = job, place, self._scores(job, place)
                return
            if job.plan.rows > self.batch.free:
                return  # it is its turn, so nobody overtakes it
            budget -= self._start_texts(job)

    def _start_texts(self, job: CompletionJob) -> int:
        """Let texts of a job's next prompt join, as many as there is room for. Returns how many tokens were read."""
        place, first = job.to_start[0]
        prompt, plan = job.plan.prompts[place], job.plan
        alike = sum(other == place for other, _ in job.to_start)
        copies = 1 if plan.rows > 1 else min(self.batch.free, alike)
        numbers, logits = self.batch.join(prompt.ids, copies * plan.rows)
        del job.to_start[:copies]
        self.metrics.prompt_tokens.inc(len(prompt.ids))
        texts: list[SampledText | SearchedText] = []
        for copy in range(first, first + copies):
            stream = job.streams[place * plan.best_of + copy]
            if plan.rows > 1:
                texts.append(SearchedText(plan, place, stream, self.tokenizer))
            else:
                texts.append(SampledText(plan, place, copy, stream, self.tokenizer))
        if plan.echo and plan.logprobs is None:
            echoes = range(plan.n) if plan.rows > 1 else range(first, min(first + copies, plan.n))
            for copy in echoes:
                job.on_piece(echoed(plan, place, copy))
        for number, text in enumerate(texts):
            job.running.append(text)
            self._rows[text] = job, numbers[number * plan.rows : (number + 1) * plan.rows]
        for text in texts:
            self._advance(text, np.repeat(logits[None], plan.rows, axis=0))
        return len(prompt.ids)

    def _score(self) -> None:
        """Compute the log-probabilities of some more tokens of a prompt that is echoed."""
        if self._scoring is None:
            return
        job, place, steps = self._scoring
        if job not in self._jobs:
            self._scoring = None
            return
        with suppress(StopIteration):
            next(steps)
            return
        self._scoring = None
        job.to_score.remove(place)

    def _scores(self, job: CompletionJob, place: int) -> Iterator[None]:
        prompt, plan = job.plan.prompts[place], job.plan
        ids, graphs = prompt.ids, self.generator.graphs
        found = {}
        for slots, logits in graphs.logits_within(ids[:-1]) if len(ids) > 1 else ():
            targets = [ids[slot + 1] for slot in slots]
            if not np.isfinite(logits.max(axis=-1)).all():
                graphs.clear()
                raise UserError("The model's logits are not numbers (NaN or infinity): its weights are broken.")
            found.update(zip((slot + 1 for slot in slots), candidates_of(logits, targets, plan.logprobs), strict=True))
            yield
        texts = TokenTexts(self.tokenizer, None)
        entries = []
        for number, token in enumerate(ids):
            spelled = number in prompt.spelled
            entries.append(texts.add(token, found.get(number), plan.logprobs > 0, spelled))
        self.metrics.prompt_tokens.inc(0 if plan.continues else len(ids))
        for copy in range(plan.n):
            job.on_piece(echoed(plan, place, copy, entries))

    def _step(self) -> None:
        """One more token of every text."""
        began = time.monotonic()
        members = list(self._rows.items())
        for text, (_, numbers) in members:
            if isinstance(text, SearchedText) and (sources := text.sources) is not None:
                self.batch.reorder(numbers, [numbers[source] for source in sources])
        numbers = [number for _, (_, own) in members for number in own]
        texts = [ids for text, _ in members for ids in (text.running if isinstance(text, SearchedText) else [text.ids])]
        logits = self.batch.decode(numbers, texts)
        done = 0
        for text, (_, own) in members:
            self._advance(text, logits[done : done + len(own)])
            done += len(own)
        self.metrics.time_per_token.observe(time.monotonic() - began)

    def _advance(self, text: SampledText | SearchedText, logits: np.ndarray) -> None:
        if text not in self._rows:  # another text of its request has failed
            return
        job, _ = self._rows[text]
        try:
            if isinstance(text, SearchedText):
                text.advance(logits)
                pieces = [] if text.running else text.pieces()
                ended = not text.running
            else:
                pieces = [text.advance(logits[0])]
                ended = text.finished is not None
        except UserError as error:  # the settings leave no token
            self._end(job, ApiError(400, str(error)))
            return
        new = 1 if isinstance(text, SampledText) else sum(map(len, text.texts()) if ended else ())
        job.new_tokens += new
        self.metrics.new_tokens.inc(new)
        if job.first_token is None:
            job.first_token = time.monotonic()
            self.metrics.time_to_first_token.observe(job.first_token - job.asked)
        for piece in pieces:
            self._hand_on(job, text, piece)
        if ended:
            self._leave(text)

    def _hand_on(self, job: CompletionJob, text: SampledText | SearchedText, piece: TextPiece) -> None:
        """Give a piece to the client; where only the best texts are returned, when all of a prompt are there."""
        plan = job.plan
        if plan.best_of == plan.n or isinstance(text, SearchedText):
            job.on_piece(piece)
            return
        text.kept.append(piece)
        if piece.finish_reason is None:
            return
        ended = job.ended.setdefault(text.place, [])
        ended.append(text)
        if len(ended) == plan.best_of:
            ended.sort(key=lambda one: (-one.mean_logprob, one.index))
            for number, one in enumerate(ended[: plan.n]):
                for own in one.kept:
                    own.index = text.place * plan.n + number
                    job.on_piece(own)

    def _leave(self, text: SampledText | SearchedText) -> None:
        job, numbers = self._rows.pop(text)
        self.batch.leave(numbers)
        job.running.remove(text)

    def _end(self, job: CompletionJob, error: ApiError | None) -> None:
        """Take a job out, and tell its client."""
        if job not in self._jobs:
            return
        for text in list(job.running):
            self._leave(text)
        job.to_start, job.to_score = [], []
        with self._changed:
            self._jobs.remove(job)
        job.on_piece(error)

    def _fail_all(self, error: ApiError) -> None:
        """End all jobs that have begun, and forget what the cache holds."""
        self._scoring = None
        for job in [job for job in self._jobs if job.started]:
            self._end(job, error)
        self.batch.clear()


def echoed(plan: CompletionPlan, place: int, copy: int, tokens: Sequence[TokenLogprob] = ()) -> TextPiece:
    """A prompt as the first piece of one of its texts; the last, too, if it is not continued."""
    finished = None if plan.continues else "length"
    return TextPiece(place * plan.n + copy, plan.prompts[place].text, list(tokens), finished)
