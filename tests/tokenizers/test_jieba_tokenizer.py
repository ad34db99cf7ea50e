"""The tokenizer of ModelScope's Chinese GPT-3 against jieba and `tokenizers` themselves."""

import copy
import json
import pickle

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mindgpt.config.data_sections import TokenizerSection
from mindgpt.config.errors import UserError
from mindgpt.tokenizers import jieba_words
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.jieba_words import WordSplitter, split_words
from mindgpt.tokenizers.loading import load_tokenizer, tokenizer_kind

jieba = pytest.importorskip("jieba", reason="the tokenizer needs jieba, and it is the oracle")

POEM = "两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。"
TEXTS = [
    POEM,
    "GPT-3 模型  is good,3.14%\n\n",
    "程序员脱发用什么洗发水<sep>\n答：<|endoftext|>",
    "\t空格　和\r\n换行 \u2028 a\u00a0b",
    "4220-4230 区间，过焾，30%--35%酒精，10.4.5 版本",  # where faster packages differ from jieba
    "𠀀𪜀 emoji 👨‍👩‍👧 ﷽",
    "",
    " ",
]
CONFIGURATION = """{
    # the model of the card
    "framework": "pytorch",
    "preprocessor": {
        "type": "text-gen-jieba-tokenizer",  # "quoted"
        "note": "# not a comment \\" # either"
    }
}
"""


@pytest.fixture(scope="module")
def tokenizer():
    return JiebaTokenizer.train(TEXTS * 2, 400)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A folder as ModelScope has them."""
    (tmp_path / "configuration.json").write_text(CONFIGURATION)
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def oracle(backend, text):
    """ModelScope's `tokenize`."""
    return backend.encode(list(jieba.cut(text)), is_pretokenized=True, add_special_tokens=True).ids


