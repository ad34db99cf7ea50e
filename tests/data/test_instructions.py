"""Instruction data; the oracle builds every row token by token with the tokenizer alone."""

import json

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.instruction_rows import write_examples
from mindgpt.data.instructions import FORMATS, ExampleReader, Instruction, format_with_keys, read_templates
from mindgpt.data.records import BadRecords


@pytest.fixture
def examples(tmp_path):
    """The examples in files of the given contents."""

    def examples(*files, **arguments):
        paths = []
        for name, content in files:
            paths.append(tmp_path / name)
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return list(ExampleReader(paths, **arguments))

    return examples


def rows_of(path):
    columns = ["input_ids", "attention_mask", "labels"]
    dataset = build_dataset(path, batch_size=1, columns=columns, drop_remainder=False)
    batches = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    return [tuple(column[0].tolist() for column in batch) for batch in batches]


# ---- examples --------------------------------------------------------------------------------------------------------


def test_alpaca(examples):
    records = [
        {"instruction": "Add.", "input": "1 {input}", "output": "2"},
        {"instruction": "Say {instruction}", "input": "", "output": " hi "},
        {"instruction": "Go", "output": "ok"},
        {"instruction": "Go", "input": None, "output": "ok"},
    ]
    go = Instruction("### Instruction:\nGo\n\n### Response:\n", "ok")
    wanted = [
        Instruction("### Instruction:\nAdd.\n\n### Input:\n1 {input}\n\n### Response:\n", "2"),
        Instruction("### Instruction:\nSay {instruction}\n\n### Response:\n", " hi "),
        go,
        go,
    ]
    assert examples(("a.json", records)) == wanted
    assert examples(("a.csv", "instruction,input,output\nAdd.,1 {input},2\n")) == wanted[:1]


def test_pairs(examples):
    assert examples(("a.jsonl", '{"prompt": "a", "response": "b"}')) == [Instruction("a", "b")]
    assert examples(("a.jsonl", '{"id": 1, "prompt": "a", "completion": " b"}')) == [Instruction("a", " b")]
    both = {"prompt": "a", "completion": "b", "response": "c"}
    assert examples(("a.json", [both]), record_format=FORMATS["prompt_response"]) == [Instruction("a", "c")]
    with pytest.raises(UserError, match="a.json:1: .*fit prompt_response and prompt_completion; name one"):
        examples(("a.json", [both]))


def test_source_and_target_or_text_to_continue(examples):
    table = 'src_txt,tgt_txt\nask,answer\nplain,\n"over\nlines",x\n'
    assert examples(("a.csv", table)) == [
        Instruction("ask", "answer"),
        Instruction("", "plain"),
        Instruction("over\nlines", "x"),
    ]
    assert examples(("a.tsv", "src_txt\nplain text\n")) == [Instruction("", "plain text")]
    lines = '{"src_txt": "a", "tgt_txt": "b"}\n{"src_txt": "c"}\n{"src_txt": "d", "tgt_txt": null}'
    assert examples(("a.jsonl", lines)) == [Instruction("a", "b"), Instruction("", "c"), Instruction("", "d")]


def test_every_file_has_its_own_format(examples, tmp_path):
    files = ("a.json", [{"instruction": "i", "output": "o"}]), ("b.tsv", "prompt\tresponse\np\tr\n")
    assert [example.response for example in examples(*files)] == ["o", "r"]
    reader = ExampleReader([tmp_path / "a.json"])
    (tmp_path / "a.json").write_text('[{"instruction": "i", "output": "o", "id": 3, "history": []}]')
    assert list(reader)
    assert reader.unused == {"id", "history"}


def test_templates(examples, tmp_path):
    alpaca = {"description": "x", "prompt_input": "{input}|{instruction}>", "prompt_no_input": "{instruction}>"}
    (tmp_path / "t.json").write_text(json.dumps(alpaca | {"response_split": ">"}))
    templates = read_templates(tmp_path / "t.json")
    records = [{"instruction": "a {input}", "input": "{b}", "output": "c"}, {"instruction": "a", "output": "c"}]
    assert examples(("a.json", records), templates=templates) == [
        Instruction("{b}|a {input}>", "c"),
        Instruction("a>", "c"),
    ]
    with pytest.raises(UserError, match="a.jsonl needs prompt; there is prompt_input, prompt_no_input"):
        examples(("a.jsonl", '{"prompt": "a", "response": "b"}'), templates=templates)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "should hold a JSON object with prompt_input"),
        ('{"promt": "{prompt}"}', "promt is unknown; did you mean 'prompt'?"),
        ('{"prompt": "no place"}', r"prompt must be a text with \{prompt\} in it"),
        ('{"prompt_input": "{instruction}"}', r"prompt_input must be a text with \{input\} and \{instruction\}"),
        ('{"prompt": "{prompt} {answer}"}', r"and no other \{field\}"),
        ('{"prompt": 5}', "prompt must be a text"),
    ],
)
def test_templates_with_missing_fields_are_refused(tmp_path, content, message):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_templates(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"instruction": "i",\n"output": "o"},\n{"instruction": "i"}]', "a.json:3: no key 'output'"),
        ("a.json", '[{"instruction": "", "output": "o"}]', "a.json:1: 'instruction' is empty"),
        ("a.json", '[{"instruction": "i", "output": ["o"]}]', "a.json:1: 'output' must be a string; it is a list"),
        ("a.json", '[{"instruction": "i", "input": 4, "output": "o"}]', "a.json:1: 'input' must be a string"),
        ("a.jsonl", '{"question": "q", "answer": "a"}', "a.jsonl:1: the keys 'question', 'answer' fit no format"),
        ("a.csv", "\n\nask,answer\n1,2\n", "a.csv:1: the keys 'ask', 'answer' fit no format .*src_tgt: src_txt"),
        ("a.csv", "src_txt,tgt_txt\na,b\n  ,c\n", "a.csv:3: 'src_txt' is empty"),
        ("a.json", '[{"question": "q", "answer": "a"}]', "--prompt_key NAME --response_key NAME, and --input_key NAME"),
        ("a.json", '[{"instruction": "i", "input": "x", "response": "o"}]', "'input', 'response' fit no format"),
        ("a.json", '[{"instruction": "i", "context": "x", "output": "o"}]', "'context', 'output' fit no format"),
    ],
)
def test_bad_records(examples, name, content, message):
    with pytest.raises(UserError, match=message):
        examples((name, content))


