"""Each kind of input file, through each tool that reads text: the same rows as of the plain file, and its errors."""

import gzip
import json
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.buckets import read_rows
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.records import read_records
from mindgpt.data.text import document_pieces
from mindgpt.io.files import read_chunks
from mindgpt.tasks.prompts import read_prompts

TEXT = "tools/dataset_preprocess/text_to_mindrecord.py"
INSTRUCTIONS = "tools/dataset_preprocess/instruction_to_mindrecord.py"
LABELS = "tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py"
WIKITEXT = "tools/dataset_preprocess/gpt2/wikitext2_data_process.py"

TEXTS = ["the quick brown fox", "over the lazy dog", "第一篇", "the end"]
INSTRUCTED = [{"prompt": text, "response": text[::-1]} for text in TEXTS]
LABELLED = [{"text": text, "label": "good" if number % 2 else "bad"} for number, text in enumerate(TEXTS)]


def zstd(content):
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(content)


def pack(file, content):
    """Write bytes, compressed if the name says so."""
    compress = {".gz": gzip.compress, ".zst": zstd}.get(file.suffix, bytes)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(compress(content))


def write_parquet(file, records, **options):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(records), file, **options)


def write(file, records):
    """Records in the format that a file's name says."""
    suffix = file.with_suffix("").suffix if file.suffix in (".gz", ".zst") else file.suffix
    if suffix == ".parquet":
        write_parquet(file, records)
    elif suffix in (".csv", ".tsv"):
        sign = "," if suffix == ".csv" else "\t"
        rows = [list(records[0]), *(list(record.values()) for record in records)]
        pack(file, "".join(f"{sign.join(row)}\n" for row in rows).encode())
    elif suffix == ".json":
        pack(file, json.dumps(records).encode())
    else:
        pack(file, "".join(f"{json.dumps(record)}\n" for record in records).encode())


RECORD_FILES = ["x.jsonl", "x.json", "x.ndjson.gz", "x.csv", "x.tsv.zst", "x.csv.gz", "x.parquet", "X.JSONL.GZ"]


@pytest.fixture
def run(run_tool, monkeypatch, tmp_path):
    """Run a tool's `main` in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return run_tool


@pytest.fixture
def convert(run, tokenizer_dir):
    """Convert inputs by a tool to rows: the arrays of each column."""

    def convert(tool, *arguments, length=8):
        output = ("--output_file", "out.mindrecord", "--max_length", length, "--overwrite")
        run(tool, *arguments, *output, "--tokenizer_type", tokenizer_dir)
        batches = build_dataset("out.mindrecord", batch_size=1, drop_remainder=False)
        return [np.concatenate(row) for row in batches.create_tuple_iterator(num_epochs=1, output_numpy=True)]

    return convert


def same(rows, others):
    return len(rows) == len(others) > 0 and all(map(np.array_equal, rows, others))


# ---- the same rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.zst", "x.TXT.GZ", "x.gz", "corpus.zst"])
def test_compressed_text_is_the_text(convert, tmp_path, name):
    text = "\n".join(TEXTS * 50)
    (tmp_path / "plain.txt").write_text(text)
    pack(tmp_path / name.lower(), text.encode())
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert same(convert(TEXT, "--input_file", "plain.txt"), convert(TEXT, "--input_file", name))


@pytest.mark.parametrize("name", RECORD_FILES)
def test_records_are_documents(convert, tmp_path, name):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"plain/{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"plain/{number}.txt").write_text(text)
    write(tmp_path / name.lower(), [{"id": "7", "body": text} for text in TEXTS])
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert same(convert(TEXT, "--input_file", "plain"), convert(TEXT, "--input_file", name, "--field", "body"))


def test_parts_of_compressed_files_follow_each_other(tmp_path):
    """As `cat a.gz b.gz` makes them, and pigz, pzstd and bgzip."""
    for name, compress in (("x.gz", gzip.compress), ("x.zst", zstd)):
        (tmp_path / name).write_bytes(b"".join(map(compress, (b"a\nb", "é".encode()[:1], "é".encode()[1:], b"", b"z"))))
        assert "".join(read_chunks(tmp_path / name)) == "a\nbéz"
    (tmp_path / "x.zst").write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0meta" + zstd(b"after metadata"))
    assert "".join(read_chunks(tmp_path / "x.zst")) == "after metadata"


@pytest.mark.parametrize("name", RECORD_FILES)
def test_instructions(convert, tmp_path, name):
    write(tmp_path / "plain.jsonl", INSTRUCTED)
    write(tmp_path / "other" / name.lower(), INSTRUCTED)
    rows = convert(INSTRUCTIONS, "--input_file", "plain.jsonl", length=99)
    assert same(rows, convert(INSTRUCTIONS, "--input_file", f"other/{name.lower()}", length=99))
    assert same(rows, convert(INSTRUCTIONS, "--input_file", "other", length=99))
    assert same(rows, convert(INSTRUCTIONS, "--input_file", "o*/x.*", length=99))


@pytest.mark.parametrize("name", RECORD_FILES)
def test_labelled_texts(run, tokenizer_dir, tmp_path, name):
    def labelled(name, *inputs):
        arguments = ("--dataset_name", name, "--input_file", *inputs, "--output_file", "out.mindrecord")
        run(LABELS, *arguments, "--tokenizer_type", tokenizer_dir, "--overwrite")
        rows = read_rows(inspect("out.mindrecord"))
        return [rows.ids, rows.labels]

    write(tmp_path / "plain.jsonl", LABELLED)
    write(tmp_path / "a" / name.lower(), LABELLED[:1])
    write(tmp_path / "b" / name.lower(), LABELLED[1:])
    kind = next(kind for kind in ("jsonl", "csv", "tsv", "parquet", "json") if kind.removesuffix("l") in name.lower())
    wanted = labelled("jsonl", "plain.jsonl")
    assert same(wanted, labelled(kind, f"a/{name.lower()}", f"b/{name.lower()}"))
    assert same(wanted, labelled(kind, "a", "b"))
    assert same(wanted, labelled(kind, "[ab]/*"))


def test_numbered_labels_of_a_parquet_file(run, tokenizer_dir, tmp_path, capsys):
    """As on Hugging Face's hub: labels are integers, whose names the command line gives."""
    write_parquet(tmp_path / "x.parquet", [{"text": text, "label": number % 2} for number, text in enumerate(TEXTS)])
    arguments = ("--input_file", "x.parquet", "--output_file", "out.mindrecord", "--tokenizer_type", tokenizer_dir)
    run(LABELS, "--dataset_name", "parquet", *arguments)
    assert read_rows(inspect("out.mindrecord")).labels.tolist() == [0, 1, 0, 1]
    assert "--label_names 0 1" in capsys.readouterr().out
    with pytest.raises(UserError, match="--header has no meaning for parquet: the file names its columns"):
        run(LABELS, "--dataset_name", "parquet", *arguments, "--header", "True")


