"""MindRecord files are written atomically, even if the writer is killed, and broken ones are recognised."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.mindrecord import (
    MindRecordWriter,
    find_mindrecord_files,
    page_bytes_for,
    read_header,
    split_names,
)


def write(path, value=1, rows=4, **arguments):
    data = np.full((rows, 3), value, np.int32)
    with MindRecordWriter(path, ["input_ids"], **arguments) as writer:
        writer.write({"input_ids": data})
    return writer.files


def values(path):
    """All values in the files of a path, read by MindSpore itself."""
    import mindspore.dataset as ds

    rows = ds.MindDataset(find_mindrecord_files(path), shuffle=False).create_tuple_iterator(
        num_epochs=1, output_numpy=True
    )
    return [row[0].tolist() for row in rows]


# ---- whole or absent ----

# Kills itself just before its n-th step that touches the file system, for n = 1, 2, ... until it comes to its end, each
# time in a fresh copy of the folder; then asks in a second process what a reader finds.
KILLER = """
import os, shutil, signal, sys
import numpy as np
import mindspore.mindrecord
from pathlib import Path
from mindgpt.data import mindrecord as m

before, work, splits, overwrite = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"

def write(value, splits, overwrite=True):
    with m.MindRecordWriter(work / "x.mindrecord", ["input_ids"], num_splits=splits, overwrite=overwrite) as writer:
        for _ in range(2):
            writer.write({"input_ids": np.full((4, 3), value, np.int32)})

def die_at(step):
    count = [0]
    def counted(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))

    for name in ("write_raw_data", "commit"):
        kind = mindspore.mindrecord.FileWriter
        setattr(kind, name, counted(getattr(kind, name)))

def in_child(function):
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def found():
    files = m.find_mindrecord_files(work)
    seen, count = set(), 0
    for file in files:
        m.read_header(file)
        reader = mindspore.mindrecord.FileReader(file, num_consumer=1)
        rows = [row["input_ids"].tolist() for row in reader.get_next()]
        reader.close()
        count += len(rows)
        seen.add(str(rows[0][0]) if all(row == rows[0] for row in rows) else "mixed")
    assert count == 8, (count, files)
    print("found", ",".join(sorted(seen)), len(files), flush=True)

def nothing():
    m.finish_interrupted_writes(work)
    left = [name for name in os.listdir(work) if not name.startswith(".")]
    print("found", "nothing" if not left else left, 0, flush=True)

for step in range(1, 100):
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(before, work)
    def writer():
        die_at(step)
        write(2, splits, overwrite)
    killed = in_child(writer) != 0
    has = any(name.endswith("mindrecord") or name.endswith(".ready") for name in os.listdir(work))
    assert in_child(found if has else nothing) == 0
    print("step", step, "killed" if killed else "done", flush=True)
    assert in_child(lambda: write(3, splits)) == 0      # a later run is not in the way of the remains
    assert in_child(found) == 0
    hidden = [name for name in os.listdir(work) if name.startswith(".")]
    assert not hidden, hidden
    if not killed:
        break
