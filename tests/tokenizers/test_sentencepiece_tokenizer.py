"""SentencePiece tokenizers: ids of the sentencepiece package and of transformers, conventions, files, messages."""

import io
import json
import pickle
import sys

import pytest

import mindgpt
from mindgpt import SentencePieceTokenizer
from mindgpt.config.errors import UserError

spm = pytest.importorskip("sentencepiece")

LINES = [
    "hello world, low lower lowest newer wider",
    "the quick brown fox jumps over the lazy dog",
    "这是很久之前的事情了",
    "今天天气不错，我们去公园",
    "GPT2模型 is 好的, Hello World!",
] * 5
# As T5's (spaces are stripped, unknown characters have no bytes) and as Llama's.
T5 = {"vocab_size": 150, "hard_vocab_limit": False, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
LLAMA = {
    "vocab_size": 420,
    "model_type": "bpe",
    "byte_fallback": True,
    "remove_extra_whitespaces": False,
    "normalization_rule_name": "identity",
}
# As of UER-py's --spm_model_path: the tokens of BERT are symbols of the model.
BERT = {"vocab_size": 200, "hard_vocab_limit": False, "user_defined_symbols": ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]}
TEXTS = [
    "hello world",
    " hello  world ",
    "",
    "  ",
    "这是 low 的公园",
    "é🎉 x\ty",
    "the fox\nHello, World!",
    "<0x41> ▁a",
]
NAMED = ["hello</s>low", "hello </s> low", "</s>hello", "</s></s> low </s>", "the <unk> fox"]


