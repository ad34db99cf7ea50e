"""A batch that texts join and leave at any step (continuous batching, Yu et al. 2022, section 3.1)."""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from mindgpt.generation.engine import Batch
from mindgpt.generation.inference_graphs import InferenceGraphs


class RunningBatch(Batch):
    """Texts that are continued together. One joins between two steps, its prompt being read into a free row of the
    key/value cache, and leaves when it is done; what the others get does not depend on it.

    There is one decode graph. The rows in use are kept together at the front, so that devices whose kernels can do so
    compute those alone.

    Args:
        graphs: of the model. Only this batch uses their decode graph.
        rows: texts at once at most.
        slots: tokens that a text can have in the end.
    """

    def __init__(self, graphs: InferenceGraphs, rows: int, slots: int):
        super().__init__(graphs, slots)
        self.most = rows
        self.shape = graphs.shape_for(rows, self.longest)
        self._numbers = count()

    @property
    def free(self) -> int:
        """How many texts can join."""
        return self.most - len(self.rows)

    def warm_up(self) -> None:
        """Compile everything, so that no text has to wait for it."""
        numbers, _ = self.join([0], min(2, self.most))
        self.decode(numbers, [[0, 0]] * len(numbers))
        self.leave(numbers[:1])
        if len(numbers) > 1:
            self._move(numbers[1], 0)
            self.leave(numbers[1:])
        self.graphs.log_probs([0, 0])

    def join(self, text: Sequence[int], copies: int = 1) -> tuple[list[int], np.ndarray]:
        """Add a text, `copies` times; there must be as many `free` rows.

        Returns:
            The numbers of the copies, and the logits at the end of the text, (V,) float32.

        Raises:
            UserError: logits that are no numbers.
        """
        assert copies <= self.free, f"{copies} texts, but {self.free} free rows"
        self._store()
        free = self._free_rows()
        numbers = [next(self._numbers) for _ in range(copies)]
        for number in numbers:
            self.rows[number], self.starts[number] = next(free), 0
        try:
            return numbers, self._checked(self._read([text], [numbers]))[0]
        except BaseException:
            self.leave(numbers)
            raise

    def leave(self, numbers: Sequence[int]) -> None:
        """Give the rows of these texts free."""
        for number in numbers:
            del self.rows[number], self.starts[number]
        self._unstored = [entry for entry in self._unstored if entry[-1] in self.rows]

    def clear(self) -> None:
        """Forget all texts, and what the cache holds."""
        self.leave(list(self.rows))
        self.graphs.clear()

    def _free_rows(self) -> Iterator[int]:
        """The rows that no text has, the first ones first."""
        used = set(self.rows.values())
        return (row for row in range(self.most) if row not in used)

    def _shrink(self, numbers: Sequence[int], length: int) -> None:
        """Move texts to the front if the last row in use is at twice their number: a step costs a little for each row,
        moving a text as much as a few steps."""
        if max(self.rows.values()) + 1 < 2 * len(self.rows):
            return
        for number, row in sorted(self.rows.items(), key=lambda item: -item[1]):
            free = next(self._free_rows(), row)
            if free < row:
                self._move(number, free)

    def _move(self, number: int, row: int) -> None:
        self.graphs.copy(self.shape, self.rows[number], self.shape, row)
        self.rows[number] = row
