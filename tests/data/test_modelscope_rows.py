"""ModelScope's rows of GPT-3 against its preprocessor's arithmetic, in NumPy."""

import functools
import json

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.instruction_rows import write_examples
from mindgpt.data.instructions import ExampleReader, Instruction
from mindgpt.data.modelscope_rows import ModelScopeLayout, modelscope_layout
from mindgpt.data.records import BadRecords
from mindgpt.tokenizers.loading import load_tokenizer

POEM = "两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。"
WORDS = ["黄鹂", "翠柳", "<sep>", "\n", "白鹭", "青天", " ", "abc", "，", "千秋雪", "船"]
COLUMNS = ["input_ids", "attention_mask", "labels"]


@pytest.fixture(scope="module")
def jieba_tokenizer():
    pytest.importorskip("jieba")
    from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer

    return JiebaTokenizer.train([POEM, "".join(WORDS)] * 3, 380)


@pytest.fixture(scope="module")
def jieba_dir(jieba_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jieba")
    jieba_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tool(run_tool):
    return functools.partial(run_tool, "tools/dataset_preprocess/instruction_to_mindrecord.py")


def columns_of(path):
    dataset = build_dataset(path, batch_size=10_000, columns=COLUMNS, drop_remainder=False)
    (columns,) = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    return columns


def modelscope_row(source, target, sep, length):
    """A row and its loss mask, by `TextGenerationJiebaPreprocessor` and `GPT3ForTextGeneration`."""
    row = [*source, *(target or []), sep]
    prompts_len, inputs_len = min(len(source), length), min(len(row), length)
    row = np.pad(np.array(row[:length]), (0, max(0, length - len(row))))
    mask = np.zeros(length - 1, int)
    if target is None:
        mask[:prompts_len] = 1
    else:
        mask[prompts_len - 1 : inputs_len - 1] = 1
    return row, mask


def learned(labels):
    """The loss mask that labels stand for: position i predicts the token i + 1."""
    return (np.asarray(labels)[..., 1:] != -100).astype(int)


def test_the_example_of_the_facts():
    layout = ModelScopeLayout([], 2, keeps_separator=False)
    pair = layout.tokens([5, 6, 7], [8, 9], 8)
    assert pair == ([5, 6, 7, 8, 9, 2], [-100, -100, -100, 8, 9, 2])
    assert learned(pair.labels).tolist() == [0, 0, 1, 1, 1]  # and 0 0 of the padding
    assert layout.tokens([5, 6, 7], None, 8) == ([5, 6, 7, 2], [5, 6, 7, 2])
    assert learned(layout.tokens([5, 6, 7], None, 8).labels).tolist() == [1, 1, 1]
    assert layout.tokens([5, 6, 7], None, 3) == ([5, 6, 7], [5, 6, 7])
    assert layout.tokens([5, 6, 7], [8], 3) == ([5, 6, 7], [-100] * 3)


def test_an_empty_source_learns_its_target():
    """ModelScope's slice begins at -1 then, and leaves nothing, or the last position alone."""
    row = ModelScopeLayout([], 2, keeps_separator=False).tokens([], [8, 9], 8)
    assert row == ([8, 9, 2], [8, 9, 2])
    assert modelscope_row([], [8, 9], 2, 8)[1].sum() == 0


@pytest.mark.parametrize("pairs", [False, True], ids=["continue", "pairs"])
@pytest.mark.parametrize("length", [2, 7, 24])
def test_rows_and_masks_are_modelscopes(jieba_tokenizer, tmp_path, pairs, length):
    draw = np.random.default_rng(length)
    texts = ["".join(draw.choice(WORDS, draw.integers(1, 9))) + "x" for _ in range(120)]
    sources, targets = texts[::2], texts[1::2] if pairs else [None] * 60
    records = [
        {"src_txt": source} | ({} if target is None else {"tgt_txt": target})
        for source, target in zip(sources, targets, strict=True)
    ]
    examples = ExampleReader.of_records(records, all_alike=True)
    summary = write_examples(
        examples, jieba_tokenizer, tmp_path / "x.mindrecord", max_length=length, layout="modelscope",
        show_progress=False,
    )  # fmt: skip
    encode, sep = jieba_tokenizer.encode, jieba_tokenizer.sep_token_id
    wanted = [
        modelscope_row(encode(source), None if target is None else encode(target), sep, length)
        for source, target in zip(sources, targets, strict=True)
    ]
    rows, masks = (np.array(part) for part in zip(*wanted, strict=True))
    ids, attention, labels = columns_of(tmp_path / "x.mindrecord")
    np.testing.assert_array_equal(ids, rows)
    np.testing.assert_array_equal(learned(labels), masks)
    np.testing.assert_array_equal(labels[:, 1:][masks == 1], rows[:, 1:][masks == 1])
    lengths = [
        len(encode(source)) + len(encode(target or "")) + 1 for source, target in zip(sources, targets, strict=True)
    ]
    np.testing.assert_array_equal(attention.sum(1), np.minimum(lengths, length))
    assert summary.truncated == sum(size > length for size in lengths)
    assert summary.unlearned == (masks.sum(1) == 0).sum()
    assert (summary.rows, summary.learned) == (60, masks.sum())
    metadata = inspect(tmp_path / "x.mindrecord").metadata
    assert (metadata["recipe"], metadata["block_length"]) == ("modelscope", length)


def test_wordpiece_rows(wordpiece, tmp_path):
    """A text to continue is what transformers' tokenizer gives with truncation and padding to L tokens."""
    texts = ["春眠不觉晓", "处處聞啼鳥，春眠", "a"]
    for learn_padding in (False, True):
        write_examples(
            [Instruction("", text) for text in texts], wordpiece, tmp_path / "x.mindrecord", max_length=8,
            layout="modelscope", learn_padding=learn_padding, overwrite=True, show_progress=False,
        )  # fmt: skip
        ids, attention, labels = columns_of(tmp_path / "x.mindrecord")
        wanted = wordpiece(texts, truncation=True, padding="max_length", max_length=8, return_tensors="np")
        np.testing.assert_array_equal(ids, wanted.input_ids)
        mask = np.ones_like(ids) if learn_padding else wanted.attention_mask
        np.testing.assert_array_equal(attention, mask)
        np.testing.assert_array_equal(labels, np.where(mask == 1, wanted.input_ids, -100))
    assert inspect(tmp_path / "x.mindrecord").metadata["learn_padding"] is True
    pair = modelscope_layout(wordpiece).tokens([7, 8], [9], 8)
    cls, sep = wordpiece.cls_token_id, wordpiece.sep_token_id
    assert pair == ([cls, 7, 8, 9, sep], [-100] * 3 + [9, sep])


# ---- the tool --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_the_tool_reads_pairs(tool, jieba_dir, jieba_tokenizer, tmp_path, kind, capsys):
    pairs = [("黄鹂<sep>\n", "翠柳"), ("白鹭，", "青天\n船")]
    records = [{"src_txt": source, "tgt_txt": target} for source, target in pairs]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    table = "src_txt,tgt_txt\n" + "".join(f'"{source}","{target}"\n' for source, target in pairs)
    content = {"jsonl": lines, "json": json.dumps(records), "csv": table}[kind]
    (tmp_path / f"x.{kind}").write_text(content, "utf-8")
    arguments = ["--input_file", tmp_path / f"x.{kind}", "--tokenizer_type", jieba_dir, "--layout", "modelscope"]
    tool(*arguments, "--output_file", tmp_path / "a.mindrecord")
    ids, _, labels = columns_of(tmp_path / "a.mindrecord")
    assert ids.shape == (2, 128)
    sep = jieba_tokenizer.sep_token_id
    for row, label, (source, target) in zip(ids, labels, pairs, strict=True):
        wanted = modelscope_row(jieba_tokenizer.encode(source), jieba_tokenizer.encode(target), sep, 128)
        assert row.tolist() == wanted[0].tolist() and learned(label).tolist() == wanted[1].tolist()
    assert "2 example(s)" in capsys.readouterr().out
    tool(*arguments, "--output_file", tmp_path / "b.mindrecord", "--sequence_length", 20, "--split_at", "<sep>")
    ids, _, _ = columns_of(tmp_path / "b.mindrecord")
    assert ids.shape == (2, 20) and (ids == sep).sum(1).tolist() == [2, 1]


def test_the_tool_reads_texts_under_another_key(tool, jieba_dir, jieba_tokenizer, tmp_path, capsys):
    """As docs/chinese_gpt3.md has it of the poems; a template is for pairs."""
    (tmp_path / "x.jsonl").write_text(lines({"text1": "黄鹂"}, {"text1": "翠柳", "n": 1}), "utf-8")
    (tmp_path / "t.json").write_text('{"prompt": "{prompt}\\n"}')
    arguments = ["--input_file", tmp_path / "x.jsonl", "--tokenizer_type", jieba_dir, "--prompt_key", "text1"]
    tool(
        *arguments, "--layout", "modelscope", "--output_file", tmp_path / "a.mindrecord", "--template",
        tmp_path / "t.json",
    )  # fmt: skip
    ids, _, labels = columns_of(tmp_path / "a.mindrecord")
    for row, label, text in zip(ids, labels, ["黄鹂", "翠柳"], strict=True):
        wanted = modelscope_row(jieba_tokenizer.encode(text), None, jieba_tokenizer.sep_token_id, 128)
        assert row.tolist() == wanted[0].tolist() and learned(label).tolist() == wanted[1].tolist()
    assert "warning: 2 example(s) without a response: --template has no effect" in capsys.readouterr().err
    with pytest.raises(UserError, match="--prompt_key and --response_key are both required"):
        tool(*arguments, "--output_file", tmp_path / "b.mindrecord")


def test_a_tokenizer_is_learned_by_the_tool(run_tool, jieba_tokenizer, tmp_path, capsys):
    text = "".join([POEM, *WORDS] * 3)
    (tmp_path / "x.txt").write_text(text, "utf-8")
    run_tool(
        "tools/train_tokenizer.py", "--kind", "jieba", "--input_file", tmp_path / "x.txt", "--vocab_size", 310,
        "--output_dir", tmp_path / "t",
    )  # fmt: skip
    assert "310 tokens" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "t").get_vocab() == type(jieba_tokenizer).train([text], 310).get_vocab()


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", lines({"src_txt": "a", "tgt_txt": "b"}, {"src_txt": "c"}), "x.jsonl:2: has no 'tgt_txt', and the "),
        ("x.jsonl", lines({"src_txt": "a"}, {"src_txt": "c", "tgt_txt": "b"}), "x.jsonl:2: has 'tgt_txt', and the rows "
         "before have none. All rows need it, to learn 'tgt_txt' from 'src_txt', or none, to learn 'src_txt' as a"),
        ("x.csv", "src_txt,tgt_txt\na,b\nc,\n", "x.csv:3: has no 'tgt_txt'"),
        ("x.jsonl", lines({"src_txt": "a"}, {"text": "c"}), "x.jsonl:2: no key 'src_txt'"),
        ("x.jsonl", lines({"text": "c"}), "x.jsonl:1: the keys 'text' fit no format"),
        ("x.jsonl", lines({"src_txt": "", "tgt_txt": "b"}), "x.jsonl:1: 'src_txt' is empty"),
        ("x.jsonl", lines({"src_txt": 5}), "x.jsonl:1: 'src_txt' must be a string; it is a int"),
    ],
    ids=["some without", "some with", "empty cell", "no source", "no format", "empty source", "no text"],
)  # fmt: skip
def test_bad_rows(tool, jieba_dir, tmp_path, name, content, message):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=message):
        tool(
            "--input_file", tmp_path / name, "--tokenizer_type", jieba_dir, "--layout", "modelscope",
            "--output_file", tmp_path / "x.mindrecord",
        )  # fmt: skip
    assert not list(tmp_path.glob("*.mindrecord"))


