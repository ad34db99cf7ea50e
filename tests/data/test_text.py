"""Documents from files: nothing is lost by default; MindFormers' reading is reproduced from its description."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.data import text as text_module
from mindgpt.data.records import BadRecords
from mindgpt.data.text import (
    Piece,
    detokenize_wikitext,
    document_pieces,
    input_files,
    kind_of,
    mindformers_pieces,
    split_document,
    wikitext_pieces,
)


def documents(pieces):
    """The documents that pieces make up."""
    found, held = [], ""
    for piece in pieces:
        held += piece.text
        if piece.ends_document:
            found.append(held)
            held = ""
    assert held == "", "the last piece must end a document"
    return found


# ---- pieces


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from(list("ab1'.,\n\n   \t\r\x85\u3000é🎉<|endoftext>"))),
    size=st.integers(1, 9),
    chunk=st.integers(1, 7),
)
def test_pieces_have_the_ids_of_the_document(tokenizer, text, size, chunk):
    old, text_module.PIECE_CHARACTERS = text_module.PIECE_CHARACTERS, size
    try:
        pieces = list(split_document(text[start : start + chunk] for start in range(0, len(text), chunk)))
    finally:
        text_module.PIECE_CHARACTERS = old
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == text
    assert sum(tokenizer.encode_batch([piece.text for piece in pieces]), []) == tokenizer.encode(text)


def test_long_documents_are_split(monkeypatch):
    monkeypatch.setattr(text_module, "PIECE_CHARACTERS", 4)
    assert [piece.text for piece in split_document(["one two\nthree  four\n\nfive six"])] == [
        "one two",
        "\nthree  four\n\nfive",
        " six",
    ]


# ---- which files


def test_input_files(tmp_path):
    for name in ("b.txt", "a.jsonl", "sub/c.txt", "sub/d.md", "e.tokens"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = lambda given: [str(file.relative_to(tmp_path)) for file in input_files(given)]  # noqa: E731
    assert names([tmp_path]) == ["a.jsonl", "b.txt", "sub/c.txt"]
    assert names([tmp_path / "e.tokens", tmp_path]) == ["e.tokens", "a.jsonl", "b.txt", "sub/c.txt"]
    assert names([f"{tmp_path}/**/*.txt", tmp_path / "b.txt"]) == ["b.txt", "sub/c.txt"]
    for wrong, message in ((tmp_path / "no.txt", "No such file"), (f"{tmp_path}/*.csv", "No file matches")):
        with pytest.raises(UserError, match=message):
            input_files([wrong])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no .txt, .json, .jsonl, .ndjson or .parquet file"):
        input_files([tmp_path / "empty"])


def test_suffixes_in_any_letter_case_and_what_is_left_out(tmp_path, caplog):
    for name in ("A.TXT", "b.Json", "c.NDJSON", "d.md", "e"):
        (tmp_path / name).write_text("x")
    assert [file.name for file in input_files([tmp_path])] == ["A.TXT", "b.Json", "c.NDJSON"]
    assert caplog.messages == [f"note: {tmp_path}: 2 file(s) with other suffixes (.md, none) are not read"]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x.tokens").write_text("x")
    with pytest.raises(
        UserError, match=r"but 1 file\(s\) with other suffixes \(.tokens\). To read them, pass a pattern: '.*/f/"
    ):
        input_files([tmp_path / "f"])


def test_hidden_files_and_folders_are_left_out_unless_named(tmp_path):
    hidden = (".ipynb_checkpoints/a-checkpoint.txt", "._a.txt", "sub/.git/b.txt", "__MACOSX/._a.txt")
    for name in ("a.txt", "sub/b.txt", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    names = lambda given: [str(file.relative_to(tmp_path)) for file in input_files([given])]  # noqa: E731
    assert names(tmp_path) == names(f"{tmp_path}/**/*.txt") == ["a.txt", "sub/b.txt"]
    assert names(f"{tmp_path}/*") == ["a.txt"]
    assert names(tmp_path / "._a.txt") == ["._a.txt"]
    assert names(f"{tmp_path}/.*/*.txt") == [".ipynb_checkpoints/a-checkpoint.txt"]
    assert names(tmp_path / ".ipynb_checkpoints") == [".ipynb_checkpoints/a-checkpoint.txt"]
    with pytest.raises(UserError, match="holds no .txt"):
        input_files([tmp_path / "__MACOSX"])


# ---- plain text and JSON lines


def test_text_documents(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"  one \r\n\r\n \ntwo")
    assert documents(document_pieces(path)) == ["  one \n\n \ntwo"]
    assert documents(document_pieces(path, "line")) == ["  one ", "", " ", "two"]


def test_jsonl_documents(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one\\ntwo", "body": "b"}\n\n{"text": "", "body": "c\\u00fc"}\n', "utf-8")
    assert documents(document_pieces(path)) == ["one\ntwo", ""]
    assert documents(document_pieces(path, field="body")) == ["b", "cü"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"x.jsonl:2: not valid JSON"),
        ("[1]", r"x.jsonl:2: the record must be a string; it is a list"),
        ('{"body": "b", "id": 1}', r"x.jsonl:2: no key 'text'.*there are: 'body', 'id'"),
        ('{"text": 5}', r"x.jsonl:2: 'text' must be a string; it is a int"),
        ('{"text": "\\ud800"}', r"x.jsonl:2: 'text' is not valid Unicode"),
        ('{"text": ["a", 1]}', r"x.jsonl:2: an item of 'text' must be a string; it is a int"),
        ('{"text": []}', r"x.jsonl:2: 'text' must be a string; it is a list"),
    ],
)
def test_broken_json_lines_are_located(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        list(document_pieces(path))


CHINESE = ["第一篇文章", "第二篇\n两行"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", json.dumps(CHINESE)),
        ("train.json", json.dumps([{"text": text, "id": 1} for text in CHINESE], indent=2)),
        ("train.JSON", "\ufeff" + json.dumps(CHINESE)),
        ("web_text_zh_train.json", "\n".join(json.dumps({"text": text}) for text in CHINESE)),
        ("x.ndjson", "".join(json.dumps({"text": text}) + "\n" for text in CHINESE)),
        ("x.JSONL", "".join(json.dumps(text) + "\n" for text in CHINESE)),
        ("x.json", "\n".join(json.dumps({"text": text}, indent=1) for text in CHINESE)),
        ("wiki_00", "".join(json.dumps({"id": "1", "text": text}) + "\n" for text in CHINESE)),
        ("part", json.dumps(CHINESE, ensure_ascii=False)),
        ("poems.json", json.dumps([{"text": [CHINESE[0]]}, {"text": CHINESE[1].split("\n")}])),
        ("x.csv", f'text,id\n{CHINESE[0]},1\n"{CHINESE[1]}",2\n'),
        ("x.TSV", f'id\ttext\n1\t{CHINESE[0]}\n2\t"{CHINESE[1]}"\n'),
    ],
)
def test_texts_in_json_and_tables(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    assert documents(document_pieces(tmp_path / name)) == CHINESE


@pytest.mark.parametrize(
    "content", ["[1] Smith, 2001.\n", "[INST] hi", '["Hello," she said.', "{a} set", "{}", "[]", ""]
)
def test_text_that_only_looks_like_json_is_text(tmp_path, content):
    for name in ("x.txt", "x"):
        (tmp_path / name).write_text(content)
        assert kind_of(tmp_path / name) == "text"
        assert documents(document_pieces(tmp_path / name)) == [content]


def test_json_in_a_text_file_is_refused_with_both_ways_out(tmp_path):
    for content in (json.dumps(CHINESE), '{"text": "a"}\n{"text": "b"}\n', '{\n"text": "a"}', '{"text": "a"}'):
        (tmp_path / "x.txt").write_text(content)
        with pytest.raises(
            UserError, match="x.txt holds JSON, not plain text.*--read_as json .*--read_as text takes it"
        ):
            list(document_pieces(tmp_path / "x.txt"))
        assert kind_of(tmp_path / "x.txt", "json") == "json"
        assert documents(document_pieces(tmp_path / "x.txt", kind="text")) == [content]
    assert kind_of(tmp_path / "x.json", "text") == "text"


def test_bad_records_of_a_corpus_are_left_out_and_counted(tmp_path):
    lines = ['{"text": "a"}', '{"text": null}', '{"text": "\\ud83d"}', "{", "[1]", '{"text": "b"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    bad = BadRecords()
    assert documents(document_pieces(tmp_path / "x.jsonl", on_bad=bad)) == ["a", "b"]
    assert str(bad).startswith("4 bad record(s) left out: ")
    assert "x.jsonl:2: 'text' must be a string; it is a NoneType." in str(bad)
    assert str(bad).endswith(" ...")


def test_a_long_list_is_not_held_in_memory(tmp_path):
    import tracemalloc

    with open(tmp_path / "x.json", "w") as file:
        file.write("[" + ",\n".join(json.dumps("word " * 200) for _ in range(10_000)) + "]")
    assert (tmp_path / "x.json").stat().st_size > 10_000_000
    tracemalloc.start()
    try:
        count = sum(piece.ends_document for piece in document_pieces(tmp_path / "x.json"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 2_000_000


# ---- WikiText

WIKI = """
 = First =
 \n It 's the 1 @,@ 024 @-@ bit one , isn 't it ?
 Two " quoted " ( here ) . \n
 = = Part = = \n
 Last @,@ \n \n = Second = \n
 A .5 mm and .. a N here : so ; yes !
 = x = y \n \n
 = = = Deep = = =
 end"""


def test_expected_articles(tmp_path):
    path = tmp_path / "wiki.tokens"
    path.write_text(WIKI, "utf-8")
    assert documents(wikitext_pieces(path)) == [
        "= First =\n\nIt's the 1,024-bit one, isn't it?\nTwo \"quoted\" (here).\n\n== Part ==\n\nLast,",
        "= Second =\n\nA .5 mm and .. a N here: so; yes!\n= x = y\n\n=== Deep ===\nend",
    ]


def test_text_before_the_first_heading_is_a_document(tmp_path):
    path = tmp_path / "wiki.tokens"
    path.write_text("loose text\n \n = Title = \n \n body\n = not after a blank line = \n", "utf-8")
    assert documents(wikitext_pieces(path)) == ["loose text", "= Title =\n\nbody\n= not after a blank line ="]


def test_detokenising_changes_spaces_and_marks_only(shared_data, tmp_path):
    source = shared_data / "wikitext-2" / "wiki.valid.tokens"
    found = documents(wikitext_pieces(source))
    assert len(found) == 60  # articles of the validation split (Merity et al. 2016, table 1)
    bare = lambda text: re.sub(r"\s", "", text)  # noqa: E731
    # @ marks: "1 @,@ 000" -> "1,000"; headings: "= = x = =" -> "== x ==": the same characters but for the marks' "@".
    expected = re.sub(r" @([-,.])@ ", r"\1", source.read_text("utf-8"))
    assert bare("".join(found)) == bare(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a .5 b", "a .5 b"),
        ("well .. so", "well .. so"),
        ("from N to M", "from N to M"),
        ("the players ' union", "the players ' union"),
        ('an odd " mark', 'an odd " mark'),
        ("they 'll say 'tis", "they'll say 'tis"),
        ("20 \N{DEGREE SIGN} C [ x ] { y }", "20\N{DEGREE SIGN}C [x] {y}"),
        ("end .", "end."),
    ],
)
def test_expected_detokenisation(text, expected):
    assert detokenize_wikitext(text) == expected


# ---- MindFormers' reading, against a plain retelling of facts A3 and A4 of the design's notes


def slow_mindformers_text(text):
    sections, current = [], []
    for line in text.split("\n"):
        line = line.strip()
        if line == "":
            continue
        if line[0] == "=" and line[-1] == "=":
            if current:
                sections.append(current)
            current = []
        else:
            current.append(slow_mindformers_clean(line))
    return "\n".join(" ".join(section) for section in sections).split("\t")[0]


def slow_mindformers_clean(line):
    line = line.replace("s '", "s'")
    for mark in "-,.":
        line = line.replace(f" @{mark}@ ", mark)
    for mark in (" : ", " ; ", " . ", " .", " ! ", " ? ", " , "):
        line = line.replace(mark, mark[1:])
    for left, right in ("()", "[]", "{}", '""', "''"):
        line = trim_inside(line, left, right)
    for signs in ("= = = =", "= = =", "= ="):
        line = line.replace(signs, signs.replace(" ", ""))
    return line.replace(" ° ", "°").replace(" N ", " 1 ").replace(" 's", "'s")


def trim_inside(line, left, right):
    """Without regular expressions: cut the spaces behind each `left` and before the next `right`."""
    result, rest = "", line
    while left in rest and right in rest.split(left, 1)[1]:
        before, after = rest.split(left, 1)
        inside, rest = after.split(right, 1)
        result += before + left + inside.strip() + right
    return result + rest


def test_mindformers_reading_of_wikitext(shared_data):
    source = shared_data / "wikitext-2" / "wiki.valid.tokens"
    assert documents(mindformers_pieces(source)) == [slow_mindformers_text(source.read_text("utf-8"))]


def test_expected_mindformers_reading(tmp_path):
    path = tmp_path / "x"
    path.write_text(
        ' = A = \n \n one , " two " .5 \n N N N \n = = B = = \n = C = \n ( x ) \n tab\there \n'
        " = D = \n y \n = E = \n lost \n",
        "utf-8",
    )
    assert documents(mindformers_pieces(path)) == ['one, "two".5 N 1 N\n(x) tab']
    path.write_text(" = A = \n one \n = B = \n two \n = C = \n lost \n", "utf-8")
    assert documents(mindformers_pieces(path)) == ["one\ntwo"]
    assert list(mindformers_pieces(path)) == [Piece("one", False), Piece("\ntwo", False), Piece("", True)]


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(
            [
                "a",
                "s",
                "'",
                '"',
                "(",
                ")",
                "[",
                "]",
                ".",
                "..",
                ".5",
                ",",
                "@-@",
                "N",
                "'s",
                "=",
                "°",
                "\n",
                " = h = \n",
                "\t",
                "?",
            ]
        )
    )
)
def test_mindformers_reading_of_anything(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "any.tokens"
    path.write_text(" ".join(words), "utf-8")
    text = "".join(piece.text for piece in mindformers_pieces(path))
    assert text == slow_mindformers_text(" ".join(words))
