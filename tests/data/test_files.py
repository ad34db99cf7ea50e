"""Files appear whole or not at all; readers name the file and the place."""

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.files import atomic_write, read_chunks, read_json, read_lines, read_text


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "x"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with atomic_write(path, "w") as file:
        file.write("zwei\r\n\N{LATIN SMALL LETTER U WITH DIAERESIS}\n")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"zwei\r\n\xc3\xbc\n"
    assert os.listdir(path.parent) == ["x"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="mine"), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("mine")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_permissions_follow_the_umask_and_links_stay_links(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
    (tmp_path / "link").symlink_to("x")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"2"


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, repo):
    path = tmp_path / "x"
    path.write_text("old")
    code = (
        "import os, sys\nfrom mindgpt.data.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n    file.write(b'n' * 100000); file.flush(); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=repo)
    assert result.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_what_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file of that name is in the way"), atomic_write(tmp_path / "file" / "x"):
        pass
    with pytest.raises(UserError, match="it is a folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(UserError, match="No space left"), atomic_write(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        (tmp_path / "other").read_text()  # an error of the caller's own is not dressed up
    assert os.listdir(tmp_path) == ["file"]


def test_lines_and_text(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\x85\xe2\x80\xa8still three\n\nfive".replace(b"\x85", b"\xc2\x85"))
    lines = ["one", "two", "three\x85\u2028still three", "", "five"]
    assert list(read_lines(path)) == lines
    assert read_text(path) == "\n".join(lines)
    assert "".join(read_chunks(path, 3)) == "\n".join(lines)


@pytest.mark.parametrize("read", [read_text, read_json, lambda path: list(read_lines(path))])
def test_bad_bytes_are_located_beyond_any_buffer(tmp_path, read):
    path = tmp_path / "x"
    path.write_bytes(b"fine\n" * 50_000 + "ü".encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"x:50001: not UTF-8: byte 0xfc at offset 250000 "):
        read(path)


def test_json_errors_have_line_and_column(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(UserError, match=r"x.json:2:7: not valid JSON"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(path)
    path.write_text("9" * 5000)
    with pytest.raises(UserError, match=r"x\.json: not usable JSON: it holds a number of more digits"):
        read_json(path)


@pytest.mark.parametrize(("name", "message"), [("none", "No such file"), (".", "is a folder"), ("a\0b", "Cannot read")])
def test_what_cannot_be_read_is_explained(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        read_text(os.path.join(tmp_path, name))
