"""The best score of a run, the weights that reached it, and when to give up waiting for a better one."""

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

# Metrics by which a run may be judged, and whether more of them is better. The first that an evaluation returns is the
# one, unless the configuration names another.
DIRECTIONS = {"PPL": False, "ACC": True, "F1": True, "macro_F1": True, "MCC": True, "loss": False}


def judged_by(
    values: Mapping[str, float], metric: str | None = None, greater_is_better: bool | None = None
) -> tuple[str, bool]:
    """The metric among `values` that decides, and whether more of it is better.

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
    """The best score so far, and how long there has been no better one.

    Any better score is the best. Patience is stricter: it begins anew only with a score that is better by more than
    `min_delta` than the one it last began with, so that many tiny gains in a row count as one large one.

    Attributes:
        score, step: the best; None before the first that is finite.
        waited: evaluations since patience last began anew.
    """

    greater_is_better: bool = False
    min_delta: float = 0.0
    patience: int = 0
    score: float | None = None
    step: int | None = None
    reference: float | None = None
    waited: int = 0

    def update(self, step: int, score: float) -> bool:
        """Take the score of an evaluation after `step`. Returns whether it is the best."""
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
        """Whether it is time to stop; never without patience."""
        return 0 < self.patience <= self.waited

    def state(self) -> dict[str, float]:
        """What a resumed run has to know, as plain numbers; without what there is none of yet."""
        numbers = {"score": self.score, "step": self.step, "reference": self.reference, "waited": self.waited}
        return {name: number for name, number in numbers.items() if number is not None}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned."""
        self.score, self.reference = state.get("score"), state.get("reference")
        self.step = int(state["step"]) if "step" in state else None
        self.waited = int(state["waited"])


class BestCheckpoint:
    """Keeps one checkpoint of weights: `<folder>/checkpoint_best/rank_<r>/<prefix>_rank_<r>-<epoch>_<step>.ckpt`.

    In a folder of its own, so that neither `keep_checkpoint_max` nor whoever asks for a run's newest checkpoint meets
    it. `config.json` lies beside it.

    Args:
        folder: where the run's other checkpoint folders are.
        prefix: the beginning of the file's name.
        progress: the plan of the run.
        model: whose parameters are the weights.
        config: written beside them.
        rank: the process's number.

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
        self._own: list[Path] = []  # what the run wrote and has not deleted
        self._named = False  # whether the stem is that of this run's files

    def restore(self) -> None:
        """For a resumed run: what the last run wrote is its own, and the next best replaces it."""
        self._own, self.stem = files_to_continue(self.folder, self.stem)
        self._named = True

    def save(self, step: int) -> Path:
        """Write the weights as they are after `step`, then delete what was this run's best before.

        A kill at any instant leaves a whole file, and of two of this run the newer is the better one. Other runs' files
        stay, under other names. Before the first step the name ends in `-0_0`. Returns the path.

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
