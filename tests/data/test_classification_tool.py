"""txtcls_dataset_to_mindrecord.py as a user calls it: every format, and every kind of bad data."""

import json
import sys

import pytest

from mindgpt.data.buckets import read_rows
from mindgpt.data.classification_rows import write_classification
from mindgpt.data.dataset import inspect
from mindgpt.data.labelled_text import FILE_LAYOUTS, file_layout, read_examples
from mindgpt.data.records import BadRecords
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from tests import programs

SCRIPT = "tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    GPT2Tokenizer.train(["a good film , a bad film and nothing else " * 20], 300).save_pretrained(folder)
    return GPT2Tokenizer.from_pretrained(folder), folder


def texts_and_labels(path, tokenizer):
    """What a MindRecord holds, decoded."""
    rows = read_rows(inspect(path))
    texts = [
        tokenizer.decode(rows.ids[start:end]) for start, end in zip(rows.starts[:-1], rows.starts[1:], strict=True)
    ]
    return list(zip(texts, rows.labels.tolist(), strict=True))


def write(tmp_path, tokenizer, content, dataset_name, max_length=99, skip_empty=False, bad=None, **layout):
    (tmp_path / "in").write_bytes(content.encode())
    return write_classification(
        tmp_path / "in",
        file_layout(dataset_name, **layout),
        tokenizer,
        tmp_path / "x.mindrecord",
        max_length=max_length,
        skip_empty=skip_empty,
        bad=bad,
        overwrite=True,
        show_progress=False,
    )


FORMATS = {
    "sst_2": ("sentence\tlabel\na \"good film \t1\na bad film \t0\n", [('a "good film', 1), ("a bad film", 0)]),
    "sst_2, other order": ("label\tindex\tsentence\r\n1\t0\tgood\r\n0\t1\tbad\r\n", [("good", 1), ("bad", 0)]),
    "cola": ("gj04\t1\t\tThe \"film ran.\ngj04\t0\t*\tFilm the ran.\n", [('The "film ran.', 1), ("Film the ran.", 0)]),
    "ag_news": (
        '"3","A ""good"" film","Reuters - one, two","x"\n"1","B","two\nlines","x"\n'.replace(',"x"', ""),
        [('A "good" film Reuters - one, two', 2), ("B two\nlines", 0)],
    ),
    "imdb": (
        'review,sentiment\n"a ""good"" film,<br />yes",positive\nbad,negative\n',
        [('a "good" film,<br />yes', 1), ("bad", 0)],
    ),
    "csv": ("label,text\nyes,\"a, b\"\nno,c\n", [("a, b", 1), ("c", 0)]),
    "tsv": ("text\tlabel\na\t10\nb\t9\n\nc\t10\n", [("a", 1), ("b", 0), ("c", 1)]),
    "json": ('[{"label": 1, "text": "a"},\n {"text": "b", "label": 0}]', [("a", 1), ("b", 0)]),
    "csv, from Excel": ("\ufefftext,label,,\r\na,1,,\r\nb,0\r\n", [("a", 1), ("b", 0)]),
    "tsv, joined": ("\ufefftext\tlabel\na\t1\n\ufeffb\t0\n", [("a", 1), ("b", 0)]),
    "jsonl": ('{"label": 1, "text": "a"}\n{"text": "b", "label": 0}\n', [("a", 1), ("b", 0)]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), FORMATS.items(), ids=FORMATS)
def test_published_file_formats(tmp_path, tokenizer, name, case):
    content, expected = case
    write(tmp_path, tokenizer[0], content, name.split(",")[0])
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == expected


def test_label_names_are_stored(tmp_path, tokenizer):
    for name in ("sst_2", "ag_news"):
        write(tmp_path, tokenizer[0], FORMATS[name][0], name)
        assert inspect(tmp_path / "x.mindrecord").metadata["label_names"] == list(FILE_LAYOUTS[name].label_names)
    summary = write(tmp_path, tokenizer[0], FORMATS["tsv"][0], "tsv")
    assert summary.label_names == ("9", "10"), "numbers sort as numbers"
    write(tmp_path, tokenizer[0], FORMATS["csv"][0], "csv", label_names=["yes", "no", "maybe"])
    assert inspect(tmp_path / "x.mindrecord").metadata["label_names"] == ["yes", "no", "maybe"]
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == [("a, b", 0), ("c", 1)]