def train(**options):
    """A serialized model."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, minloglevel=2, **options)
    return model.getvalue()


@pytest.fixture(scope="module")
def models():
    return {"t5": train(**T5), "llama": train(**LLAMA), "bert": train(**BERT)}


def write(folder, model, name="tokenizer.model", **settings):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(model)
    for file, content in settings.items():
        (folder / f"{file}.json").write_text(json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["t5", "llama", "bert"])
def test_ids_and_texts_are_those_of_the_package(models, kind):
    theirs = spm.SentencePieceProcessor(model_proto=models[kind])
    ours = SentencePieceTokenizer(model=models[kind])
    assert ours.encode_batch(TEXTS) == theirs.encode(TEXTS)
    assert ours.tokenize(TEXTS[4]) == theirs.encode(TEXTS[4], out_type=str)
    assert ours.convert_tokens_to_string(ours.tokenize(TEXTS[4])) == theirs.decode(theirs.encode(TEXTS[4]))
    for text in TEXTS:
        ids = theirs.encode(text)
        if theirs.unk_id() not in ids:  # which the package shows as " ⁇ "
            assert ours.decode(ids) == theirs.decode(ids)
    assert [len(ours), ours.unk_token_id] == [theirs.vocab_size(), theirs.unk_id()]
    assert list(ours.get_vocab()) == [theirs.id_to_piece(number) for number in range(len(ours))]


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("t5", "T5Tokenizer", {}),
        ("llama", "LlamaTokenizer", {"add_bos_token": True}),
        ("llama", "LlamaTokenizer", {"add_bos_token": False, "add_eos_token": True}),
    ],
)
def test_ids_around_and_after_special_tokens_are_those_of_transformers(models, tmp_path, kind, name, settings):
    transformers = pytest.importorskip("transformers")
    file = "spiece.model" if kind == "t5" else "tokenizer.model"
    folder = write(tmp_path / "t", models[kind], file, tokenizer_config={"tokenizer_class": name, **settings})
    ours, theirs = mindgpt.load_tokenizer(folder), getattr(transformers, name).from_pretrained(folder)
    assert type(ours) is SentencePieceTokenizer
    special = {"add_special_tokens": kind == "t5"}  # transformers 5 forgets Llama's, from these files
    # transformers 5 puts no space before a text that begins with one, and T5 one after every name in a text.
    for text in TEXTS[:1] + TEXTS[4:7] + (NAMED if kind == "llama" else []):
        assert ours.encode(text, **special) == list(theirs.encode(text, **special)), text


def test_conventions_of_special_tokens(models, tmp_path):
    llama = mindgpt.load_tokenizer(
        write(tmp_path / "l", models["llama"], tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    )
    assert llama.tokenize("low", add_special_tokens=True) == ["<s>", "▁low"]
    assert (llama.bos_token_id, llama.eos_token_id, llama.unk_token_id, llama.pad_token) == (1, 2, 0, None)
    t5 = mindgpt.load_tokenizer(
        write(tmp_path / "t", models["t5"], tokenizer_config={"tokenizer_class": "T5TokenizerFast"})
    )
    assert t5.build_inputs_with_special_tokens([7], [8]) == [7, 1, 8, 1]
    assert (t5.eos_token, t5.pad_token_id, t5.new_tokens) == ("</s>", 0, [])
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    folder = write(tmp_path / "b", models["bert"], special_tokens_map=named)
    bert = mindgpt.load_tokenizer(folder)
    cls, sep = bert.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    assert (bert.bos_token_id, bert.eos_token_id, bert.pad_token) == (cls, sep, "[PAD]")
    assert bert.encode("low", "hello") == [cls, *bert.encode("low", add_special_tokens=False), sep] + [
        *bert.encode("hello", add_special_tokens=False),
        sep,
    ]
    assert bert("a", "b", return_token_type_ids=True, truncation=True, max_length=5).token_type_ids == [0, 0, 0, 1, 1]
    assert "[MASK]" in bert.all_special_tokens
    plain = mindgpt.load_tokenizer(write(tmp_path / "p", models["bert"]) / "tokenizer.model")
    assert plain.tokenize("low", add_special_tokens=True) == ["▁low"]


def test_decoding_piece_by_piece(models):
    for kind in ("t5", "llama"):
        tokenizer = SentencePieceTokenizer(model=models[kind])
        for text in ["hello world", "这是 low 的公园", "Hello, World! the fox"]:
            ids = tokenizer.encode(text)
            pieces = [tokenizer.token_text(new, last) for last, new in zip([None, *ids], ids, strict=False)]
            assert b"".join(pieces).decode() == tokenizer.decode(ids) == text
            assert tokenizer.token_text(ids[0], 10) == b" " + pieces[0]  # within a text
    llama = tokenizer
    assert llama.encode("é", add_special_tokens=False)[1:] == llama.convert_tokens_to_ids(["<0xC3>", "<0xA9>"])
    assert llama.token_bytes(llama.convert_tokens_to_ids("<0xC3>")) == b"\xc3"
    assert llama.decode(llama.convert_tokens_to_ids(["<0xC3>", "▁low"])) == "\ufffd low"
    ids = [1, *llama.encode("hello world"), 2]
    assert llama.decode(ids) == "<s>hello world</s>" and llama.decode(ids, skip_special_tokens=True) == "hello world"
    assert llama.decode([len(llama) + 5]) == ""


def test_added_tokens(models, tmp_path):
    tokenizer = SentencePieceTokenizer(model=models["llama"])
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<sep>", "<s>"]) == 1
    assert tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["[X] "]}) == 2
    low = tokenizer.encode("low")
    assert tokenizer.encode("low<sep> low[X] ") == [*low, size, *low, size + 2]
    assert tokenizer(["low", "low<sep>"], padding=True).input_ids == [[*low, size + 1], [*low, size]]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = mindgpt.load_tokenizer(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(SentencePieceTokenizer.FILES)
    assert again.vocab_hash() == tokenizer.vocab_hash() and again.special_tokens_map == tokenizer.special_tokens_map
    assert again.encode("low<sep>[PAD]") == pickle.loads(pickle.dumps(tokenizer)).encode("low<sep>[PAD]")
    assert again.all_special_tokens == tokenizer.all_special_tokens
    decoder = {str(size): {"content": "<x>", "lstrip": True, "special": True}, "1": {"content": "<s>", "special": True}}
    folder = write(tmp_path / "t", models["llama"], tokenizer_config={"added_tokens_decoder": decoder})
    assert mindgpt.load_tokenizer(folder).encode("low  <x>") == [*low, size]
    decoder["2"] = {"content": "<y>"}
    write(folder, models["llama"], tokenizer_config={"added_tokens_decoder": decoder})
    with pytest.raises(UserError, match="'<y>' should have id 2, but the model has '</s>' there"):
        mindgpt.load_tokenizer(folder)


def test_saving_keeps_the_conventions(models, tmp_path):
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    for kind, config in (
        ("bert", named),
        ("t5", {"tokenizer_class": "T5Tokenizer"}),
        ("llama", {"add_eos_token": True}),
    ):
        first = mindgpt.load_tokenizer(write(tmp_path / kind, models[kind], tokenizer_config=config))
        first.save_pretrained(tmp_path / "saved")
        again = mindgpt.load_tokenizer(tmp_path / "saved")
        assert again.encode("low", "hello [SEP]") == first.encode("low", "hello [SEP]")
        assert again.encode_batch(["low hello"], 3) == first.encode_batch(["low hello"], 3)


def test_a_folder_with_files_of_two_kinds(models, tmp_path):
    """Llama has tokenizer.json beside the model; Llama 3 calls the vocabulary of tiktoken tokenizer.model."""
    folder = write(tmp_path / "t", models["llama"], tokenizer={"model": {"type": "BPE"}})
    assert type(mindgpt.load_tokenizer(folder)) is SentencePieceTokenizer
    mindgpt.GPT2Tokenizer.train(["a text to learn from"], 260).save_pretrained(folder)
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert type(mindgpt.load_tokenizer(folder)) is mindgpt.GPT2Tokenizer


def test_bad_files_and_a_missing_package(models, tmp_path, monkeypatch):
    for name, content in (("empty", b""), ("text", b"IQ== 0\n"), ("half", models["llama"][:1000] + b"\xff")):
        (tmp_path / f"{name}.model").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.model is not a SentencePiece model, or not a whole one"):
            mindgpt.load_tokenizer(tmp_path / f"{name}.model")
    (tmp_path / "lfs.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        mindgpt.load_tokenizer(tmp_path / "lfs.model")
    with pytest.raises(UserError, match="is a folder; SentencePieceTokenizer.from_pretrained opens it"):
        SentencePieceTokenizer(tmp_path)
    folder = write(tmp_path / "x", models["t5"], tokenizer_config={"tokenizer_class": "XLMRobertaTokenizerFast"})
    with pytest.raises(UserError, match="tokenizer_class is XLMRobertaTokenizer, which does not give a text the ids"):
        mindgpt.load_tokenizer(folder)
    write(folder, models["t5"], tokenizer_config={"tokenizer_class": "T5Tokenizer", "extra_ids": 100})
    with pytest.raises(UserError, match="extra_ids 100: the ids of these tokens are not in the file"):
        mindgpt.load_tokenizer(folder)
    with pytest.raises(UserError, match="Text 0 is not valid Unicode"):
        SentencePieceTokenizer(model=models["t5"]).encode("a\ud800")
    with pytest.raises(UserError, match="too short for the special tokens"):
        SentencePieceTokenizer(model=models["t5"], add_eos_token=True).encode_batch(["low"], 0)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="the package sentencepiece is needed: pip install sentencepiece"):
        SentencePieceTokenizer(model=models["t5"])
