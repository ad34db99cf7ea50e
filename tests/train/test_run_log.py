"""The logs of a run hold whole lines, whatever happens to the run."""

import json

import pytest

from mindgpt.config.errors import UserError
from mindgpt.train.run_log import RunLog, read_log


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    log = RunLog(tmp_path / "log" / "train.jsonl")
    log.begin()
    log.write({"step": 1, "loss": float("nan"), "norm": float("-inf"), "skipped": True, "rate": 0.5})
    assert log.path.read_text() == '{"step": 1, "loss": null, "norm": null, "skipped": true, "rate": 0.5}\n'
    log.close()
    log.write({"step": 2})  # closed and opened again: nothing is lost
    assert [record["step"] for record in read_log(log.path)] == [1, 2]


def test_a_new_run_keeps_the_earlier_log_and_a_resumed_one_continues_it(tmp_path):
    path = tmp_path / "train.jsonl"
    write(path, {"step": 1}, {"step": 2}, {"step": 3})
    resumed = RunLog(path)
    resumed.begin(after_step=2)
    assert [record["step"] for record in read_log(path)] == [1, 2]
    resumed.write({"step": 3, "again": True})
    assert read_log(path)[2:] == [{"step": 3, "again": True}]
    other = RunLog(path)
    other.begin()
    assert len(read_log(path)) == 3
    other.write({"step": 9})
    assert read_log(path) == [{"step": 9}]
    assert [record["step"] for record in read_log(tmp_path / "train-1.jsonl")] == [1, 2, 3]
    third = RunLog(path)
    third.begin()
    third.write({"step": 1})
    assert read_log(tmp_path / "train-2.jsonl") == [{"step": 9}]
    lost = RunLog(tmp_path / "lost.jsonl")
    lost.begin(after_step=5)
    lost.write({"step": 6})
    assert read_log(lost.path) == [{"step": 6}]


@pytest.mark.parametrize(
    "half", ['{"step": 2, "lo', "\x00\x00", '"text"', "[1]", '{"loss": 1.0}', '{"step": null}', ""]
)
def test_a_broken_last_line_is_left_out_and_another_is_named(tmp_path, half):
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n' + half)
    assert read_log(path) == [{"step": 1}]
    path.write_text(f'{{"step": 1}}\n{half}\n{{"step": 3}}\n')
    if half:
        with pytest.raises(UserError, match=r"train.jsonl:2: not a line of a run's log"):
            read_log(path)
    else:
        assert len(read_log(path)) == 2


def test_a_full_disk_ends_in_a_sentence_and_leaves_whole_lines(tmp_path, full_disk):
    log = RunLog(tmp_path / "train.jsonl")
    log.begin()
    message = f"Cannot write {log.path}: File too large. What was written before, checkpoints too, is whole."
    with full_disk(100), pytest.raises(UserError) as refused:
        for step in range(100):
            log.write({"step": step})
    log.close()
    assert str(refused.value) == message
    assert [record["step"] for record in read_log(log.path)] == list(range(8))
