"""The best score of a run, its weights, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindspore import nn

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.run_folder import free_stem, record_checkpoints
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.config.errors import UserError
from mindgpt.train.checkpoint_monitor import files_to_continue
from mindgpt.train.progress import RunProgress

# Metrics that can decide which weights are best, and whether greater is better. The first one that an evaluation
# returns is used, unless the configuration names another.
DIRECTIONS = {"PPL": False, "ACC": True, "F1": True, "macro_F1": True, "MCC": True, "loss": False} | dict.fromkeys(
    ("rouge-l", "rouge-1", "bleu-4", "bleu-1"), True
)


def deciding_metric(
    values: Mapping[str, float], metric: str | None = None, greater_is_better: bool | None = None
) -> tuple[str, bool]:
    """The metric among `values` that decides, and whether greater is better.

    Raises:
        UserError: there is no such metric, or its direction is not known and not given.
    """
    if metric is None:
        metric = next((name for name in DIRECTIONS if name in values), next(iter(values)))
    if metric not in values:
        raise UserError(f"EvalCallBack.metric: {metric!r} is not evaluated here; there are: {', '.join(values)}")
    if greater_is_better is None:
        greater_is_better = DIRECTIONS.get(metric)
    if greater_is_better is None:
        raise UserError(
            f"EvalCallBack.greater_is_better: say True or False, and metric: {metric}; for {metric} it is not known"
        )
    return metric, greater_is_better


@dataclass
class BestScore:
    """The best score so far, and the number of evaluations without improvement.

    Any better score becomes the best. Early stopping is stricter: the count restarts only with a score that is better
    than the reference by more than `min_delta`, so many tiny gains in a row count as one large one.

    Attributes:
        score, step: the best; None before the first finite score.
        reference: the score at which the count last restarted.
        waited: evaluations since then.
    """

    greater_is_better: bool = False
    min_delta: float = 0.0
    patience: int = 0
    score: float | None = None
    step: int | None = None
    reference: float | None = None
    waited: int = 0

    def update(self, step: int, score: float) -> bool:
        """Add the score of an evaluation after `step`. Returns whether it is the best."""
        if math.isfinite(score) and self._gain(score, self.reference) > self.min_delta:
            self.reference, self.waited = score, 0
        else:
            self.waited += 1
        best = math.isfinite(score) and self._gain(score, self.score) > 0
        if best:
            self.score, self.step = score, step
        return best

    def _gain(self, score: float, earlier: float | None) -> float:
        if earlier is None:
            return math.inf
        return score - earlier if self.greater_is_better else earlier - score

    @property
    def exhausted(self) -> bool:
        """Whether to stop early; never if `patience` is 0."""
        return 0 < self.patience <= self.waited

    def state(self) -> dict[str, float]:
        """The state for `restore`, as plain numbers; without values that do not exist yet."""
        numbers = {"score": self.score, "step": self.step, "reference": self.reference, "waited": self.waited}
        return {name: number for name, number in numbers.items() if number is not None}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from a `state`."""
        self.score, self.reference = state.get("score"), state.get("reference")
        self.step = int(state["step"]) if "step" in state else None
        self.waited = int(state["waited"])


class BestCheckpoint:
    """Saves the best weights: `<folder>/checkpoint_best/rank_<r>/<prefix>_rank_<r>-<epoch>_<step>.ckpt`.

    The folder is separate, so that neither `keep_checkpoint_max` nor the search for the newest checkpoint finds them.
    `config.json` lies beside them.

    Args:
        folder: holds the run's other checkpoint folders.
        prefix: of the file's name.
        progress: the length of the run.
        model: its parameters are the weights.
        config: written beside them.
        rank: of this process.

    Attributes:
        written: the checkpoint that this process wrote last.
    """

    def __init__(
        self, folder: Path, prefix: str, progress: RunProgress, model: nn.Cell, config: GPT2Config, rank: int = 0
    ):
        self.folder = Path(folder) / "checkpoint_best" / f"rank_{rank}"
        self.stem = f"{prefix}_rank_{rank}"
        self.progress = progress
        self.model = model
        self.config = config
        self.written: Path | None = None
        self._own: list[Path] = []  # files of this run
        self._named = False  # whether `stem` is final

    def restore(self) -> None:
        """For a resumed run: the next best weights replace those of the last run."""
        self._own, self.stem = files_to_continue(self.folder, self.stem)
        self._named = True

    def save(self, step: int) -> Path:
        """Write the weights after `step`, then delete this run's previous best. Returns the path.

        After a kill at any instant, the newest file of this run is whole and the best. Other runs' files are kept.
        Before the first step the name ends in `-0_0`.

        Raises:
            UserError: it cannot be written.
        """
        if not self._named:
            self.stem, self._named = free_stem([self.folder], self.stem), True
        epoch, in_epoch = self.progress.epoch(step), self.progress.step_in_epoch(step)
        path = self.folder / f"{self.stem}-{epoch}_{in_epoch}.ckpt"
        self.config.save_pretrained(self.folder, type(self.model).__name__)
        save_checkpoint(path, {**self.model.parameters_dict(), "epoch_num": epoch, "step_num": step})
        record_checkpoints(self.folder, [path])
        for file in self._own:
            if file != path:
                file.unlink(missing_ok=True)
        self.written, self._own = path, [path]
        return path
