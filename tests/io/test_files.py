"""Atomic writing, and readers that name the file and the place of an error."""

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write, open_to_read, read_chunks, read_json, read_lines, read_text


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
        "import os, sys\nfrom mindgpt.io.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n    file.write(b'n' * 100000); file.flush(); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=repo)
    assert result.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_write_errors_are_explained(tmp_path):
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
def test_read_errors_are_explained(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        read_text(os.path.join(tmp_path, name))


# ---- byte order marks and other encodings ----------------------------------------------------------------------------


def test_byte_order_marks_at_the_beginning_of_lines_are_dropped(tmp_path):
    path = tmp_path / "joined"
    path.write_bytes("\ufeffone\r\n\ufeff\ufefftwo \ufeffb\n\ufeff\n\ufeff".encode())
    assert list(read_lines(path)) == ["one", "two \ufeffb", "", ""]
    for characters in (1, 2, 3, 5, 100):
        assert "".join(read_chunks(path, characters)) == "one\ntwo \ufeffb\n\n"
        assert "" not in read_chunks(path, characters)
    path.write_bytes('\ufeff{"a":\n\ufeff1}'.encode())
    assert read_json(path) == {"a": 1}


CHINESE = "今天天气很好,我们一起去公园散步。\n第二行:问题和回答。\n"
JAPANESE = "これは日本語のテキストです。東京は日本の首都です。\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CHINESE.encode("utf-16"), 'byte order mark of UTF-16 (in Windows Notepad: "Unicode"). Convert it: iconv -f U'),
        (b"\xfe\xff" + CHINESE.encode("utf-16-be"), "-f UTF-16 -t UTF-8 'my x.txt' > 'my x.utf8.txt'"),
        (CHINESE.encode("utf-32"), "byte order mark of UTF-32"),
        ("plain words\n".encode("utf-16-le"), "not UTF-8: it seems to be UTF-16LE. Convert it: iconv -f UTF-16LE"),
        ("plain words\n".encode("utf-16-be"), "it seems to be UTF-16BE"),
        (b"fine\n" + CHINESE.encode("gbk"), "my x.txt:2: not UTF-8: byte 0xbd at offset 5"),
        (CHINESE.encode("gbk"), "It seems to be GB18030 (GBK). Convert it: iconv -f GB18030 -t UTF-8 'my x.txt' > '"),
        (("㐀" + CHINESE).encode("gb18030"), "It seems to be GB18030 (GBK)."),
        ("問題和回答,今天天氣很好。\n".encode("big5"), "It seems to be Big5. Convert it: iconv -f BIG5 "),
        (JAPANESE.encode("shift_jis"), "It seems to be SHIFT_JIS."),
        (JAPANESE.encode("euc_jp"), "It seems to be EUC-JP."),
        ("a naïve café, “oui”\n".encode("cp1252"), "It seems to be Windows-1252 (Latin-1)."),
        (bytes(range(1, 256)), "Save the file as UTF-8, or convert it: iconv"),
        (b"\x1f\x8b\x08\0rest", "my x.txt is not text: it is compressed with gzip; add .gz to its name"),
        (b"PK\x03\x04rest", "as Excel's and Word's files are"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(40), "is not text: 44 of its first 56 bytes are zeros"),
    ],
)  # fmt: skip
def test_files_in_other_encodings_are_named_with_the_way_to_convert_them(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my x.txt").write_bytes(content)
    for read in (read_text, lambda path: list(read_lines(path))):
        with pytest.raises(UserError) as caught:
            read("my x.txt")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_some_zeros_are_text(tmp_path):
    (tmp_path / "x").write_bytes(b"a\0b\0\0cd e\n" + "é".encode())
    assert read_text(tmp_path / "x") == "a\0b\0\0cd e\né"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"


@pytest.mark.parametrize("read", [read_json, read_text, lambda path: list(read_lines(path))])
def test_a_git_lfs_pointer_is_refused(tmp_path, read):
    path = tmp_path / "merges.txt"
    path.write_text(POINTER)
    with pytest.raises(UserError, match=r"merges\.txt: is a Git LFS pointer.* git lfs pull"):
        read(path)
    path.write_text(POINTER + "a text about pointers, longer than one may be\n" * 30)
    with open_to_read(path) as file:
        assert file.read(7) == b"version"


def test_a_pipe_is_read_once(tmp_path):
    """Looking for a pointer would take the first bytes away."""
    readable, writable = os.pipe()
    os.write(writable, POINTER.encode())
    os.close(writable)
    with open_to_read(f"/dev/fd/{readable}") as file:
        assert file.read() == POINTER.encode()
    os.close(readable)
