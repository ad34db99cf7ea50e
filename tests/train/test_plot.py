"""Plots of runs: what is drawn where, read back from the figure, for every kind of log."""

import json
import shutil

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.train import plot
from mindgpt.train.plot import draw, plot_finished_run, plot_runs, read_run, smoothed

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib (the plot extra) is not installed")


@pytest.fixture
def run_of(tmp_path):
    """The folder of a run with these losses (None: skipped) and evaluations (step -> values)."""

    def make(losses, evaluations=None, name="output", tail=""):
        folder = tmp_path / name
        (folder / "log").mkdir(parents=True)
        lines = [
            json.dumps({"step": step, "loss": loss, "learning_rate": step * 1e-4, "grad_norm": loss and loss / 2})
            for step, loss in enumerate(losses, start=1)
        ]
        (folder / "log" / "train.jsonl").write_text("\n".join(lines) + "\n" + tail)
        if evaluations is not None:
            lines = [json.dumps({"step": step, **values}) for step, values in evaluations.items()]
            (folder / "log" / "eval.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


def lines_of(panel):
    """Label -> (x, y) of the lines of a panel; those without a label are numbered by matplotlib."""
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panel.get_lines()}


def test_smoothing_is_a_centred_moving_average():
    values = np.array([1.0, 3.0, np.nan, 7.0, 9.0, 20.0])
    # Index 1 reaches 1 to either side; 2 and 3 reach 2, over the one that is absent; 5, the last, reaches nowhere.
    expected = [1, (1 + 3) / 2, (1 + 3 + 7 + 9) / 4, (3 + 7 + 9 + 20) / 4, (7 + 9 + 20) / 3, 20]
    assert smoothed(values, 2).tolist() == pytest.approx(expected)
    assert np.isnan(smoothed(np.array([np.nan, 1.0]), 1)).tolist() == [True, False]
    many = np.random.default_rng(0).normal(size=500)
    slow = [many[max(0, i - r) : i + r + 1].mean() for i in range(500) for r in [min(7, i, 499 - i)]]
    np.testing.assert_allclose(smoothed(many, 7), slow, atol=1e-12)


def test_plot_shows_the_logged_values(run_of):
    folder = run_of([4.0, None, 3.0, 2.5], {0: {"loss": 4.5, "PPL": 90.0}, 4: {"loss": 2.0, "PPL": None}})
    figure = draw([read_run(folder)])
    loss, rate, norm = figure.axes
    assert [panel.get_ylabel() for panel in figure.axes] == ["loss", "learning rate", "gradient norm"]
    assert norm.get_xlabel() == "step"
    assert figure._suptitle.get_text() == f"{folder}: 4 steps"
    drawn = lines_of(loss)
    np.testing.assert_equal(drawn["training"], ([1, 2, 3, 4], [4, np.nan, 3, 2.5]))
    assert drawn["evaluation, lowest 2 after step 4"] == ([0, 4], [4.5, 2])
    assert drawn["1 skipped"][0] == [2]
    shown = {text.get_text() for text in loss.get_legend().get_texts()}
    assert shown == {"training", "evaluation, lowest 2 after step 4", "1 skipped"}
    assert next(iter(lines_of(rate).values())) == ([1, 2, 3, 4], pytest.approx([1e-4, 2e-4, 3e-4, 4e-4]))
    np.testing.assert_equal(next(iter(lines_of(norm).values()))[1], [2, np.nan, 1.5, 1.25])


def test_a_long_run_is_smoothed(run_of):
    losses = np.linspace(5, 3, 240).tolist()
    drawn = lines_of(draw([read_run(run_of(losses))]).axes[0])
    assert drawn["training, mean of 9 steps"][1] == pytest.approx(losses)  # the mean of a straight line