"""


@pytest.mark.parametrize(("old_splits", "new_splits"), [(None, 1), (1, 1), (4, 2)], ids=lambda splits: f"{splits}")
def test_a_kill_at_any_instant_leaves_the_old_files_or_the_new(tmp_path, repo, old_splits, new_splits):
    before = tmp_path / "before"
    before.mkdir()
    if old_splits:
        write(before / "x.mindrecord", rows=8, num_splits=old_splits)
    arguments = [str(before), str(tmp_path / "work"), str(new_splits), str(old_splits is not None)]
    run = subprocess.run(
        [sys.executable, "-c", KILLER, *arguments], cwd=repo, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith(("found", "step"))]
    after_kill = [line.removeprefix("found ") for line in lines[0::3]]
    steps = lines[1::3]
    old, new = (f"1 {old_splits}" if old_splits else "nothing 0"), f"2 {new_splits}"
    assert all(step.endswith("killed") for step in steps[:-1])
    assert steps[-1].endswith("done")
    assert len(steps) > 10
    assert set(after_kill) == {old, new}
    assert after_kill == sorted(after_kill, key=[old, new].index), "once the new files are there, they stay"
    assert set(lines[2::3]) == {f"found 3 {new_splits}"}


def test_an_error_leaves_nothing(tmp_path):
    write(tmp_path / "x.mindrecord", 1)
    with (
        pytest.raises(RuntimeError, match="mine"),
        MindRecordWriter(tmp_path / "x.mindrecord", ["input_ids"], overwrite=True) as writer,
    ):
        writer.write({"input_ids": np.ones((2, 3), np.int32)})
        raise RuntimeError("mine")
    assert sorted(os.listdir(tmp_path)) == ["x.mindrecord", "x.mindrecord.db"]
    assert values(tmp_path) == [[1, 1, 1]] * 4


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    from mindspore.mindrecord import FileWriter

    def full(self, rows):  # what MindSpore 2.10 says on a full disk
        raise RuntimeError("Exception thrown.\n\n-----\n[ERROR] No free disk to be used, size: 0\n\nx.cc(584).\n")

    monkeypatch.setattr(FileWriter, "write_raw_data", full)
    with pytest.raises(UserError, match=r"^Cannot write .*x.mindrecord: No free disk to be used, size: 0$"):
        write(tmp_path / "x.mindrecord")
    assert os.listdir(tmp_path) == []


def test_too_few_rows_are_refused(tmp_path):
    for rows, splits in ((0, 1), (2, 3)):
        with pytest.raises(UserError, match=rf"{rows} rows are too few for {splits} file\(s\)"):
            write(tmp_path / "x.mindrecord", rows=rows, num_splits=splits)
    assert os.listdir(tmp_path) == []


def test_existing_files_are_kept_without_overwrite(tmp_path):
    (file,) = write(tmp_path / "x.mindrecord", 1)
    content = file.read_bytes()
    for splits in (1, 2):
        with pytest.raises(UserError, match="x.mindrecord exists already. Use --overwrite"):
            write(tmp_path / "x.mindrecord", 2, num_splits=splits)
    assert file.read_bytes() == content
    write(tmp_path / "x.mindrecord", 2, num_splits=2, overwrite=True)
    assert values(tmp_path) == [[2, 2, 2]] * 4
    with pytest.raises(UserError, match=r"x.0.mindrecord exists already"):
        write(tmp_path / "x.mindrecord", 3)
    write(tmp_path / "x.mindrecord", 3, rows=11, num_splits=11, overwrite=True)
    assert [os.path.basename(file) for file in find_mindrecord_files(tmp_path)] == split_names("x.mindrecord", 11)
    write(tmp_path / "x.mindrecord", 4, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["x.mindrecord", "x.mindrecord.db"]


def test_overwriting_removes_only_the_set_itself(tmp_path):
    write(tmp_path / "x.mindrecord", 1, num_splits=2)
    write(tmp_path / "x.7.mindrecord", 9)  # a set of its own, by its name
    write(tmp_path / "xy.mindrecord", 9)
    write(tmp_path / "x.mindrecord", 2, overwrite=True)
    names = sorted(name for name in os.listdir(tmp_path) if not name.endswith(".db"))
    assert names == ["x.7.mindrecord", "x.mindrecord", "xy.mindrecord"]


def test_a_running_writer_is_not_disturbed(tmp_path):
    with MindRecordWriter(tmp_path / "x.mindrecord", ["input_ids"], overwrite=True) as slow:
        slow.write({"input_ids": np.full((2, 3), 1, np.int32)})
        write(tmp_path / "x.mindrecord", 2)
        slow.write({"input_ids": np.full((2, 3), 1, np.int32)})
    assert values(tmp_path) == [[1, 1, 1]] * 4
    assert sorted(os.listdir(tmp_path)) == ["x.mindrecord", "x.mindrecord.db"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("x.txt", {}, "ends in 'mindrecord'"),
        (".mindrecord", {}, "does not begin with a dot"),
        ("a;b.mindrecord", {}, "holds none of"),
        ("x.mindrecord", {"num_splits": 0}, "num_splits must be at least 1"),
        ("file/x.mindrecord", {}, "a file of that name is in the way"),
    ],
)
def test_invalid_output_paths_are_explained(tmp_path, name, arguments, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        write(tmp_path / name, **arguments)
    assert os.listdir(tmp_path) == ["file"]


def test_folders_are_created_and_files_can_be_moved(tmp_path):
    write(tmp_path / "new" / "deep" / "x.mindrecord", 5, metadata={"note": "kept"})
    shutil.move(tmp_path / "new" / "deep", tmp_path / "moved")
    assert values(tmp_path / "moved" / "x.mindrecord") == [[5, 5, 5]] * 4
    header = read_header(tmp_path / "moved" / "x.mindrecord")
    assert header.num_rows == 4
    assert header.metadata["note"] == "kept"
    assert header.columns == {"input_ids": {"type": "int32", "shape": [-1]}}


# ---- finding ----


def test_a_folder_means_its_mindrecord_files(tmp_path):
    for name in ("b.mindrecord", "a.mindrecord", "train_mindrecord"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "c.mindrecord")
    (tmp_path / "._a.mindrecord").write_bytes(b"\0\5\x16\7Mac OS X")
    names = [os.path.basename(file) for file in find_mindrecord_files(tmp_path)]
    assert names == ["a.mindrecord", "b.mindrecord", "train_mindrecord"]


def test_missing_files_get_a_hint(tmp_path):
    write(tmp_path / ".git" / "x.mindrecord")
    with pytest.raises(UserError, match="no file whose name ends in 'mindrecord'.$"):
        find_mindrecord_files(tmp_path)
    write(tmp_path / "sub" / "x.mindrecord", num_splits=2)
    with pytest.raises(UserError, match="no file whose name ends in 'mindrecord'. There are some in .*sub"):
        find_mindrecord_files(tmp_path)
    with pytest.raises(UserError, match=r"No such file.*in splits \(x.0.mindrecord, ...\): name their folder, .*sub"):
        find_mindrecord_files(tmp_path / "sub" / "x.mindrecord")
    with pytest.raises(UserError, match="No such file or folder"):
        find_mindrecord_files(tmp_path / "none" / "x.mindrecord")
    with pytest.raises(UserError, match="No data set was named"):
        find_mindrecord_files("")


def damage_cut(path):
    size = os.path.getsize(path)
    os.truncate(path, size - 1)


def damage_rename(path):
    os.rename(path, path.with_name("y.mindrecord"))
    os.rename(f"{path}.db", path.with_name("y.mindrecord.db"))


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.remove(f"{path}.db"), r"x.mindrecord.db is missing.*copy x.mindrecord.db along"),
        (lambda path: os.truncate(path, 0), r"x.mindrecord is empty \(0 bytes\)"),
        (lambda path: os.truncate(path, 100), "not a MindRecord file, or only the beginning"),
        (damage_cut, r"is cut short: it has \d+ bytes of \d+"),
        (lambda path: path.write_bytes(b"\x05\0\0\0\0\0\0\0hello world"), "not a MindRecord file, or a broken one"),
        (
            lambda path: path.write_text("just some text, long enough to be read"),
            "text_to_mindrecord.py in .* makes one",
        ),
        (lambda path: path.with_name("x.mindrecord.db").write_bytes(b""), "not a MindRecord index"),
        (damage_rename, r"y.mindrecord was renamed; it was written as x.mindrecord"),
    ],
)
def test_damage_is_recognised(tmp_path, as_folder, damage, message):
    (path,) = write(tmp_path / "x.mindrecord")
    damage(path)
    (path,) = [tmp_path / name for name in os.listdir(tmp_path) if name.endswith("mindrecord")]
    with pytest.raises(UserError, match=message):
        find_mindrecord_files(tmp_path if as_folder else path)


def test_header_equals_mindspores(tmp_path):
    from mindspore.mindrecord import FileReader

    (path,) = write(tmp_path / "x.mindrecord", rows=9)
    reader = FileReader(str(path), num_consumer=1)
    assert (reader.len(), reader.schema()) == (read_header(path).num_rows, read_header(path).columns)
    reader.close()
    assert json.loads(json.dumps(read_header(path).metadata)) == {"set": "x.mindrecord"}


# ---- pages ----


def test_small_pages_hold_the_same_rows(tmp_path):
    rows = np.arange(2000 * 129, dtype=np.int32).reshape(2000, 129)
    with MindRecordWriter(tmp_path / "x.mindrecord", ["input_ids"], page_bytes=page_bytes_for(0, 4 * 129)) as writer:
        for start in range(0, 2000, 250):
            writer.write({"input_ids": rows[start : start + 250]})
    content = (tmp_path / "x.mindrecord").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["page_size"] == 1 << 18
    assert len(header["page"]) >= 4
    assert np.array_equal(values(tmp_path), rows)


@pytest.mark.parametrize(
    ("total_bytes", "row_bytes", "page"),
    [
        (0, 1032, 1 << 18),
        (10**10, 1032, 1 << 20),
        (10**13, 1032, 1 << 25),
        (0, 100_000, 1 << 19),
        (0, 20_000_000, 40_000_000),
    ],
)
def test_page_sizes(total_bytes, row_bytes, page):
    """The least memory that leaves room for the rows and for the list of pages."""
    assert page_bytes_for(total_bytes, row_bytes) == page
