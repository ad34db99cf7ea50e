"""Plots of training runs from their logs: loss, evaluation, learning rate, gradient norm.

MindSpore is not imported, so that `tools/plot_run.py` starts fast; matplotlib only when something is drawn.
"""

import dataclasses
import importlib.util
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write
from mindgpt.train.run_log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_FILE = "plot.png"
HOW_TO_INSTALL = 'pip install "mindgpt[plot]" (from a checkout: pip install ".[plot]")'

_INK, _GRID = "#333333", "#dddddd"
_COLOURS = ("#1f77b4", "#d95f02", "#2a9d5c", "#8e44ad", "#c2185b", "#7f6a3d", "#008b8b", "#555555")
_SKIPPED = "#c0392b"
_EVALUATION = "#d95f02"  # in the plot of one run; of several runs, each has its own colour
_IN_LOSS_PANEL = ("step", "loss", "PPL")  # PPL is exp(loss)
_SMOOTHED_PART = 60  # the smoothing window reaches over a 60th of the run to either side
_LOGARITHMIC_FROM = 30  # ratio of the largest to the smallest gradient norm


@dataclass(frozen=True)
class RunHistory:
    """The logs of a run.

    Attributes:
        label: the run's name in the plot.
        steps: (n,) float64, numbers of the steps.
        columns: name in the log -> (n,) float64, one value per step; NaN for null and missing values.
        evaluations: the records of the evaluations, each with its `step`; may be empty.
    """

    label: str
    steps: np.ndarray
    columns: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def evaluated(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(m,) steps and (m,) values of the evaluations that have a number under `name`."""
        pairs = [(record["step"], record[name]) for record in self.evaluations if _is_number(record.get(name))]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps, float), np.array(values, float)


def read_run(folder: str | os.PathLike[str]) -> RunHistory:
    """The history of the run with the output folder `folder`, which may have been killed.

    Raises:
        UserError: there is no log, or it is empty or broken.
    """
    folder = Path(folder)
    log, evaluations = (folder / "log" / name for name in ("train.jsonl", "eval.jsonl"))
    if not log.is_file():
        found = f"has no log/{log.name}" if folder.is_dir() else f"there is no such folder (looked from {Path.cwd()})"
        raise UserError(f"{folder}: {found}; name the output folder of a training run, such as output/")
    records = read_log(log)
    if not records:
        raise UserError(f"{log}: holds no step yet, so there is nothing to draw")
    names = ("loss", "learning_rate", "grad_norm")
    columns = {
        name: np.array([record[name] if _is_number(record.get(name)) else np.nan for record in records])
        for name in names
    }
    steps = np.array([record["step"] for record in records], float)
    return RunHistory(os.fspath(folder), steps, columns, read_log(evaluations) if evaluations.is_file() else [])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def smoothed(values: np.ndarray, reach: int) -> np.ndarray:
    """A centred moving average: the mean of each value and its `reach` neighbours on either side.

    The window shrinks symmetrically towards the ends. NaN is ignored; the mean of no value is NaN.

    Args:
        values: (n,) float64.
        reach: neighbours on either side.

    Returns:
        (n,) float64.
    """
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    index = np.arange(len(values))
    near = np.minimum(reach, np.minimum(index, index[::-1]))
    first, end = index - near, index + near + 1
    number = counts[end] - counts[first]
    return np.where(number > 0, (sums[end] - sums[first]) / np.maximum(number, 1), np.nan)


def plot_finished_run(folder: Path, output: Path) -> str:
    """Plot a run that has just ended. Returns the path of the plot, or why there is none.

    Never raises: the training took hours, and the plot can be made again.
    """
    again = f"python tools/plot_run.py {folder}"
    if importlib.util.find_spec("matplotlib") is None:
        return f"needs matplotlib: {HOW_TO_INSTALL}, then {again}"
    try:
        return str(plot_runs([folder], output))
    except Exception as error:
        return f"could not be drawn ({error}); to try again: {again}"


def plot_runs(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> Path:
    """Plot one run, or several in one plot, as a PNG. Returns its path.

    Raises:
        UserError: matplotlib is not installed, a folder holds no log, or the plot cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"drawing needs matplotlib: {HOW_TO_INSTALL}")
    from mindgpt.train.plot_fonts import drawable, fonts_for

    runs = [read_run(folder) for folder in folders]
    with fonts_for("".join(run.label for run in runs)) as missing, atomic_write(output) as file:
        runs = [dataclasses.replace(run, label=drawable(_label(run), missing)) for run in runs]
        draw(runs).savefig(file, format="png", dpi=120)
    return Path(output)


def _label(run: RunHistory) -> str:
    """The run's label; matplotlib would leave one that begins with an underscore out of the legend."""
    return f"./{run.label}" if run.label.startswith("_") else run.label


