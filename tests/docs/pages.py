"""The pages of the checkout, their headings, links and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
USER_PAGES = sorted(DOCS.glob("*.md"))
CHINESE_PAGES = sorted((DOCS / "zh").glob("*.md"))
BOTH = [(REPO / "README.md", REPO / "README_zh.md"), *((page, DOCS / "zh" / page.name) for page in USER_PAGES)]
PAGES = sorted([*REPO.glob("*.md"), *DOCS.rglob("*.md"), *(REPO / "examples").rglob("*.md")])


class Command(NamedTuple):
    """A line of a bash block."""

    page: str
    text: str
    words: tuple[str, ...]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its code: blocks are left out, and code in backquotes is blank."""
    return re.sub(r"`[^`\n]+`", "``", re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL))


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are not addresses of the web."""
    return re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, a hyphen for each space; numbered if equal."""
    found: list[str] = []
    code = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *$", code, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[Command]:
    """Every command in the page's bash blocks; lines that end in a backslash go on in the next."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield Command(page.relative_to(REPO).as_posix(), line, tuple(words))