def test_the_scores_of_one_run_share_a_panel_and_those_of_several_do_not(run_of):
    scores = {1: {"loss": 3.0, "ACC": 0.5, "F1": 0.25}, 2: {"loss": 3.5, "ACC": 0.75, "F1": 0.5}}
    run = read_run(run_of([3.0, 2.0], scores))
    figure = draw([run])
    assert [panel.get_ylabel() for panel in figure.axes] == ["loss", "scores", "learning rate", "gradient norm"]
    assert lines_of(figure.axes[1]) == {"ACC": ([1, 2], [0.5, 0.75]), "F1": ([1, 2], [0.25, 0.5])}
    figure = draw([run, run])
    assert [panel.get_ylabel() for panel in figure.axes] == ["loss", "ACC", "F1", "learning rate", "gradient norm"]
    assert [line.get_ydata().tolist() for line in figure.axes[2].get_lines()] == [[0.25, 0.5]] * 2


def test_several_runs_in_one_plot(run_of):
    runs = [read_run(run_of([3.0, 2.0], {2: {"loss": 2.5}}, "a")), read_run(run_of([3.0, 2.5, 1.0], name="b"))]
    figure = draw(runs)
    drawn = lines_of(figure.axes[0])
    assert (drawn[runs[0].label], drawn[runs[1].label]) == (([1, 2], [3, 2]), ([1, 2, 3], [3, 2.5, 1]))
    assert figure._suptitle.get_text() == "2 runs (dashed: evaluation)"
    colours = [line.get_color() for line in figure.axes[1].get_lines()]
    assert len(set(colours)) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", [[2.5], [None], [None, None, None], [2.0, None], [1e30, 1e-30]], ids=str)
@pytest.mark.parametrize("tail", ["", '{"step": 9, "lo'], ids=["whole", "killed"])
def test_every_log_can_be_drawn(run_of, losses, tail):
    path = plot_runs([folder := run_of(losses, tail=tail)], folder / "new" / "x.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")


def test_plot_errors_are_explained(run_of, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no such folder"):
        plot_runs([tmp_path / "none"], tmp_path / "x.png")
    with pytest.raises(UserError, match="has no log/train.jsonl; name the output folder of a training run"):
        plot_runs([tmp_path], tmp_path / "x.png")
    empty = run_of([], name="empty")
    with pytest.raises(UserError, match="holds no step yet"):
        plot_runs([empty], tmp_path / "x.png")
    assert plot_finished_run(empty, tmp_path / "x.png").startswith("could not be drawn (")
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'drawing needs matplotlib: pip install "mindgpt\[plot\]"'):
        plot_runs([run_of([1.0])], tmp_path / "x.png")
    printed = plot_finished_run(tmp_path / "o", tmp_path / "x.png")
    assert printed.startswith("needs matplotlib: ")
    assert printed.endswith(f", then python tools/plot_run.py {tmp_path / 'o'}")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["实验/输出", "a$b$c_{", "caf\udce9\n", "первый", "_ё😀"])
def test_any_run_name_is_drawn_without_warnings(run_of, tmp_path, name, recwarn, caplog, capfd):
    folder = tmp_path / name
    shutil.copytree(run_of([3.0, 2.0]), folder)
    other = shutil.copytree(folder, tmp_path / "b")
    assert plot_runs([folder], tmp_path / "one.png").stat().st_size > 5000
    plot_runs([folder, other], tmp_path / "two.png")
    assert [str(warning.message) for warning in recwarn] == []
    assert (caplog.messages, capfd.readouterr()) == ([], ("", ""))


def test_characters_that_no_font_has_are_escaped(monkeypatch):
    from mindgpt.train import plot_fonts

    own = [font for font in plot_fonts.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(plot_fonts.fontManager, "ttflist", own)
    with plot_fonts.fonts_for("é输\n") as missing:
        assert missing == "\n输"
        assert plot_fonts.drawable("é输x\n", missing) == "é\\u8f93x\\n"


def test_a_font_that_has_the_characters_is_used():
    from mindgpt.train import plot_fonts

    with plot_fonts.fonts_for("a\u1d15") as missing:  # of matplotlib's own, the serif fonts have it
        assert missing == ""
        own, other = plot_fonts.matplotlib.rcParams["font.family"]
    assert (own, other.startswith("DejaVu Serif")) == ("DejaVu Sans", True)