def draw(runs: Sequence[RunHistory]) -> "Figure":
    """The figure, with panels for the loss, other scores of the evaluations, the learning rate, the gradient norm.

    The scores of one run share a panel; of several runs, each score has its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    one = len(runs) == 1
    others = {name: None for run in runs for record in run.evaluations for name in record if name not in _IN_LOSS_PANEL}
    scores = [name for name in others if any(len(run.evaluated(name)[0]) for run in runs)]
    groups = [scores] * bool(scores) if one else [[name] for name in scores]
    heights = [3.2, *[1.5] * len(groups), 1.1, 1.1]
    figure = Figure(figsize=(9.5, 1.08 * sum(heights) + 1), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    loss, *middle, rate, norm = panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for run, colour in zip(runs, itertools.cycle(_COLOURS), strict=False):
        _draw_losses(loss, run, colour, one)
        for panel, group in zip(middle, groups, strict=True):
            for name, own in zip(group, itertools.cycle(_COLOURS[1:]), strict=False):
                _draw_points(panel, *run.evaluated(name), own if one else colour, name)
        rate.plot(run.steps, run.columns["learning_rate"], color=colour, **_marks(run.steps))
        norm.plot(run.steps, run.columns["grad_norm"], color=colour, linewidth=0.9, **_marks(run.steps))
    names = [group[0] if len(group) == 1 else "scores" for group in groups]
    _style(panels, ["loss", *names, "learning rate", "gradient norm"], runs)
    _legends(loss, [panel for panel, group in zip(middle, groups, strict=True) if len(group) > 1])
    figure.suptitle(_title(runs), fontsize=13, color=_INK)
    figure.align_ylabels(panels)
    return figure


def _draw_losses(panel: "Axes", run: RunHistory, colour: str, one: bool) -> None:
    loss, label = run.columns["loss"], "training" if one else run.label
    reach = len(loss) // _SMOOTHED_PART
    if reach:
        panel.plot(run.steps, loss, color=colour, linewidth=0.7, alpha=0.3)
        label = f"{label}, mean of {2 * reach + 1} steps" if one else label
        panel.plot(run.steps, smoothed(loss, reach), color=colour, linewidth=1.8, label=label)
    else:
        panel.plot(run.steps, loss, color=colour, linewidth=1.4, label=label, **_marks(run.steps))
    steps, values = run.evaluated("loss")
    if not one:
        _draw_points(panel, steps, values, colour)
        return
    if len(steps):
        lowest = int(np.argmin(values))
        where = f"after step {steps[lowest]:.0f}" if steps[lowest] else "before training"
        label = f"evaluation, lowest {values[lowest]:.4g} {where}"
        _draw_points(panel, steps, values, _EVALUATION, label)
        panel.plot(steps[lowest], values[lowest], "*", color=_EVALUATION, markersize=13, markeredgecolor="white")
    skipped = run.steps[~np.isfinite(loss)]
    if len(skipped):  # ticks at the foot of the panel
        foot = {"transform": panel.get_xaxis_transform(), "label": f"{len(skipped)} skipped"}
        panel.plot(skipped, np.full(len(skipped), 0.02), "|", color=_SKIPPED, markersize=9, **foot)


def _draw_points(panel: "Axes", steps: np.ndarray, values: np.ndarray, colour: str, label: str | None = None) -> None:
    panel.plot(steps, values, "o--", color=colour, markersize=5, linewidth=1, markeredgecolor="white", label=label)


def _marks(steps: np.ndarray) -> dict[str, Any]:
    """Markers for a run of a single step, which has no line."""
    return {"marker": "o", "markersize": 4} if len(steps) == 1 else {}


def _style(panels: Sequence["Axes"], names: Sequence[str], runs: Sequence[RunHistory]) -> None:
    """Set grid, axes and their labels; the last panels are those of the learning rate and the gradient norm."""
    from matplotlib.ticker import MaxNLocator

    for panel, name in zip(panels, names, strict=True):
        panel.set_ylabel(name, color=_INK, fontsize=10)
        panel.grid(True, color=_GRID, linewidth=0.7)
        panel.set_axisbelow(True)
        panel.tick_params(colors=_INK, labelsize=9, length=3)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#999999")
    rate, norm = panels[-2:]
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate.set_ylim(bottom=0)
    norms = np.concatenate([run.columns["grad_norm"] for run in runs])
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if len(norms) and norms.max() > _LOGARITHMIC_FROM * norms.min():
        norm.set_yscale("log")
    last = max(run.steps[-1] for run in runs)
    norm.set_xlim(-0.01 * last, 1.01 * last)
    norm.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    norm.set_xlabel("step", color=_INK, fontsize=10)


def _legends(loss: "Axes", scores: Sequence["Axes"]) -> None:
    loss.legend(frameon=False, fontsize=9.5, loc="upper right")
    for panel in scores:
        panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def _title(runs: Sequence[RunHistory]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs{' (dashed: evaluation)' if any(run.evaluations for run in runs) else ''}"
    count = int(runs[0].steps[-1])
    return f"{runs[0].label}: {count:,} step{'' if count == 1 else 's'}"
