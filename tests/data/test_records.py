"""Records from JSON, JSON lines, CSV and TSV: their places, and errors of bad ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.data.records import BadRecords, read_records, text_of


@pytest.fixture
def read(tmp_path):
    """Write a file and read it: [(line, fields), ...]."""

    def read(name, content, on_bad=None):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        records = list(read_records(file, on_bad)) if on_bad else list(read_records(file))
        return [(int(record.place.removeprefix(f"{file}:")), record.fields) for record in records]

    return read


def test_the_same_records_in_every_format(read):
    a, b = {"x": "1", "y": "two, \t\nlines"}, {"x": 'é "q"', "y": "3"}
    assert read("a.json", f" [\n {json.dumps(a)},\n\n{json.dumps(b)} ]\n") == [(2, a), (4, b)]
    assert read("a.json", f"[{json.dumps([a, b])[1:]}") == [(1, a), (1, b)]
    assert read("a.json", f"{json.dumps(a)}\n{json.dumps(b)}") == [(1, a), (2, b)]
    assert read("a.jsonl", f"\n{json.dumps(a)}\n\n{json.dumps(b)}\n") == [(2, a), (4, b)]
    assert read("a.csv", '\ufeffx,y\r\n1,"two, \t\nlines"\r\n\r\n"é ""q""",3\r\n') == [(2, a), (5, b)]
    assert read("a.tsv", 'x\ty\n1\t"two, \t\nlines"\n"é ""q"""\t3\n') == [(2, a), (4, b)]
    assert read("a.csv", "x,y\n") == read("a.json", "[ ]") == read("a.jsonl", "\n") == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.recursive(st.none() | st.text(), st.lists, max_leaves=4))))
def test_a_json_list_is_what_python_reads(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("list") / "x.json"
    for indent in (None, 1):
        file.write_text(json.dumps(values, indent=indent), encoding="utf-8")
        assert [record.fields for record in read_records(file)] == values


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"a": 1}\n{"a": 2}]', r"x.json:2:1: not valid JSON: expected ',' or '\]'"),
        ("x.json", '[{"a": 1},\n]', r"x.json:2:1: not valid JSON"),
        ("x.json", '[{"a": 1}', r"x.json:1:10: not valid JSON: expected"),
        ("x.json", '[{"a": 1}]\n [2]', r"x.json:2:2: not valid JSON: extra text after the list"),
        ("x.json", '[{"a": 1},\n\n 5]', r"x.json:3: should be a JSON object, \{...\}; it is a int"),
        ("x.json", "[" * 100_000, "x.json: not usable JSON: it is nested too deeply"),
        ("x.jsonl", '{"a": 1}\n{"a": ', r"x.jsonl:2: not valid JSON: .* at column"),
        (
            "x.json",
            f'[{{"a": 1}},\n{{"a": {"7" * 5000}}}]',
            r"x.json:2:1: not valid JSON: it holds a number of more digits",
        ),
        (
            "x.jsonl",
            f'{{"a": 1}}\n{{"a": {"7" * 5000}}}',
            "x.jsonl:2: not usable JSON: it holds a number of more digits",
        ),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}', "x.jsonl:2: not UTF-8: byte 0xff"),
        ("x.csv", "a,b\n1,2\n3\n", "x.csv:3: has 1 columns, but the header has 2"),
        ("x.csv", 'a,b\n1,2\n3,"4\n5,6\n', "x.csv:3: broken quotes in the row that begins here"),
        ("x.csv", 'a,b\n"1"2,3\n', "x.csv:2: broken quotes"),
        ("x.csv", "a,a\n1,2\n", "x.csv:1: should be a header"),
        ("x.csv", "", "x.csv:1: should be a header"),
    ],
)
def test_errors_have_file_and_line(read, name, content, message):
    with pytest.raises(UserError, match=message):
        read(name, content)