def test_columns_by_name_by_number_and_joined(tmp_path, tokenizer):
    content = "kind,title,body\n1,a,b\n0,c,d\n"
    write(tmp_path, tokenizer[0], content, "csv", text_columns=["body", "title"], label_column="kind")
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == [("b a", 1), ("d c", 0)]
    content = "1,a,b\n0,c,d\n"
    write(tmp_path, tokenizer[0], content, "csv", header=False, text_columns=["3"], label_column="1")
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == [("b", 1), ("d", 0)]


def test_rows_are_truncated_and_not_padded(tmp_path, tokenizer):
    content = "sentence\tlabel\n" + "good film " * 20 + "\t1\nbad\t0\n"
    summary = write(tmp_path, tokenizer[0], content, "sst_2", max_length=5)
    rows = read_rows(inspect(tmp_path / "x.mindrecord"))
    assert rows.lengths.tolist() == [5, len(tokenizer[0].encode("bad"))]
    assert summary.truncated == 1
    assert f"the longest had {summary.longest}" in "".join(summary.warnings())
    assert summary.longest == len(tokenizer[0].encode(("good film " * 20).strip()))


def test_an_added_end_of_text_token_survives_truncation(tmp_path, tokenizer):
    with_end = GPT2Tokenizer.from_pretrained(tokenizer[1], add_eos_token=True)
    write(tmp_path, with_end, "sentence\tlabel\n" + "good film " * 20 + "\t1\nbad\t0\n", "sst_2", max_length=5)
    rows = read_rows(inspect(tmp_path / "x.mindrecord"))
    assert rows.ids[rows.starts[1:] - 1].tolist() == [with_end.eos_token_id] * 2


