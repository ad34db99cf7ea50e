"""Splits Chinese text into words by the package `jieba`, in several processes where there is much of it.

Such a process runs `serve`: it answers each line of JSON, a list of texts, with one, the lengths of the words of each
text. jieba is pure Python, so threads would not help.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import pairwise

from mindgpt.config.errors import UserError
from mindgpt.io.processes import available_cores

MUCH_TEXT = 1 << 19  # characters, which take about a second; starting the processes takes as long
_SENT = 1 << 14  # characters that are worth sending to another process
_PROGRAM = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"
_CHUNKS = 4  # for each process: the shorter the last chunk, the sooner all are done


def check_jieba() -> None:
    """Raise a UserError if the package is not installed."""
    if find_spec("jieba") is None:
        raise UserError(
            "This tokenizer splits text into words by the package jieba, which is not installed: pip install jieba."
        )


@cache
def _words() -> Callable[[str], list[str]]:
    """`jieba.lcut` with a dictionary of its own: words that a program adds to jieba's do not change ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is of 2020: invalid escape sequences, pkg_resources
        import jieba
    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer().lcut


def split_words(text: str) -> list[str]:
    """The words of a text, as `jieba.cut` gives them by default (with HMM); joined, they are the text."""
    return _words()(text)


class WordSplitter:
    """Splits batches of texts into words; starts one process for each core once there has been `MUCH_TEXT`.

    Several threads may call it.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["WordSplitter"], tuple[()]]:
        """A copy starts processes of its own, so that tokenizers can be copied and pickled."""
        return WordSplitter, ()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text.

        Raises:
            UserError: one of the processes has ended.
        """
        characters = sum(map(len, texts))
        self._seen += characters
        if self._seen < MUCH_TEXT or characters < _SENT or len(texts) == 1 or _cores() == 1:
            return [split_words(text) for text in texts]
        with self._lock:
            return self._split_in_processes(texts, _cores())

    def _split_in_processes(self, texts: Sequence[str], cores: int) -> list[list[str]]:
        if not self._workers:
            self._workers = [_Worker() for _ in range(cores)]
            weakref.finalize(self, _end, self._workers)
        chunks = _chunks(texts, _CHUNKS * cores)
        rows: list[list[list[str]]] = [[] for _ in chunks]
        remaining = iter(range(len(chunks)))  # each is taken by one thread: `next` holds the interpreter's lock

        def work(worker: "_Worker") -> None:
            for number in remaining:
                rows[number] = worker.words(chunks[number])

        with ThreadPoolExecutor(len(self._workers)) as threads:
            list(threads.map(work, self._workers))
        return [words for chunk in rows for words in chunk]


class _Worker:
    """A process that splits texts."""

    def __init__(self) -> None:
        # Not by `multiprocessing`, which would run the program that called this a second time.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *(folder or os.getcwd() for folder in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdin is not None and self.process.stdout is not None  # pipes were asked for
        self.to_worker, self.from_worker = self.process.stdin, self.process.stdout

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text."""
        try:
            self.to_worker.write(json.dumps(texts) + "\n")
            self.to_worker.flush()
            answer = self.from_worker.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(
                f"A process that splits text into words has ended (exit status {self.process.wait()}). Was there too "
                "little memory? --num_workers 1 does without such processes."
            )
        return [_pieces(text, lengths) for text, lengths in zip(texts, json.loads(answer), strict=True)]


def _pieces(text: str, lengths: Sequence[int]) -> list[str]:
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return [text[begin:end] for begin, end in pairwise(ends)]


def _chunks(texts: Sequence[str], count: int) -> list[Sequence[str]]:
    """The texts, in order, in about `count` runs of about as many characters."""
    size = sum(map(len, texts)) / count
    chunks: list[list[str]] = [[]]
    held = 0
    for text in texts:
        chunks[-1].append(text)
        held += len(text)
        if held >= size:
            chunks.append([])
            held = 0
    return [chunk for chunk in chunks if chunk]


def _cores() -> int:
    """As many as the threads of `tokenizers` (`mindgpt.data.blocks.use_cores`)."""
    given = os.environ.get("RAYON_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else available_cores()


def _end(workers: list[_Worker]) -> None:
    """A worker ends with its input."""
    for worker in workers:
        with suppress(BrokenPipeError):  # it has ended before, with texts left to send
            worker.to_worker.close()
        worker.from_worker.close()
        worker.process.wait()


def serve() -> None:
    """What each of the processes runs, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that it works for gets it, too, and ends it
    for line in sys.stdin:
        print(json.dumps([list(map(len, split_words(text))) for text in json.loads(line)]), flush=True)
