"""Announces compilation: the first batch of each shape is compiled, which can take a minute."""

from typing import Any

import mindspore as ms
from mindspore.train import Callback, RunContext

from mindgpt.runtime.ranks import say


class CompilationNotice(Callback):
    """Prints a line before the first batch of each shape, in training and in evaluation.

    Args:
        already_announced: print no line for the very first shape: the run has just announced it.
    """

    def __init__(self, already_announced: bool = False):
        super().__init__()
        self._seen: set[tuple[int, ...]] = set()
        self._already_announced = already_announced

    def on_train_step_begin(self, run_context: RunContext) -> None:
        state = run_context.original_args()
        if not state.dataset_sink_mode:  # in sink mode the device fetches its batches itself
            self._announce(state.train_dataset_element, f"step {state.cur_step_num}")

    def on_eval_step_begin(self, run_context: RunContext) -> None:
        state = run_context.original_args()
        self._announce(state.eval_dataset_element, f"evaluation, batch {state.cur_step_num}")

    def _announce(self, columns: Any, where: str) -> None:
        rows, tokens = shape = tuple(columns[0].shape)
        if shape in self._seen or ms.get_context("mode") != ms.GRAPH_MODE:
            return
        if self._seen or not self._already_announced:
            say(f"{where}: the first {rows} rows of {tokens} tokens, compiling")
        self._seen.add(shape)