ARTICLES = "\n = One = \n\n the quick brown fox \n = = Part = = \n over the lazy dog . \n\n = Two = \n\n the end \n"


@pytest.mark.parametrize("compat", [(), ("--compat", "mindformers")])
def test_wikitext(convert, tmp_path, compat):
    (tmp_path / "wiki.tokens").write_text(ARTICLES)
    pack(tmp_path / "wiki.tokens.gz", ARTICLES.encode())
    pack(tmp_path / "wiki.tokens.zst", ARTICLES.encode())
    write_parquet(tmp_path / "wiki.parquet", [{"text": line} for line in ARTICLES.splitlines(keepends=True)])
    rows = convert(WIKITEXT, "--input_file", "wiki.tokens", *compat)
    for name in ("wiki.tokens.gz", "wiki.tokens.zst", "wiki.parquet", "*.gz"):
        assert same(rows, convert(WIKITEXT, "--input_file", name, *compat))


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.zst", "x.parquet", "folder", "folder/**/*.txt"])
def test_a_tokenizer_is_trained_on_them(run, tmp_path, name):
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    pack(tmp_path / "x.txt.gz", "\n".join(texts).encode())
    for suffix in ("jsonl.zst", "parquet"):
        write(tmp_path / f"x.{suffix}", [{"text": "\n".join(texts)}])
    (tmp_path / "plain.txt").write_text("\n".join(texts))
    pack(tmp_path / "folder" / "deep" / "x.txt", "\n".join(texts).encode())
    for given, target in (("plain.txt", "a"), (name, "b")):
        run("tools/train_tokenizer.py", "--input_file", given, "--vocab_size", 290, "--output_dir", target)
    assert (tmp_path / "a/vocab.json").read_text() == (tmp_path / "b/vocab.json").read_text()


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.zst", "x.parquet", "x.json", "folder", "folder/*.txt"])
def test_a_text_is_split(run, tmp_path, name):
    text = "".join(f"line {number}\n" for number in range(100))
    for packed in ("x.txt.gz", "x.txt.zst", "folder/x.txt"):
        pack(tmp_path / packed, text.encode())
    for records in ("x.parquet", "x.json"):
        write(tmp_path / records, [{"text": text}])
    run("tools/split_text.py", "--input_file", name, "--output_dir", "parts")
    train, valid = ((tmp_path / f"parts/{part}.txt").read_text() for part in ("train", "valid"))
    assert (train + valid).rstrip("\n") + "\n" == text
    assert 0.8 < len(train) / len(text) < 1


def test_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "x.txt.gz", "\n".join(TEXTS).encode())
    pack(tmp_path / "data" / "deep" / "a.txt", "\n".join(TEXTS[:2]).encode())
    pack(tmp_path / "data" / "deep" / "b.txt.zst", "\n".join(TEXTS[2:]).encode())
    pack(tmp_path / "data" / ".hidden.txt", b"no")
    for name in RECORD_FILES[:-1]:
        write(tmp_path / name, [{"prompt": text, "n": "1"} for text in TEXTS])
    for words in (["x.txt.gz"], ["data"], ["data/**/*"], *([name] for name in RECORD_FILES[:-1])):
        assert [prompt.text for prompt in read_prompts(words)] == TEXTS
    assert "data/**/* is a pattern: 2 file(s) are read" in capsys.readouterr().out
    texts = ["Why?", "5 * 3 =", "[a]", "*", "a*b"]
    assert [prompt.text for prompt in read_prompts(texts)] == texts
    write_parquet(tmp_path / "y.parquet", [{"content": "a"}])
    for words, message in (
        (["lost*.txt"], r"no file matches lost\*.txt"),
        (["lost.jsonl.gz"], "there is no file lost.jsonl.gz"),
        (["y.parquet"], "y.parquet: must have one of the keys 'prompt' and 'text'; it has: 'content'"),
    ):
        with pytest.raises(UserError, match=message):
            read_prompts(words)


