"""Fonts for the labels of a plot: folder names may be Chinese, which matplotlib's own font does not contain.

Imports matplotlib, so `plot.py` imports this module only when it draws.
"""

import contextlib
import logging
import re
from collections.abc import Iterator

import matplotlib
from matplotlib.font_manager import fontManager, get_font

_OWN = "DejaVu Sans"  # comes with matplotlib
_LIKELY = re.compile(r"CJK|Han Sans|Hei|Song|Ming|Gothic|Fallback|Unicode|Noto Sans")  # tried first
_NOT_READABLE = re.compile(r"Last Resort|Emoji|Symbols")
_MAX_FONTS = 200  # to try; some machines have thousands


@contextlib.contextmanager
def fonts_for(text: str) -> Iterator[str]:
    """Within the block, matplotlib uses fonts that contain the characters of `text`, and logs nothing about fonts.

    Yields the characters that no font contains; see `drawable`.
    """
    families, missing = _families(text)
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)  # "building the font cache", "created a temporary cache directory"
    try:
        # A name with two dollar signs is not a formula.
        with matplotlib.rc_context({"font.family": families, "text.parse_math": False}):
            yield "".join(sorted(missing))
    finally:
        log.setLevel(level)


def drawable(text: str, missing: str) -> str:
    """The text with the characters of `missing` escaped, so that names stay distinct."""
    return "".join(
        character.encode("unicode_escape").decode() if character in missing else character for character in text
    )


def _families(text: str) -> tuple[list[str], set[str]]:
    missing = {character for character in text if not character.isprintable()}
    wanted = set(text) - missing
    families = [_OWN]
    for name, file in _candidates():
        if not wanted:
            break
        try:
            has = {character for character in wanted if ord(character) in get_font(file).get_charmap()}
        except (OSError, RuntimeError, ValueError):  # a font that FreeType cannot read
            continue
        if has and name != _OWN:
            families.append(name)
        wanted -= has
    return families, missing | wanted


def _candidates() -> list[tuple[str, str]]:
    """(family, file) of fonts: matplotlib's own, then those that are likely to have many characters, then others."""
    own, likely, others = {}, {}, {}
    for entry in fontManager.ttflist:
        if entry.style == "normal" and not _NOT_READABLE.search(entry.name):
            group = own if entry.name == _OWN else likely if _LIKELY.search(entry.name) else others
            group.setdefault(entry.name, entry.fname)
    return [*own.items(), *likely.items(), *others.items()][:_MAX_FONTS]
