"""Guesses what a file is that is not UTF-8 text: UTF-16, a national encoding, compressed; and how to convert it."""

import os
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path

from mindgpt.io.compression import is_compressed, plain_name

HEAD = 4096  # bytes at the beginning of a file, for `not_text`
SAMPLE = 1 << 16  # bytes that suffice to recognise an encoding

# First bytes of files that are not text, and what to do with such a file.
_SIGNATURES = {
    b"\x1f\x8b": "it is compressed with gzip; add .gz to its name, or unpack it with gunzip",
    b"\x28\xb5\x2f\xfd": "it is compressed with Zstandard; add .zst to its name, or unpack it with unzstd",
    b"\xfd7zXZ\x00": "it is compressed with xz; unpack it first, with unxz",
    b"BZh91AY&SY": "it is compressed with bzip2; unpack it first, with bunzip2",
    b"7z\xbc\xaf": "it is a 7z archive; unpack it first",
    b"PK\x03\x04": "it is a zip archive, as Excel's and Word's files are; unpack it, or save it as text or CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "it is a file of Excel or Word; save it as text or CSV (UTF-8)",
    b"PAR1\x15": "it is a Parquet file; let its name end in .parquet",
    b"ARROW1\x00": "it is an Arrow file; export it as JSON lines",
    b"%PDF-": "it is a PDF; export its text",
}
# Byte order marks; UTF-32 first, since its mark begins with that of UTF-16.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_TAR, _TAR_PLACE = b"ustar", 257
_MANY_ZEROS = 0.25  # half of ASCII text in UTF-16 is zeros; UTF-8 text has none


def not_text(path: str | os.PathLike[str], head: bytes) -> str | None:
    """Why a file that begins with `head` is not UTF-8 text; None if its beginning may be."""
    for signature, reason in _SIGNATURES.items():
        if head.startswith(signature):
            return f"{path} is not text: {reason}."
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            name = encoding + (' (in Windows Notepad: "Unicode")' if encoding == "UTF-16" else "")
            return f"{path}: not UTF-8: it begins with the byte order mark of {name}. {_convert(path, encoding)}"
    if head[_TAR_PLACE:].startswith(_TAR):
        return f"{path} is not text: it is a tar archive; unpack it, and name the folder."
    if head.count(0) <= _MANY_ZEROS * len(head):
        return None
    for encoding, zeros, others in (("UTF-16LE", head[1::2], head[::2]), ("UTF-16BE", head[::2], head[1::2])):
        if zeros.count(0) > 0.9 * len(zeros) and others.count(0) < 0.1 * len(others):
            return f"{path}: not UTF-8: it seems to be {encoding}. {_convert(path, encoding)}"
    return f"{path} is not text: {head.count(0)} of its first {len(head)} bytes are zeros."


def conversion_hint(path: str | os.PathLike[str], sample: bytes) -> str:
    """How to convert a file to UTF-8; `sample` is a part of it that is not UTF-8."""
    scores = {encoding: score(sample) for encoding, score in _SCORES.items()}
    likeliest = max(scores, key=lambda encoding: scores[encoding])
    if scores[likeliest] < 0.8:
        return "Save the file as UTF-8, or convert it: iconv -f ENCODING -t UTF-8."
    return f"It seems to be {_CALLED.get(likeliest, likeliest)}. {_convert(path, likeliest)}"


def _convert(path: str | os.PathLike[str], encoding: str) -> str:
    plain = plain_name(path)
    output = shlex.quote(str(plain.with_suffix(f".utf8{plain.suffix}")))
    name, iconv = shlex.quote(str(path)), f"iconv -f {encoding} -t UTF-8"
    if is_compressed(path):
        return (
            f"Convert it: {'gunzip' if Path(path).suffix.lower() == '.gz' else 'unzstd'} -c {name} | {iconv} > {output}"
        )
    return f"Convert it: {iconv} {name} > {output}"


# ---- which encoding --------------------------------------------------------------------------------------------------

_CALLED = {"GB18030": "GB18030 (GBK)", "BIG5": "Big5", "WINDOWS-1252": "Windows-1252 (Latin-1)"}
_LAST_PUNCTUATION = 0xA3  # lead byte of punctuation and full-width forms


def _decoded(sample: bytes, encoding: str) -> str | None:
    """The sample as text, without an incomplete last character; None if it is in another encoding."""
    for cut in range(4):
        try:
            return sample[: len(sample) - cut].decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(sample) - 4:
                return None
    return None


def _common(encoding: str, standard: str, lead_bytes: range) -> Callable[[bytes], float]:
    """Scores a sample by the share of common characters among the non-ASCII ones: punctuation, and the frequent
    ideographs, which GB 2312 and Big5 place first, under these lead bytes."""

    def score(sample: bytes) -> float:
        others = [character for character in _decoded(sample, encoding) or "" if character >= "\x80"]
        codes = [character.encode(standard, "ignore") for character in others]
        common = sum(code[0] <= _LAST_PUNCTUATION or code[0] in lead_bytes for code in codes if code)
        return common / len(others) if others else 0.0

    return score


def _kana(encoding: str) -> Callable[[bytes], float]:
    """Scores a sample by whether it is Japanese, which has kana among its ideographs."""

    def score(sample: bytes) -> float:
        others = [character for character in _decoded(sample, encoding) or "" if character >= "\x80"]
        kana = sum("\u3040" <= character <= "\u30ff" for character in others)
        known = sum(unicodedata.category(character) not in ("Co", "Cn", "Cc") for character in others)
        return 0.95 * known / len(others) if others and kana > 0.25 * len(others) else 0.0

    return score


def _western(sample: bytes) -> float:
    """The share of letters and punctuation among the non-ASCII characters, which are rare in a Latin text."""
    text = _decoded(sample, "cp1252") or ""
    others = [character for character in text if character >= "\x80"]
    if not others or len(others) > 0.3 * len(text):
        return 0.0
    usual = sum(character.isalpha() or character in "“”‘’„–—…€«»¿¡§°\xa0" for character in others)
    return 0.9 * usual / len(others)


_SCORES = {
    "GB18030": _common("gb18030", "gb2312", range(0xB0, 0xD8)),
    "BIG5": _common("big5", "big5", range(0xA4, 0xC7)),
    "SHIFT_JIS": _kana("shift_jis"),
    "EUC-JP": _kana("euc_jp"),
    "WINDOWS-1252": _western,
}