def word_level(decoder=None, special_line_end=False):
    """A tokenizer that knows a few words, with the three tokens that ModelScope's has."""
    words = ["[UNK]", "我", "们", "你好", " ", "a", "##b", "好</w>", "▁你", "天"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.add_special_tokens(["<|endoftext|>", "<sep>"])
    backend.add_tokens([AddedToken("\n", special=special_line_end, normalized=False)])
    if decoder is not None:
        backend.decoder = decoder
    return backend


# ---- words and ids ---------------------------------------------------------------------------------------------------


def test_words():
    words = ["GPT", "-", "3", " ", "模型", " ", " ", "is", " ", "good", ",", "3.14%", "\n", "\n"]
    assert split_words("GPT-3 模型  is good,3.14%\n\n") == words
    assert split_words("程序员脱发用什么洗发水") == ["程序员", "脱发", "用", "什么", "洗发水"]
    assert split_words("窗含西岭千秋雪") == ["窗含", "西岭", "千秋雪"]
    for text in TEXTS:
        assert "".join(split_words(text)) == text


def test_ids_are_those_of_jieba_and_tokenizers(tokenizer):
    rows = tokenizer.encode_batch(TEXTS)
    assert rows == [oracle(tokenizer._backend, text) for text in TEXTS]
    assert [tokenizer.decode(row) for row in rows] == TEXTS
    assert tokenizer.encode_batch(TEXTS, max_length=3) == [row[:3] for row in rows]


def test_names_of_tokens_in_a_text_are_text_but_for_line_ends(tokenizer):
    ids = tokenizer.encode("甲<sep>乙<|endoftext|>\n")
    assert tokenizer.sep_token_id not in ids and tokenizer.eos_token_id not in ids
    assert ids[-1] == tokenizer._id_of("\n") == len(tokenizer) - 1
    split = JiebaTokenizer(backend=tokenizer._backend, split_at=["<sep>"])
    for text, parts in (("甲<sep>乙\n", ["甲", "乙\n"]), ("<sep>", ["", ""]), ("a<sep><sep> b", ["a", "", " b"])):
        wanted = oracle(tokenizer._backend, parts[0])
        for part in parts[1:]:
            wanted += [tokenizer.sep_token_id, *oracle(tokenizer._backend, part)]
        assert split.encode(text) == wanted
    assert split.encode_batch(TEXTS[:2]) == tokenizer.encode_batch(TEXTS[:2])


def test_words_that_a_program_teaches_jieba_change_nothing(monkeypatch):
    taught = jieba.Tokenizer()
    monkeypatch.setattr(jieba, "dt", taught)
    monkeypatch.setattr(jieba, "cut", taught.cut)
    before = split_words(POEM)
    taught.add_word("黄鹂鸣翠柳", freq=10**6)
    assert "黄鹂鸣翠柳" in jieba.cut(POEM)
    assert split_words(POEM) == before


@pytest.mark.slow
def test_ids_of_two_megabytes_are_those_of_jieba_and_tokenizers(tokenizer, shared_data):
    files = (shared_data / "zh" / name for name in ("cluecorpussmall_sampled.txt", "chnsenticorp.dev.tsv"))
    texts = [line for file in files for line in file.read_text("utf-8").splitlines()]
    assert sum(len(text.encode()) for text in texts) > 2e6
    assert sum(map(len, texts)) > jieba_words.MUCH_TEXT, "several processes must have worked"
    assert tokenizer.encode_batch(texts) == [oracle(tokenizer._backend, text) for text in texts]


def test_ids_of_real_text(tokenizer, shared_data):
    lines = (shared_data / "zh" / "cluecorpussmall_sampled.txt").read_text("utf-8").splitlines()[:40]
    assert tokenizer.encode_batch(lines) == [oracle(tokenizer._backend, line) for line in lines]


@pytest.mark.long
def test_several_processes_give_the_words_of_one(monkeypatch):
    monkeypatch.setattr(jieba_words, "MUCH_TEXT", 0)
    monkeypatch.setattr(jieba_words, "_SENT", 0)
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    splitter = WordSplitter()
    texts = [*TEXTS, POEM * 30, *TEXTS[::-1]]
    assert splitter(texts) == [split_words(text) for text in texts]
    assert len(splitter._workers) == 2
    processes = [worker.process for worker in splitter._workers]
    processes[0].kill()
    with pytest.raises(UserError, match=r"has ended \(exit status -9\).*--num_workers 1"):
        splitter(texts * 3)
    del splitter
    assert all(process.poll() is not None for process in processes)


def test_a_process_that_has_ended_before_it_got_its_texts_is_cleared_away():
    worker = jieba_words._Worker()
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(UserError, match="A process that splits text into words has ended"):
        worker.words(TEXTS)
    jieba_words._end([worker])
    assert worker.process.stdin.closed and worker.process.stdout.closed


def test_copies_give_the_same_ids(tokenizer):
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert again._split is not tokenizer._split


# ---- decoding --------------------------------------------------------------------------------------------------------


def test_decoding_ends_at_the_first_separator(tokenizer):
    sep, end = tokenizer.sep_token_id, tokenizer.eos_token_id
    ids = [*tokenizer.encode("上\n下"), sep, *tokenizer.encode("后"), sep, end]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "上\n下"
    assert tokenizer.decode(ids) == "上\n下<sep>后<sep><|endoftext|>"
    assert tokenizer.decode([sep, *ids], True) == ""


def test_a_line_end_that_is_a_special_token_vanishes():
    for special, text in ((True, "我 天"), (False, "我 \n 天")):
        backend = word_level(special_line_end=special)
        ids = JiebaTokenizer(backend=backend).encode("我\n天")
        assert JiebaTokenizer(backend=backend).decode(ids, True) == text == backend.decode(ids)


@pytest.mark.parametrize(
    "decoder",
    [None, decoders.BPEDecoder(suffix="</w>"), decoders.WordPiece(), decoders.Metaspace(), decoders.Fuse()],
    ids=["none", "BPE", "WordPiece", "Metaspace", "Fuse"],
)
def test_text_as_it_comes_is_what_the_decoder_gives(decoder):
    tokenizer = JiebaTokenizer(backend=word_level(decoder))
    for ids in ([1, 2, 3, 5, 6, 7, 1, 8, 9], [8, 8, 6, 5, 7, 7, 12, 1, 4, 4, 1], [6, 3], [0, 10, 1], []):
        parts = map(tokenizer.token_text, ids, [None, *ids])
        assert b"".join(parts).decode() == tokenizer.decode(ids) == tokenizer._backend.decode(ids, False)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "tokenizer.json", "configuration.json"])
def test_modelscopes_folder(folder, tokenizer, name):
    assert tokenizer_kind(folder / name) == "Jieba"
    opened = load_tokenizer(folder / name, split_at=["<sep>"])
    assert type(opened) is JiebaTokenizer and opened.split_at == ["<sep>"]
    assert opened.vocab_hash() == tokenizer.vocab_hash()
    assert (opened.bos_token, opened.eos_token, opened.prompt_special_tokens) == ("<|endoftext|>",) * 2 + ("none",)
    opened.save_pretrained(folder / "saved")
    saved = load_tokenizer(folder / "saved")
    assert saved.split_at == ["<sep>"] and saved.encode(TEXTS[2]) == opened.encode(TEXTS[2])
    assert load_tokenizer(folder / "saved", split_at=[]).encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