def test_values_longer_than_a_chunk_and_errors_after_them(read, monkeypatch):
    from mindgpt.data import json_values

    whole = json_values.read_chunks
    values = [{"a": "x" * 37, "b": [1, 2.5e3, -12, True, None]}, {"c": "\\ud83d\\ude00 \n é"}, {}]
    for characters in (1, 2, 3, 7, 50):
        monkeypatch.setattr(json_values, "read_chunks", lambda file, size=characters: whole(file, size))
        for indent in (None, 2):
            assert [fields for _, fields in read("x.json", json.dumps(values, indent=indent))] == values
            lines = "\n".join(json.dumps(value, indent=indent) for value in values)
            assert [fields for _, fields in read("x.json", lines)] == values
        with pytest.raises(UserError, match=r"x.json:3:7: not valid JSON: Expecting value"):
            read("x.json", '[{"a": 1},\n\n{"b": }]')
        with pytest.raises(UserError, match=r"x.json:2:2: not valid JSON: Unterminated string"):
            read("x.json", '[{"a": 1,\n "b": 2}]'.replace('"b', '"').replace('": 2', ""))
        assert read("x.json", "[12]", BadRecords()) == []


def test_a_lone_object_and_objects_over_several_lines(read):
    assert read("x.json", '{"a": "1"}') == [(1, {"a": "1"})]
    assert read("x.json", '\n{\n "a": "1"\n}\n{"b": 2\n}') == [(2, {"a": "1"}), (5, {"b": 2})]
    bad = BadRecords()
    assert read("x.jsonl", '{"a": \n{"b": 2}\n', bad) == [(2, {"b": 2})]
    assert bad.count == 1


def test_empty_columns_of_excel_are_dropped(read):
    assert read("x.csv", "prompt,response,,\nhi,ho,,\nyou,too\n") == [
        (2, {"prompt": "hi", "response": "ho"}),
        (3, {"prompt": "you", "response": "too"}),
    ]
    assert read("x.csv", "a,,b\n1,,2\n") == [(2, {"a": "1", "b": "2"})]
    assert read("x.csv", ",a,b\n0,x,y\n") == [(2, {"column 1": "0", "a": "x", "b": "y"})]  # pandas' index
    assert read("X.CSV", "a,b\n1,2,,\n") == [(2, {"a": "1", "b": "2"})]
    for content, message in (
        ("a,b,,\n1,2,x,\n", "x.csv:2: has 3 columns, but the header has 2"),
        (",,\n1,2\n", "x.csv:1: should be a header"),
        ("a;b\n1;2\n", "x.csv:1: the columns of a csv file are separated by commas, but these by semicolons"),
        ("a\tb\n1\t2\n", "by commas, but these by TABs. Rename the file to .tsv"),
        ("sep=,\na,b\n1,2\n", "x.csv:1: 'sep=' is a separator line that only Excel understands; remove it"),
    ):
        with pytest.raises(UserError, match=message):
            read("x.csv", content)


def test_bad_records_can_be_skipped_and_counted(read):
    bad = BadRecords()
    assert read("x.jsonl", '{"a": 1}\n{"a": \n[2]\n{"a": 3}\n5\n6\n', bad) == [(1, {"a": 1}), (4, {"a": 3})]
    assert (bad.count, len(bad.messages)) == (4, 3)
    assert "x.jsonl:2: not valid JSON" in bad.messages[0]
    assert read("x.csv", "a,b\n1,2,3\n4,5\n", BadRecords()) == [(3, {"a": "4", "b": "5"})]
    assert read("x.json", '[{"a": 1},\n2,{"a": 3}]', BadRecords()) == [(1, {"a": 1}), (2, {"a": 3})]


def test_a_row_of_empty_cells_is_a_record_and_a_blank_line_is_none(read):
    assert read("x.csv", "a,b\n\n,\n  \n1,2\n") == [(3, {"a": "", "b": ""}), (5, {"a": "1", "b": "2"})]
    assert read("x.tsv", "a\tb\n\t\n\n1\t2\n") == [(2, {"a": "", "b": ""}), (4, {"a": "1", "b": "2"})]


def test_text_of_a_key(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": "t", "b": 5, "c": "\\ud800"}')
    (record,) = read_records(file)
    assert text_of(record, "a") == "t"
    for key, message in (
        ("b", "x.jsonl:1: 'b' must be a string; it is a int"),
        ("c", "x.jsonl:1: 'c' is not valid Unicode"),
        ("d", "x.jsonl:1: no key 'd'.* there are: 'a', 'b', 'c'"),
    ):
        with pytest.raises(UserError, match=message):
            text_of(record, key)