# what is in the file, flags, the place in it, words of the message
BAD = {
    "no such column": ("text\tlabel\na\t1\n", "sst_2", [], ":1:", "no column 'sentence'; it has: 'text', 'label'"),
    "no header": ("a film\t1\nb film\t0\n", "sst_2", [], ":1:", "add --header False"),
    "a header too many": ("label,title,text\n1,a,b\n", "ag_news", [], ":1:", "add --header True"),
    "label outside": ("sentence\tlabel\na\t1\nb\t2\n", "sst_2", [], ":3:", "'2' is none of .*, 0 to 1"),
    "label of the first number": ('"0","a","b"\n', "ag_news", [], ":1:", "1 to 4"),
    "label unknown": ("text,label\na,yes\nb,maybe\n", "csv", ["--label_names", "yes", "no"], ":3:", "'maybe' is none"),
    "label empty": ("text,label\na,yes\nb,\nc,no\n", "csv", [], ":3:", "the label is empty"),
    "text empty": ("sentence\tlabel\na\t1\n \t0\n", "sst_2", [], ":3:", "the text is empty.*--skip_empty"),
    "row of empty fields": ("sentence\tlabel\na\t1\n\t\nb\t0\n", "sst_2", [], ":3:", "the text is empty"),
    "row of empty cells": ("text,label\na,1\n\n,\nb,0\n", "csv", [], ":4:", "the label is empty"),
    "only empty texts": ("text,label\n,1\n,\n", "csv", ["--skip_empty"], "", "no rows with a text; 2 with an empty"),
    "only empty texts, names known": (
        "sentence\tlabel\n\t1\n\t\n", "sst_2", ["--skip_empty"], "", "no rows with a text; 2 with an empty one",
    ),
    "huge number": (f'{{"text": "a", "label": {"7" * 5000}}}\n', "jsonl", [], ":1:", "a number of more digits than"),
    "huge label": (f"sentence\tlabel\na\t{'7' * 5000}\n", "sst_2", [], ":2:", "is none of 'negative'"),
    "huge column": ("a,1\n", "csv", ["--header", "False", "--text_column", "7" * 5000], "", "numbers from 1"),
    "quote open": ('text,label\n"a,1\nb,0\n', "csv", [], ":2:", "broken quotes in the row that begins here"),
    "quote closed too early": ('text,label\na,1\n"b" c,0\n', "csv", [], ":3:", "broken quotes"),
    "field too many": ("text,label\na,1\nb, c,0\n", "csv", [], ":3:", "3 fields, and the first has 2"),
    "TAB missing": ("sentence\tlabel\na 1\n", "sst_2", [], ":2:", "1 fields.*Is a TAB"),
    "one class": ("text,label\na,1\nb,1\n", "csv", [], "", "all rows have one label, '1'"),
    "header alone": ("sentence\tlabel\n", "sst_2", [], "", "holds no rows"),
    "empty file": ("", "csv", [], "", "holds no rows"),
    "not JSON": ('{"text": "a", "label": 1}\n{"text": \n', "jsonl", [], ":2:", "not valid JSON"),
    "key missing": ('{"text": "a", "label": 1}\n{"txt": "b"}\n', "jsonl", [], ":2:", "no 'text'.*did you mean 'txt'"),
    "text a list": ('{"text": ["a"], "label": 1}\n', "jsonl", [], ":1:", "must be a string; it is a list"),
    "column names without header": ("a,1\n", "csv", ["--header", "False"], "", "numbers from 1"),
    "semicolons": ("text;label\na;1\n", "csv", [], ":1:", "separated by commas, but these by semicolons"),
    "header of jsonl": ("", "jsonl", ["--header", "True"], "", "no meaning for jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_data_are_reported_with_file_and_line(repo, tmp_path, tokenizer, case, monkeypatch):
    """The program's own main, in this process: starting it twenty times would take a minute."""
    import importlib.util
    import re

    content, name, flags, place, words = case
    (tmp_path / "in").write_text(content)
    (tmp_path / "x.mindrecord").write_text("an older file")
    spec = importlib.util.spec_from_file_location("txtcls", repo / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    arguments = ["--dataset_name", name, "--input_file", tmp_path / "in", "--output_file", tmp_path / "x.mindrecord"]
    arguments += ["--tokenizer_type", tokenizer[1], "--overwrite", *flags]
    with pytest.raises(ValueError, match=words) as caught:
        module.main(list(map(str, arguments)))
    assert re.search(rf"in{place}" if place else "", str(caught.value))
    assert "\n" not in str(caught.value)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in", "x.mindrecord"]
    assert (tmp_path / "x.mindrecord").read_text() == "an older file"


def test_skip_empty_counts_empty_rows(tmp_path, tokenizer):
    summary = write(tmp_path, tokenizer[0], "sentence\tlabel\na\t1\n\t0\nb\t0\n", "sst_2", skip_empty=True)
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == [("a", 1), ("b", 0)]
    assert "1 rows had an empty text and were left out" in list(summary.warnings())
    for name, content in (("csv", "text,label\na,1\n,\nb,0\n"), ("tsv", "text\tlabel\na\t1\n\t\nb\t0\n")):
        summary = write(tmp_path, tokenizer[0], content, name, skip_empty=True)
        assert (summary.empty, summary.label_names) == (1, ("0", "1"))


def test_skip_bad_counts_bad_rows(tmp_path, tokenizer):
    content = "text,label\na,yes\nb\nc,\n,no\nd,no\ne,yes,no\n"
    bad = BadRecords()
    summary = write(tmp_path, tokenizer[0], content, "csv", bad=bad)
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == [("a", 1), ("d", 0)]
    assert summary.label_names == ("no", "yes")
    assert bad.count == 4
    assert [message.split("in:")[1].split(":")[0] for message in bad.messages] == ["3", "4", "5"]
    assert "this row has 1 fields" in bad.first
    bad = BadRecords()
    write(tmp_path, tokenizer[0], content, "csv", bad=bad, label_names=["no", "maybe"])
    assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == [("d", 0)]
    assert "in:2: the label 'yes' is none of 'no', 'maybe'" in bad.first
    lines = '{"text": "a", "label": 1}\n{"text": null, "label": 1}\n{"text": "\\ud83d", "label": 0}\n{\n'
    write(tmp_path, tokenizer[0], lines, "jsonl", bad=(bad := BadRecords()), label_names=["0", "1"])
    assert (bad.count, texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0])) == (3, [("a", 1)])
    with pytest.raises(
        ValueError, match=r"no row is left to write: 1 bad record\(s\) left out: .*in:2: the text is empty"
    ):
        write(tmp_path, tokenizer[0], "text,label\n,yes\n", "csv", bad=BadRecords(), label_names=["no", "yes"])
    with pytest.raises(ValueError, match="--skip_bad leaves such records out"):
        write(tmp_path, tokenizer[0], content, "csv")


def test_the_command(repo, tmp_path, tokenizer):
    def run(*flags, name="x.mindrecord"):
        arguments = ["--input_file", "in.csv", "--output_file", name, "--tokenizer_type", tokenizer[1], *flags]
        command = [sys.executable, repo / SCRIPT, "--dataset_name", "csv", *map(str, arguments)]
        return programs.run(command, tmp_path)

    (tmp_path / "in.csv").write_text("text,label\ngood film,yes\nbad film,no\na film,no\n")
    (tmp_path / "names").write_text("yes\nno\nmaybe\n")
    done = run("--header", "--label_file", "names", "--num_splits", 2)
    assert done.returncode == 0, done.stderr
    assert "3 rows (yes 1, no 2, maybe 0)" in done.stdout
    assert "warning: no row has the label 'maybe'" in done.stdout
    assert inspect(tmp_path).num_rows == 3
    assert inspect(tmp_path).metadata["label_names"] == ["yes", "no", "maybe"]
    again = run("--label_file", "names", "--num_splits", 2)
    assert (again.returncode, again.stdout) == (2, "")
    assert "exists already. Use --overwrite" in again.stderr
    wrong = run("--header", "False", name="y.mindrecord")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: Without a header")
    assert "Traceback" not in wrong.stderr
    assert not list(tmp_path.glob("*y.mindrecord*"))


def test_mindformers_command_finds_its_downloaded_tokenizer(repo, tmp_path, tokenizer):
    """As the design fixes it: no --tokenizer_type, and the name of its default means the same."""
    (tmp_path / "train.tsv").write_text(FORMATS["sst_2"][0])

    def run(*flags):
        arguments = ["--dataset_name", "sst_2", "--input_file", "train.tsv", "--output_file", "x.mindrecord", *flags]
        command = [sys.executable, repo / SCRIPT, *arguments]
        return programs.run(command, tmp_path)

    missing = run()
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no tokenizer: there is no tokenizer.json or vocab.json in checkpoint_down")
    assert "--tokenizer_type DIR" in missing.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]
    tokenizer[0].save_pretrained(tmp_path / "checkpoint_download" / "gpt2")
    for flags in ([], ["--tokenizer_type", "gpt2", "--overwrite"]):
        done = run(*flags)
        assert done.returncode == 0, done.stderr
        assert texts_and_labels(tmp_path / "x.mindrecord", tokenizer[0]) == FORMATS["sst_2"][1]


def test_real_sst_2(shared_data):
    rows = list(read_examples(shared_data / "sst2" / "dev.tsv", FILE_LAYOUTS["sst_2"]))
    assert len(rows) == 872
    assert sum(row.label == "1" for row in rows) == 444
    assert rows[0] == ("one long string of cliches .", "0", 2, "", shared_data / "sst2" / "dev.tsv")


def test_metadata_is_json(tmp_path, tokenizer):
    write(tmp_path, tokenizer[0], FORMATS["csv"][0], "csv")
    metadata = inspect(tmp_path / "x.mindrecord").metadata
    assert json.loads(json.dumps(metadata)) == metadata
    assert metadata["recipe"] == "classification"