def test_other_folders_are_not_for_jieba(folder):
    assert tokenizer_kind(folder) == "Jieba"
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert tokenizer_kind(folder) == "byte-level BPE"
    (folder / "tokenizer_config.json").unlink()
    (folder / "configuration.json").write_text('{"preprocessor": {"type": "text-gen-tokenizer"}}')
    assert tokenizer_kind(folder) == "byte-level BPE"
    (folder / "configuration.json").write_text("{broken")
    assert tokenizer_kind(folder) == "byte-level BPE"
    (folder / "configuration.json").write_text(CONFIGURATION.replace('"preprocessor":', '"preprocessor"'))
    with pytest.raises(UserError, match=r"configuration.json:4:20: not valid JSON: Expecting ':' delimiter"):
        load_tokenizer(folder)


def test_a_tokenizer_without_the_tokens_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<|endoftext|>"]
    del content["model"]["vocab"]["<sep>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer.json: has no token '<sep>' and '\\n'. .* of another model\?"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer that can be read"):
        load_tokenizer(folder)


def test_special_tokens_around_texts_are_refused(tokenizer, tmp_path):
    backend = Tokenizer.from_str(tokenizer._backend.to_str())
    around = processors.TemplateProcessing(single=["<|endoftext|>", "$A"], special_tokens=[("<|endoftext|>", 0)])
    backend.post_processor = around
    with pytest.raises(UserError, match="post-processor puts special tokens around a text"):
        JiebaTokenizer(backend=backend)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "JiebaTokenizer", "add_bos_token": true}')
    with pytest.raises(UserError, match="tokenizer_config.json: JiebaTokenizer puts no special tokens"):
        load_tokenizer(tmp_path)


def test_values_that_are_not_allowed(tokenizer):
    for split_at, message in (("<sep>", "must be a list"), ([""], "must be a list"), (["<x>"], "'<x>' is not a token")):
        with pytest.raises(UserError, match=message):
            JiebaTokenizer(backend=tokenizer._backend, split_at=split_at)
    with pytest.raises(UserError, match="one of tokenizer_file and backend"):
        JiebaTokenizer()
    with pytest.raises(UserError, match="at least 259"):
        JiebaTokenizer.train(["a"], 258)


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setattr(jieba_words, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="by the package jieba, which is not installed: pip install jieba"):
        load_tokenizer(folder)


def test_an_unknown_word_is_reported_as_such():
    tokenizer = JiebaTokenizer(backend=word_level())
    assert (
        tokenizer.unk_token == "[UNK]"
        and tokenizer.new_tokens == []
        and tokenizer.encode("我猫") == [1, tokenizer.unk_token_id]
    )


def test_learned_vocabulary(tokenizer):
    """Its merges are those of `tokenizers` on jieba's words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=399, min_frequency=2, special_tokens=["<|endoftext|>", "<sep>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator((list(jieba.cut(text)) for text in TEXTS * 2), trainer)
    vocabulary = tokenizer.get_vocab()
    assert vocabulary.pop("\n") == len(vocabulary)
    assert vocabulary == dict(sorted(backend.get_vocab().items(), key=lambda item: item[1]))


# ---- the YAML --------------------------------------------------------------------------------------------------------


def test_a_yaml_names_it(folder):
    from types import SimpleNamespace

    from mindgpt.tasks.prompts import find_tokenizer

    def found(**settings):
        section = TokenizerSection(**settings)
        return find_tokenizer(SimpleNamespace(processor=SimpleNamespace(tokenizer=section)))

    assert found(path=str(folder), split_at=["<sep>"]).split_at == ["<sep>"]
    assert found(path=str(folder), type="JiebaTokenizer", bos_token="<|endoftext|>").kind == "Jieba"
    (folder / "alone.json").write_bytes((folder / "tokenizer.json").read_bytes())
    alone = {"tokenizer_file": str(folder / "alone.json")}
    assert found(**alone).kind == "byte-level BPE"
    assert found(**alone, type="JiebaBPETokenizer", split_at=["<sep>"]).split_at == ["<sep>"]
    with pytest.raises(UserError, match="processor.tokenizer.split_at: is for a Jieba tokenizer, .* byte-level BPE"):
        found(**alone, split_at=["<sep>"])
    with pytest.raises(UserError, match="processor.tokenizer.rules: is for a WordPiece tokenizer, .* holds Jieba"):
        found(path=str(folder), rules="uer")
