"""What `--predict_data` names, read file by file."""

import json

import pytest

from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.generation.text_generation import check_tokenizer_fits
from mindgpt.tasks.prompts import find_tokenizer, read_prompts
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

TEXTS = ["你好", "two words"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", "\ufeff你好\r\n\n\ufefftwo words\n"),
        ("x.json", json.dumps(TEXTS)),
        ("x.json", json.dumps([{"prompt": TEXTS[0]}, {"text": TEXTS[1], "id": 3}], indent=1)),
        ("x.JSONL", "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)),
        ("x.ndjson", "".join(json.dumps(text) + "\n" for text in TEXTS)),
        ("prompts", "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)),
        ("x.csv", "prompt,,\n你好,,\ntwo words\n"),
    ],
)
def test_files_of_prompts(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    prompts = read_prompts([str(tmp_path / name)])
    assert [prompt.text for prompt in prompts] == TEXTS
    assert all(prompt.name.startswith(f"{tmp_path / name}:") for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", '{"prompt": "a"}\n', "x.txt holds JSON, not a prompt a line. Name it .json or .jsonl"),
        ("x.json", "[5]", "x.json:1: the prompt must be a string; it is a int"),
        ("x.json", '[{"a": "b"}]', "x.json:1: must have one of the keys 'prompt' and 'text'; it has: 'a'"),
        ("x.csv", "ask\nhi\n", "x.csv:2: must have one of the keys 'prompt' and 'text'; it has: 'ask'"),
        ("x.json", '["a", " "]', "x.json:1: an empty text is no prompt"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts([str(tmp_path / name)])
    with pytest.raises(UserError, match="there is no file lost.JSON"):
        read_prompts(["lost.JSON"])


def test_hidden_files_of_a_folder_are_no_prompts(tmp_path, capsys):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in ("a.txt", "._a.txt", ".ipynb_checkpoints/a-checkpoint.txt"):
        (tmp_path / name).write_text(name)
    assert [prompt.text for prompt in read_prompts([str(tmp_path)])] == ["a.txt"]
    assert "is a folder: its .txt, .json, .jsonl, .ndjson, .parquet files are read" in capsys.readouterr().out


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def find(repo):
    """The tokenizer of a YAML whose `processor.tokenizer` has these keys."""

    def find(**keys):
        yaml = repo / "configs" / "gpt2" / "pretrain_gpt2_quickstart.yaml"
        values = {key: value if isinstance(value, bool) else str(value) for key, value in keys.items()}
        overrides = {f"processor.tokenizer.{key}": value for key, value in values.items()}
        return find_tokenizer(load_config(yaml, {**overrides, "run_mode": "predict"})[0])

    return find


EOT = "<|endoftext|>"
AS_MINDFORMERS = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), EOT)


def test_files_of_the_yaml_are_read_under_the_names_given(find, tmp_path):
    wanted, other = (GPT2Tokenizer.train([text], 280) for text in ("the fox " * 9, "a rose " * 9))
    other.save_pretrained(tmp_path)
    wanted.save_vocabulary(tmp_path, "gpt2")
    wanted.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer.json").rename(tmp_path / "mine.json")
    (tmp_path / "m").mkdir()
    (tmp_path / "gpt2-merges.txt").rename(tmp_path / "m" / "merges.txt")
    pair = {"vocab_file": tmp_path / "gpt2-vocab.json", "merges_file": tmp_path / "m" / "merges.txt"}
    for keys in (pair, {**pair, **AS_MINDFORMERS}, {"tokenizer_file": tmp_path / "mine.json"}):
        found = find(**keys)
        assert found.vocab_hash() == wanted.vocab_hash()
        assert found.encode("the fox") == wanted.encode("the fox")
    assert find(path=tmp_path).vocab_hash() == other.vocab_hash()


def test_end_of_text_that_every_yaml_names_is_not_added_to_a_vocabulary_with_an_end_of_its_own(find, tmp_path):
    own = GPT2Tokenizer.train(["the fox " * 9], 280)
    vocabulary = {token: number for token, number in own.get_vocab().items() if token != EOT}
    for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        vocabulary[token] = len(vocabulary)
    own.save_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    found = find(path=tmp_path, **AS_MINDFORMERS)
    assert len(found) == len(vocabulary)
    assert found.eos_token_id == vocabulary["</s>"]
    assert find(path=tmp_path, **AS_MINDFORMERS | {"eos_token": "<mask>"}).eos_token_id == vocabulary["<mask>"]
    own.save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "fox"}')
    (tmp_path / "tokenizer_config.json").unlink()
    assert find(path=tmp_path).eos_token == "fox"
    assert find(path=tmp_path, **AS_MINDFORMERS).eos_token == EOT


# ---- a WordPiece tokenizer -------------------------------------------------------------------------------------------


@pytest.fixture
def word_piece(tmp_path):
    """A folder with vocab.txt; ids: [UNK] 1, [CLS] 2, [SEP] 3, a 4, [ 5, sep 6, ] 7."""
    folder = tmp_path / "wordpiece"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "[", "sep", "]"]))
    return folder


