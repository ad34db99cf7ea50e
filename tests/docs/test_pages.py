"""Pages are whole: links and anchors lead somewhere, named files exist, every user page is there in both languages."""

import re

import pytest

from tests.docs.pages import BOTH, CHINESE_PAGES, DOCS, PAGES, REPO, USER_PAGES, anchors, blocks, links, text_of

FILES = r"`((?:tools|benchmarks|scripts|configs|tests|docs|examples|mindgpt|\.ci)/[\w./-]+\.\w+)`"


def name(page):
    return page.relative_to(REPO).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.is_relative_to(REPO) or not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: {name(target)} has no such heading; it has {sorted(anchors(target))}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page):
    """Paths of the checkout in backquotes."""
    missing = [path for path in re.findall(FILES, text_of(page)) if not (REPO / path).exists()]
    assert not missing


@pytest.mark.parametrize("english, chinese", BOTH, ids=name)
def test_a_user_page_is_there_in_both_languages(english, chinese):
    assert chinese.exists(), f"{name(english)} has no translation {name(chinese)}"
    for page, other in ((english, chinese), (chinese, english)):
        assert other.resolve() in {(page.parent / link).resolve() for link in links(page)}, f"{name(page)}: no link"
    headings = [len(anchors(page)) for page in (english, chinese)]
    assert headings[0] == headings[1] or english.stem in FREE_TRANSLATIONS, f"headings: {headings}"


# Pages written anew for readers of Chinese, whose sections differ.
FREE_TRANSLATIONS = {"chinese_gpt2", "chinese_gpt3", "gpt2_ml"}


def test_no_chinese_page_lacks_the_english_one():
    assert {page.name for page in CHINESE_PAGES} == {page.name for page in USER_PAGES}


@pytest.mark.parametrize(
    "page", [page for page in USER_PAGES if page.stem not in FREE_TRANSLATIONS], ids=lambda page: page.stem
)
def test_tables_have_equal_numbers_in_both_languages(page):
    assert figures(page) == figures(DOCS / "zh" / page.name)


def figures(page):
    """The numbers of two digits and more in each row of each table."""
    rows = [line for line in text_of(page).splitlines() if line.startswith("|")]
    return [sorted(re.findall(r"(?<![\w.])\d[\d,.]*\d(?![\w])", row)) for row in rows]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.startswith("README")], ids=name)
def test_readme_is_short(page):
    assert len(text_of(page).splitlines()) < 120


def test_yaml_blocks_are_equal_in_both_languages():
    for english, chinese in BOTH:
        plain = [[re.sub(r" *#.*", "", block) for block in blocks(page, "yaml")] for page in (english, chinese)]
        assert plain[0] == plain[1], name(chinese)
