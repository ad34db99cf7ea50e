"""Resuming a sharded model: all ranks resume from one step of one folder, or none."""

import pytest

from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.config.errors import UserError
from mindgpt.train.resume import find_resume_point_of_rank, state_entry


@pytest.fixture
def written(tmp_path):
    """A function that writes checkpoints into a folder: `written("name", {rank: steps})` returns the folder."""

    def write(name, ranks, prefix="x"):
        for rank, steps in ranks.items():
            folder = tmp_path / name / f"rank_{rank}"
            folder.mkdir(parents=True)
            for step in steps:
                entry = state_entry(int(step.split("_")[1]), {}, {})
                write_checkpoint(folder / f"{prefix}_rank_{rank}-{step}.ckpt", entry.items())
        return tmp_path / name

    return write


def chosen(wanted, folders, cards=2):
    """Where each card goes on, as (folder, step); they must agree."""
    points = [find_resume_point_of_rank(wanted, folders, card, cards) for card in range(cards)]
    for card, point in enumerate(points):
        assert point.path.parent.name == f"rank_{card}"
        assert f"_rank_{card}-" in point.path.name
    (choice,) = {(point.path.parent.parent.name, point.path.stem.partition("-")[2]) for point in points}
    return choice


def refused(wanted, folders, cards=2):
    """What all cards say alike."""
    messages = set()
    for card in range(cards):
        with pytest.raises(UserError) as error:
            find_resume_point_of_rank(wanted, folders, card, cards)
        messages.add(str(error.value))
    (message,) = messages
    return message


def test_the_newest_common_step_is_chosen(written):
    folder = written("run", {0: ["1_2", "1_4", "1_10"], 1: ["1_2", "1_4"]})
    assert chosen(True, [folder]) == ("run", "1_4")
    assert chosen("x_rank_0-1_2.ckpt", [folder]) == ("run", "1_2")


def test_checkpoints_of_two_folders_are_not_mixed(written):
    own, named = written("own", {0: ["1_4"]}), written("named", {0: ["1_4"], 1: ["1_4"]})
    assert chosen(True, [own, named]) == chosen("x_rank_0-1_4.ckpt", [own, named]) == ("named", "1_4")


def test_the_first_complete_folder_is_chosen(written):
    own, named = written("own", {0: ["1_4"], 1: ["1_4"]}), written("named", {0: ["1_4", "1_8"], 1: ["1_4", "1_8"]})
    assert chosen(True, [own, named]) == ("own", "1_4")
    assert chosen("x_rank_1-1_8.ckpt", [own, named]) == ("named", "1_8")


def test_a_path_means_its_folder(written, monkeypatch):
    own, named = written("own", {0: ["1_4"], 1: ["1_4"]}), written("named", {0: ["1_4"], 1: ["1_4"]})
    path = named / "rank_1" / "x_rank_1-1_4.ckpt"
    assert chosen(str(path), [own]) == ("named", "1_4")
    monkeypatch.chdir(named)
    assert chosen("rank_1/x_rank_1-1_4.ckpt", [own]) == ("named", "1_4")
    assert "does not lie in a folder rank_<r>" in refused(str(named / "x-1_4.ckpt"), [own])
    assert f"of step 1_6 (epoch_step) that all 2 cards have: {named} has" in refused(
        str(path.with_stem("x-1_6")), [own]
    )


def test_ranks_of_an_older_larger_run_do_not_count(written):
    folder = written("run", {0: ["1_4"], 1: ["1_4"], 2: ["1_2"], 3: ["9_9"]})
    assert chosen(True, [folder]) == ("run", "1_4")


def test_without_a_shared_disk_the_step_must_be_named(written):
    """The machine of the cards 2 and 3 of four."""
    folder = written("run", {2: ["1_2", "1_4"], 3: ["1_2"]})
    for card in (2, 3):
        with pytest.raises(UserError, match=r"rank_2: 1_2, 1_4, rank_3: 1_2\. Machines without a shared disk"):
            find_resume_point_of_rank(True, [folder], card, 4)
        point = find_resume_point_of_rank("x_rank_0-1_2.ckpt", [folder], card, 4)
        assert point.path == folder / f"rank_{card}" / f"x_rank_{card}-1_2.ckpt"
        with pytest.raises(UserError, match="of step 1_4 .* that all 4 cards have"):
            find_resume_point_of_rank("x_rank_0-1_4.ckpt", [folder], card, 4)


def test_incomplete_or_ambiguous_steps_are_refused(written):
    half, other = written("half", {0: ["1_4"], 1: ["1_2"]}), written("other", {0: ["1_4"]})
    message = refused(True, [half])
    assert message.endswith(f"there is no checkpoint that all 2 cards have: {half} has rank_0: 1_4, rank_1: 1_2.")
    assert f"{half} and {other} both hold step 1_4 of some cards" in refused("x_rank_0-1_4.ckpt", [half, other])
    assert "other has rank_0: 1_4. Machines without" in refused(True, [other])
    assert "nothing has no rank_<r>" in refused(True, [other.with_name("nothing")])
    assert "x.ckpt does not end in -<epoch>_<step>.ckpt" in refused("x.ckpt", [half])


def test_two_of_one_step_are_refused(written, tmp_path):
    folder = written("run", {0: ["1_4"], 1: ["1_4"]})
    write_checkpoint(folder / "rank_1" / "y_rank_1-1_4.ckpt", state_entry(4, {}, {}).items())
    assert "x_rank_1-1_4.ckpt and y_rank_1-1_4.ckpt have the same step" in refused(True, [folder])