def test_a_vocab_txt_is_a_tokenizer_of_the_yaml(find, word_piece):
    file = word_piece / "vocab.txt"
    for keys in (
        {"path": word_piece},
        {"path": file, **AS_MINDFORMERS},
        {"vocab_file": file},
        {"vocab_file": file, "type": "BertTokenizer"},
        {"path": word_piece, "type": "WordPieceTokenizer", "do_lower_case": True},
    ):
        found = find(**keys)
        assert found.encode("A [SEP]") == [2, 4, 3, 3]
        assert (found.bos_token, found.eos_token, len(found)) == ("[CLS]", "[SEP]", 8)
    assert find(path=word_piece, rules="uer").encode("a [SEP]") == [2, 4, 5, 6, 7, 3]
    assert find(vocab_file=file, do_lower_case=False).encode("A") == [2, 1, 3]


def test_a_vocabulary_of_another_size_is_refused(find, word_piece):
    tokenizer = find(path=word_piece)
    check_tokenizer_fits(tokenizer, 8)
    for size in (7, 21128):
        with pytest.raises(UserError, match=f"The tokenizer has 8 tokens, the model's vocab_size is {size}"):
            check_tokenizer_fits(tokenizer, size)


def test_the_tokenizer_beside_the_weights_is_named_with_its_kind(repo, word_piece, capsys):
    (word_piece / "model.ckpt").touch()
    yaml = repo / "configs" / "gpt2" / "pretrain_gpt2_quickstart.yaml"
    overrides = {"run_mode": "predict", "load_checkpoint": str(word_piece / "model.ckpt")}
    find_tokenizer(load_config(yaml, overrides)[0])
    assert f"tokenizer: {word_piece} (WordPiece, 8 tokens, lower case)\n" in capsys.readouterr().out


def test_settings_of_wordpiece_with_files_of_another_kind_are_refused(find, word_piece, tmp_path):
    GPT2Tokenizer.train(["the fox " * 9], 280).save_pretrained(tmp_path / "gpt2")
    for keys in ({"type": "BertTokenizer"}, {"rules": "uer"}, {"do_lower_case": False}):
        with pytest.raises(UserError, match=f"processor.tokenizer.{next(iter(keys))}: is for a WordPiece tokenizer"):
            find(path=tmp_path / "gpt2", **keys)
    with pytest.raises(UserError, match="merges_file: is of GPT2Tokenizer; WordPieceTokenizer has a vocab_file alone"):
        find(type="BertTokenizer", vocab_file=word_piece / "vocab.txt", merges_file=tmp_path / "gpt2" / "merges.txt")
    pair = {"vocab_file": tmp_path / "gpt2" / "vocab.json", "merges_file": tmp_path / "gpt2" / "merges.txt"}
    with pytest.raises(UserError, match="rules: is of WordPiece, which has no merges_file; remove one"):
        find(**pair, rules="uer")
    with pytest.raises(UserError, match="vocab_file: needs merges_file beside it"):
        find(vocab_file=tmp_path / "gpt2" / "vocab.json")
    with pytest.raises(UserError, match="rules"):
        find(path=word_piece, rules="tencent")