def test_bad_records_are_left_out(examples):
    bad = BadRecords()
    records = [{"instruction": "", "output": "o"}, {"instruction": "j", "output": "o"}, 7]
    assert [example.response for example in examples(("a.json", records), on_bad=bad)] == ["o"]
    assert bad.count == 2


def test_records_without_a_response_are_left_out_and_counted(tmp_path):
    """As 28 of the 52,002 records of Stanford's alpaca_data.json are."""
    outputs = ["", "o", " \n", None, "p"]
    records = [{"instruction": "i", "input": "", "output": output} for output in outputs]
    (tmp_path / "a.json").write_text("[" + ",\n".join(map(json.dumps, records)) + "]")
    reader = ExampleReader([tmp_path / "a.json"])
    assert [example.response for example in reader] == ["o", "p"]
    assert reader.empty.count == 3
    assert "a.json:3: 'output' is empty." in reader.empty.first


def test_dolly(examples):
    records = [
        {"instruction": "Add.", "context": "1 1", "response": "2", "category": "x"},
        {"instruction": "Go", "context": "", "response": "ok", "category": "x"},
    ]
    wanted = [
        Instruction("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n", "2"),
        Instruction("### Instruction:\nGo\n\n### Response:\n", "ok"),
    ]
    assert examples(("a.jsonl", "\n".join(map(json.dumps, records)))) == wanted
    assert examples(("a.csv", "instruction,response,,\nGo,ok,,\n")) == wanted[1:]


def test_other_keys(examples):
    question = ("a.json", [{"question": "q", "facts": "f", "answer": "a"}, {"question": "q", "answer": "a"}])
    assert examples(question, record_format=format_with_keys(None, "question", "answer")) == [Instruction("q", "a")] * 2
    with_input = [
        Instruction("### Instruction:\nq\n\n### Input:\nf\n\n### Response:\n", "a"),
        Instruction("### Instruction:\nq\n\n### Response:\n", "a"),
    ]
    assert examples(question, record_format=format_with_keys(None, "question", "answer", "facts")) == with_input
    assert examples(question, record_format=format_with_keys("alpaca", "question", "answer"))[1:] == with_input[1:]
    assert format_with_keys("src_tgt") is FORMATS["src_tgt"]
    assert format_with_keys(None) is None
    for keys, message in ((("a", None), "both required"), (("a", "a"), "must differ; they are 'a', 'a'")):
        with pytest.raises(UserError, match=message):
            format_with_keys(None, *keys)


# ---- rows ------------------------------------------------------------------------------------------------------------


def write(tmp_path, tokenizer, examples, **arguments):
    return write_examples(examples, tokenizer, tmp_path / "x.mindrecord", show_progress=False, **arguments)


def padded(ids, labels, length, eot):
    """The three columns of a row."""
    rest = length - len(ids)
    return ids + [eot] * rest, [1] * len(ids) + [0] * rest, labels + [-100] * rest


def test_only_the_response_and_end_of_text_have_labels(tmp_path, tokenizer):
    eot = tokenizer.eos_token_id
    prompt, response = tokenizer.encode("the quick"), tokenizer.encode(" brown fox")
    plain = tokenizer.encode("over the lazy dog")
    summary = write(tmp_path, tokenizer, [Instruction("the quick", " brown fox"), Instruction("", "over the lazy dog")],
                    max_length=40)  # fmt: skip
    assert rows_of(tmp_path / "x.mindrecord") == [
        padded(prompt + response + [eot], [-100] * len(prompt) + response + [eot], 40, eot),
        padded(plain + [eot], plain + [eot], 40, eot),
    ]
    assert (summary.examples, summary.continued, summary.rows) == (2, 1, 2)
    assert summary.tokens == len(prompt + response + plain) + 2
    assert summary.learned == len(response) + 1 + len(plain)  # nothing stands before the first token of a plain text
    assert summary.padding == pytest.approx(1 - summary.tokens / 80)
    metadata = inspect(tmp_path / "x.mindrecord").metadata
    assert (metadata["recipe"], metadata["block_length"], metadata["vocab_size"]) == ("instructions", 40, 300)