# ---- errors ----------------------------------------------------------------------------------------------------------


def pieces(file):
    return list(document_pieces(file))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compressed_files(tmp_path, suffix):
    file, content = tmp_path / f"x.txt{suffix}", "".join(f"line {number}\n" for number in range(9000)).encode()
    pack(file, content)
    whole = file.read_bytes()
    kind = {".gz": "gzip", ".zst": "Zstandard"}[suffix]
    for broken, message in (
        (whole[:-1], f"the {kind} file is cut short. Copy or download the file again"),
        (whole[: len(whole) // 2], f"the {kind} file is cut short"),
        (whole[:-6] + bytes(2) + whole[-4:], f"the {kind} file is damaged"),
        (b"plain text", f"is not compressed as its name says. Rename it without {suffix}"),
    ):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=f"x.txt{suffix}: {message}"):
            pieces(file)
    pack(file, b"fine\nna\xefve text\n")
    with pytest.raises(
        UserError, match=r"x.txt.*:2: not UTF-8: byte 0xef at offset \(of the unpacked text\) 7 .*-c .* \|"
    ):
        pieces(file)
    (tmp_path / "y.txt").write_bytes(whole)
    with pytest.raises(UserError, match=f"y.txt is not text: it is compressed with {kind}; add {suffix} to its name"):
        pieces(tmp_path / "y.txt")


def test_archives_and_binary_files_are_named(run, tokenizer_dir, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(UserError, match="x.tar.gz is not text: it is a tar archive; unpack it, and name the folder"):
        pieces(tmp_path / "x.tar.gz")
    pack(tmp_path / "folder" / "a.txt", b"text")
    pack(tmp_path / "folder" / "b.txt", bytes(200) + b"\x01\x02")
    output = ("--output_file", "x.mindrecord", "--tokenizer_type", tokenizer_dir)
    with pytest.raises(UserError, match="folder/b.txt is not text: 200 of its first 202 bytes are zeros"):
        run(TEXT, "--input_file", "folder", *output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="folder empty holds no .txt, .json, .jsonl, .ndjson or .parquet file, nor"):
        run(TEXT, "--input_file", "empty", *output)
    with pytest.raises(UserError, match=r"No file matches data/\*.txt"):
        run(TEXT, "--input_file", "data/*.txt", *output)
    with pytest.raises(
        UserError, match=r"No file matches fol\*. It matches folders: 'fol\*/\*' means the files in them"
    ):
        run(TEXT, "--input_file", "fol*", *output)
    assert not (tmp_path / "x.mindrecord").exists()


def test_parquet_files_that_cannot_be_read(run, tokenizer_dir, tmp_path):
    file = tmp_path / "x.parquet"
    write_parquet(file, [{"content": text, "id": 1} for text in TEXTS])
    whole = file.read_bytes()
    output = ("--output_file", "x.mindrecord", "--tokenizer_type", tokenizer_dir)
    with pytest.raises(
        UserError, match="no column 'text'; it has: 'content', 'id'. Name the one to read with --field."
    ):
        run(TEXT, "--input_file", "x.parquet", *output)
    with pytest.raises(UserError, match="x.parquet:1: 'id' must be a string; it is a int. --skip_bad leaves"):
        run(TEXT, "--input_file", "x.parquet", "--field", "id", *output)
    with pytest.raises(UserError, match="the keys 'content', 'id' fit no format .*--prompt_key NAME"):
        run(INSTRUCTIONS, "--input_file", "x.parquet", *output)
    with pytest.raises(UserError, match="no column 'text'; it has: 'content', 'id'. .*--text_column"):
        run(LABELS, "--dataset_name", "parquet", "--input_file", "x.parquet", *output)
    with pytest.raises(UserError, match="no column 'label'; it has: 'content', 'id'. .*--label_column"):
        run(LABELS, "--dataset_name", "parquet", "--input_file", "x.parquet", "--text_column", "content", *output)
    with pytest.raises(UserError, match="no column 'text'.*text_to_mindrecord.py"):
        run(WIKITEXT, "--input_file", "x.parquet", *output)
    damaged = whole[:60] + bytes(40) + whole[100:]
    for broken in (whole[:-20], b"", b"plain text of some length", damaged):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="x.parquet: not a whole Parquet file .*Copy or download it again") as error:
            list(document_pieces(file, field="content"))
        assert "\n" not in str(error.value)
    pack(tmp_path / "y.parquet.gz", whole)
    with pytest.raises(UserError, match="y.parquet.gz: a Parquet file is compressed inside already; unpack this one"):
        pieces(tmp_path / "y.parquet.gz")
    (tmp_path / "z.txt").write_bytes(whole)
    with pytest.raises(UserError, match="z.txt is not text: it is a Parquet file; let its name end in .parquet"):
        pieces(tmp_path / "z.txt")


def test_missing_packages(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", [{"text": "a"}])
    pack(tmp_path / "x.txt.zst", b"a")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"x.parquet: reading Parquet needs .*: pip install 'mindgpt\[parquet\]'"):
        pieces(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x.txt.zst: reading Zstandard needs .*: pip install 'mindgpt\[zstd\]'"):
        pieces(tmp_path / "x.txt.zst")


def test_memory_does_not_grow_with_a_parquet_file(tmp_path):
    """Of one row group, which a reader of whole row groups would hold."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    noise = np.random.default_rng(0).bytes(30_000_000).hex()
    rows = [noise[place : place + 1000] for place in range(0, len(noise), 1000)]
    parquet.write_table(arrow.table({"text": rows, "other": rows}), tmp_path / "x.parquet", row_group_size=len(rows))
    assert (tmp_path / "x.parquet").stat().st_size > 50 << 20
    held, most = arrow.total_allocated_bytes(), 0
    for piece, text in zip(document_pieces(tmp_path / "x.parquet"), rows, strict=True):
        assert piece.text == text
        most = max(most, arrow.total_allocated_bytes() - held)
    assert most < 16 << 20


@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.zst"])
def test_memory_does_not_grow_with_a_compressed_file(tmp_path, name):
    pack(tmp_path / name, b"a line of text\n" * 3_000_000)
    tracemalloc.start()
    try:
        length = sum(map(len, read_chunks(tmp_path / name)))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length == 45_000_000
    assert most < 16 << 20


def test_parquet_values(tmp_path):
    """Columns as data sets have them: dictionaries, nothing, lists of lines; rows keep their order over row groups."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = [f"text {number}" for number in range(500)]
    parquet.write_table(
        arrow.table({"text": arrow.array(names).dictionary_encode(), "n": list(range(500))}),
        tmp_path / "x.parquet",
        row_group_size=70,
        compression="zstd",
    )
    assert [piece.text for piece in document_pieces(tmp_path / "x.parquet")] == names
    assert [record.fields["n"] for record in read_records(tmp_path / "x.parquet")] == list(range(500))
    write_parquet(tmp_path / "y.parquet", [{"text": ["one", "two"]}, {"text": None}])
    skipped = []
    found = document_pieces(tmp_path / "y.parquet", on_bad=lambda error: skipped.append(str(error)))
    assert [piece.text for piece in found] == ["one\ntwo"]
    assert skipped == [f"{tmp_path}/y.parquet:2: 'text' must be a string; it is a NoneType."]