def test_rows_that_differ_can_be_left_out_and_losses_are_reported(tool, jieba_dir, tmp_path, capsys):
    records = [{"src_txt": "黄鹂", "tgt_txt": "翠柳"}, {"src_txt": "船"}, {"src_txt": POEM, "tgt_txt": "船"}]
    (tmp_path / "x.jsonl").write_text(lines(*records), "utf-8")
    tool(
        "--input_file", tmp_path / "x.jsonl", "--tokenizer_type", jieba_dir, "--layout", "modelscope",
        "--output_file", tmp_path / "x.mindrecord", "--sequence_length", 10, "--skip_bad",
    )  # fmt: skip
    said = capsys.readouterr()
    assert "2 example(s)" in said.out and "--pack" not in said.out
    assert "warning: 1 example(s) of more than 10 tokens" in said.err
    assert "warning: 1 example(s) whose source fills the row: nothing of them is learned" in said.err
    assert "warning: 1 bad record(s) left out" in said.err and "x.jsonl:2: has no 'tgt_txt'" in said.err


def test_too_long_rows_can_be_dropped(jieba_tokenizer, tmp_path):
    examples = [Instruction("", POEM), Instruction("", "船")]
    summary = write_examples(
        examples, jieba_tokenizer, tmp_path / "x.mindrecord", max_length=10, layout="modelscope", too_long="drop",
        show_progress=False,
    )  # fmt: skip
    assert (summary.rows, summary.dropped, summary.truncated) == (1, 1, 0)


