"""Steps and epochs of a run. Steps count updates of the weights, from 1."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunProgress:
    """The length of a run, and the epochs of its steps."""

    epochs: int
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 1; 0 for step 0, before training."""
        return (step - 1) // self.steps_per_epoch + 1 if step else 0

    def step_in_epoch(self, step: int) -> int:
        """The number of a step within its epoch, from 1; 0 for step 0, before training."""
        return (step - 1) % self.steps_per_epoch + 1 if step else 0