def test_too_long_examples(tmp_path, tokenizer):
    eot = tokenizer.eos_token_id
    prompt, response = tokenizer.encode("the quick"), tokenizer.encode(" brown fox jumps")
    whole = len(prompt) + len(response) + 1
    data = [Instruction("the quick", " brown fox jumps")]
    write(tmp_path, tokenizer, data, max_length=whole)
    assert rows_of(tmp_path / "x.mindrecord")[0][0] == prompt + response + [eot]

    for length in (whole - 1, len(prompt) + 1):
        summary = write(tmp_path, tokenizer, data, max_length=length, overwrite=True)
        kept = response[: length - len(prompt)]
        row = (prompt + kept, [1] * length, [-100] * len(prompt) + kept)  # no end-of-text: it does not end here
        assert rows_of(tmp_path / "x.mindrecord") == [row]
        assert (summary.truncated, summary.dropped, summary.examples) == (1, 0, 1)

    for arguments in ({"max_length": len(prompt)}, {"max_length": whole - 1, "too_long": "drop"}):
        with pytest.raises(UserError, match="nothing to write: all 1 examples are longer than --max_length"):
            write(tmp_path, tokenizer, data, overwrite=True, **arguments)
        summary = write(tmp_path, tokenizer, [*data, Instruction("a", "b")], overwrite=True, **arguments)
        assert (summary.truncated, summary.dropped, summary.examples, summary.rows) == (0, 1, 1, 1)
    assert len(rows_of(tmp_path / "x.mindrecord")) == 1


def test_packing_keeps_every_example_whole(tmp_path, tokenizer):
    draw = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    data = [
        Instruction(
            " ".join(draw.choice(words, draw.integers(1, 9))), " ".join(draw.choice(words, draw.integers(1, 20)))
        )
        for _ in range(500)
    ]
    eot = tokenizer.eos_token_id
    wanted = []
    for example in data:
        prompt, response = tokenizer.encode(example.prompt), tokenizer.encode(example.response)
        wanted.append((prompt + response + [eot], [-100] * len(prompt) + response + [eot]))
    summary = write(tmp_path, tokenizer, data, max_length=200, pack=True)
    found = []
    for ids, mask, labels in rows_of(tmp_path / "x.mindrecord"):
        real = sum(mask)
        assert mask == [1] * real + [0] * (200 - real)
        assert ids[real:] == [eot] * (200 - real)
        assert labels[real:] == [-100] * (200 - real)
        start = 0
        while start < real:
            end = ids.index(eot, start) + 1
            found.append((ids[start:end], labels[start:end]))
            start = end
    assert sorted(found) == sorted(wanted)
    assert summary.examples == 500
    assert summary.padding < 0.1
    needed = sum(len(ids) for ids, _ in wanted) / 200
    assert needed <= summary.rows < 1.1 * needed + 1


def test_a_real_sample(tmp_path, shared_data, gpt2_tokenizer_dir):
    """Stanford's seed tasks with OpenAI's vocabulary; the oracle is the library `tokenizers` and prompts spelt out."""
    from tokenizers import ByteLevelBPETokenizer

    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    file = shared_data / "text" / "alpaca_seed_tasks.json"
    summary = write(tmp_path, GPT2Tokenizer.from_pretrained(gpt2_tokenizer_dir), ExampleReader([file]), max_length=1025)
    plain = ByteLevelBPETokenizer(str(gpt2_tokenizer_dir / "vocab.json"), str(gpt2_tokenizer_dir / "merges.txt"))
    rows = []
    for record in json.loads(file.read_text(encoding="utf-8")):
        middle = f"### Input:\n{record['input']}\n\n" if record["input"] else ""
        prompt = plain.encode(f"### Instruction:\n{record['instruction']}\n\n{middle}### Response:\n").ids
        response = plain.encode(record["output"]).ids
        if len(prompt) < 1025:
            ids, labels = prompt + response + [50256], [-100] * len(prompt) + response + [50256]
            rows.append(padded(ids[:1025], labels[:1025], 1025, 50256))
    assert len(rows) == 174
    assert rows_of(tmp_path / "x.mindrecord") == rows
    assert (summary.examples, summary.dropped) == (174, 1)


def test_invalid_values_are_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="max_length must be at least 2"):
        write(tmp_path, tokenizer, [Instruction("a", "b")], max_length=1)
    with pytest.raises(UserError, match="the input holds no example"):
        write(tmp_path, tokenizer, [], max_length=8)
    with pytest.raises(UserError, match="1 rows are too few for 2 file"):
        write(tmp_path, tokenizer, [Instruction("a", "b")], max_length=8, num_splits=2)
    assert list(tmp_path.iterdir()) == []