def test_options_that_do_not_go_together(tool, tokenizer, tokenizer_dir, tmp_path, jieba_tokenizer):
    write = functools.partial(write_examples, output_file=tmp_path / "x.mindrecord", max_length=8, show_progress=False)
    for options, message in (
        ({"layout": "modelscope", "pack": True}, "--pack has no effect"),
        ({"learn_padding": True}, "--learn_padding is for --layout modelscope"),
        ({"layout": "other"}, "layout must be one of instruction, modelscope"),
        ({"layout": "modelscope"}, r"end with the token '<sep>' .* this tokenizer \(byte-level BPE, 300 tokens\) has"),
    ):
        with pytest.raises(UserError, match=message):
            write([Instruction("a", "b")], tokenizer, **options)
    with pytest.raises(UserError, match="--learn_padding is for texts to continue"):
        write([Instruction("a", "b")], jieba_tokenizer, layout="modelscope", learn_padding=True)
    (tmp_path / "x.jsonl").write_text('{"src_txt": "a"}')
    with pytest.raises(UserError, match="--split_at is for the tokenizer of ModelScope's GPT-3, .* byte-level BPE"):
        tool(
            "--input_file", tmp_path / "x.jsonl", "--tokenizer_type", tokenizer_dir, "--split_at", "<sep>",
            "--output_file", tmp_path / "x.mindrecord",
        )  # fmt: skip


def test_records_of_a_program():
    bad = BadRecords()
    records = [{"src_txt": "a", "tgt_txt": "b"}, 7, {"prompt": "c"}, {"src_txt": "d", "tgt_txt": "e", "id": 1}]
    reader = ExampleReader.of_records(records, on_bad=bad)
    assert list(reader) == list(reader) == [Instruction("a", "b"), Instruction("d", "e")]
    assert reader.unused >= {"id"}
    assert bad.messages[:2] == [
        "record 2: should be a dict; it is a int.",
        "record 3: no key 'src_txt'. Name the key that holds the text; there are: 'prompt'.",
    ]
