"""WordPiece by the rules of bert4keras and GPT2_ML: ids and texts against references written from their description."""

import json
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.data.document_tokens import document_format
from mindgpt.generation.streaming import StopStrings, TextStream
from mindgpt.tokenizers.loading import load_tokenizer
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from tests.tokenizers.wordpiece_vocabularies import SPECIAL, any_text, pieces, write_vocab

FULL_WIDTH = "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､！？｡"
OF_CJK = "　、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·。"  # noqa: RUF001
WITHOUT_SPACE_AFTER = set(FULL_WIDTH + OF_CJK + "+-/={(<[")
CHINESE_BLOCKS = "4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF F900-FAFF 2F800-2FA1F"


def is_chinese(c):
    return any(int(a, 16) <= ord(c) <= int(b, 16) for a, b in (block.split("-") for block in CHINESE_BLOCKS.split()))


def is_punctuation(c):
    return c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(c)[0] == "P"


def tokens_of_bert4keras(text, vocab, lower=True):
    """The whole text in lower case and without accents first, then characters one by one, then words."""
    if lower:
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    spaced = ""
    for c in text:
        if is_punctuation(c) or is_chinese(c):
            spaced += f" {c} "
        elif c in " \n\r\t" or unicodedata.category(c) == "Zs":
            spaced += " "
        elif c not in "\0\ufffd" and unicodedata.category(c) not in ("Cc", "Cf"):
            spaced += c
    return [token for word in spaced.split() for token in pieces(word, vocab)]


def text_of_bert4keras(tokens):
    """`Tokenizer.decode`: tokens with their spaces, then the four corrections, each from left to right."""
    text = ""
    for token in tokens:
        token = token.strip()
        if token.startswith("[") and token.endswith("]"):
            continue
        if token.startswith("##"):
            text += token[2:]
        elif len(token) == 1 and (is_chinese(token) or is_punctuation(token)):
            text += token if is_chinese(token) else token + " "
        else:
            text += token if text and is_chinese(text[-1]) else " " + token
    while "  " in text:
        text = text.replace("  ", " ")
    short, place = "", 0
    while place < len(text):
        ending = next((e for e in ("re", "m", "s", "t", "ve", "d", "ll") if text.startswith(f"' {e} ", place)), None)
        short += text[place] if ending is None else f"'{ending} "
        place += 1 if ending is None else len(ending) + 3
    tight, place = "", 0
    while place < len(short):
        tight += short[place]
        place += 2 if short[place] in WITHOUT_SPACE_AFTER and short[place + 1 : place + 2] == " " else 1
    text, place = "", 0
    while place < len(tight):
        four = tight[place : place + 4]
        is_number = len(four) == 4 and four[1:3] == ". " and four[0].isdecimal() and four[3].isdecimal()
        text += four.replace(" ", "") if is_number else four[0]
        place += 4 if is_number else 1
    return text.strip()


def text_of_gpt2_ml(tokens):
    return "".join(token.strip() for token in tokens).replace("[UNK]", "").replace("##", "")


TEXT_OF = {"bert4keras": text_of_bert4keras, "gpt2_ml": text_of_gpt2_ml}
_opened, _vocabularies = {}, {}


def opened(folder, **options):
    """A tokenizer, made once for all generated examples."""
    key = (folder, *options.items())
    if key not in _opened:
        _opened[key] = WordPieceTokenizer.from_pretrained(folder, **options)
    return _opened[key]


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
@settings(max_examples=80, deadline=None)
@given(text=any_text)
def test_generated_unicode_has_the_ids_of_bert4keras(characters, lower, text):
    tokenizer = opened(characters, rules="bert4keras", do_lower_case=lower)
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = tokenizer.get_vocab()
    tokens = tokens_of_bert4keras(text, _vocabularies[tokenizer], lower)
    assert tokenizer.tokenize(text) == tokens
    assert tokenizer.encode(text) == tokenizer.convert_tokens_to_ids(tokens)


def test_real_texts_have_the_ids_and_texts_of_bert4keras(chinese_folder, shared_data):
    """With GPT-2 ML's two vocabularies."""
    texts = (shared_data / "zh" / "cluecorpussmall_sampled.txt").read_text("utf-8").split("\n")[:120]
    texts += (shared_data / "sst2" / "dev.tsv").read_text("utf-8").split("\n")[:40]
    texts += (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text("utf-8").split("\n")[:40]
    for vocab in (chinese_folder / "vocab.txt", shared_data / "gpt2_ml" / "clue-vocab.txt"):
        for rules, text_of in TEXT_OF.items():
            tokenizer = WordPieceTokenizer(vocab, rules=rules)
            known = tokenizer.get_vocab()
            rows = tokenizer.encode_batch(texts)
            expected = [tokens_of_bert4keras(text, known) for text in texts]
            assert [tokenizer.convert_ids_to_tokens(row) for row in rows] == expected
            assert tokenizer.batch_decode(rows) == [text_of(tokens) for tokens in expected]


@pytest.mark.parametrize("rules", ["bert4keras", "gpt2_ml"])
def test_known_ids_without_special_tokens_around_them(chinese_folder, shared_data, rules):
    tokenizer = load_tokenizer(chinese_folder, rules=rules)
    known = {
        "今天天气不错": [791, 1921, 1921, 3698, 679, 7231],
        "GPT2模型 is 好的, Hello World!": [13228, 8165, 8144, 3563, 1798, 8310, 1962, 4638, 117, 8701, 8572, 106],
        "双11，3.14": [1352, 8111, 8024, 124, 119, 8122],
        "[SEP]测试": [138, 9463, 140, 3844, 6407],
        "café naïve": [8377, 11469, 8857],
        "z" * 101: tokenizer.encode("z" * 101),
        "z" * 201: [100],
        "": [],
    }
    assert {text: tokenizer.encode(text) for text in known} == known
    assert tokenizer(["今天", "天"], padding=True).input_ids == [[791, 1921], [1921, 0]]
    assert tokenizer("今天", "天气", return_token_type_ids=True).token_type_ids == [0, 0, 1, 1]
    assert tokenizer.encode("今天", "天气") == [791, 1921, 1921, 3698]
    assert tokenizer.num_special_tokens_to_add(pair=True) == 0 == len(tokenizer.document_start)
    assert tokenizer.prompt_special_tokens == "none"
    assert document_format(tokenizer).begin == []
    clue = WordPieceTokenizer(shared_data / "gpt2_ml" / "clue-vocab.txt", rules=rules)
    assert (len(clue), clue.encode("。"), tokenizer.encode("。")) == (8021, [545], [511])


def test_the_sigma_at_the_end_of_a_word_depends_on_the_whole_text(characters):
    """Python's lower case looks past what BERT drops later; bert4keras asks for it before, UER after."""
    text = "ΑΣ\x00Α"
    ids = {rules: opened(characters, rules=rules).tokenize(text) for rules in ("bert4keras", "uer", "gpt2_ml")}
    assert ids["bert4keras"] == ["α", "##ς", "##α"]
    assert ids["uer"] == ids["gpt2_ml"] == ["α", "##σ", "##α"]


# ---- text ------------------------------------------------------------------------------------------------------------

NAMES = """don it ' s re ##re ve l ##l t m d . 1 3 14 ##2 , + - ( < = { / # ### ##x ab UNK U N K [ ]
    天 气 ##气 。 ， （ ##： — · ٣"""
TOKENS = [*SPECIAL, "[unused1]", *NAMES.split(), "\u2028", "##\u2028"]
NAMES_OFTEN = "' s t l ##l re . 1 3 # [ U N K ] 天 ab"
OFTEN = list(map(TOKENS.index, NAMES_OFTEN.split()))
frequent = st.lists(st.sampled_from(OFTEN), max_size=14)
ids_of_tokens = frequent | st.lists(st.integers(0, len(TOKENS) + 1), max_size=14)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_vocab(tmp_path_factory.mktemp("toy"), TOKENS)


@pytest.mark.parametrize("rules", ["bert4keras", "gpt2_ml"])
@settings(max_examples=500, deadline=None)
@given(ids=ids_of_tokens)
def test_any_tokens_have_the_text_of_the_rules_at_once_and_as_they_come(toy, rules, ids):
    """Ids after the vocabulary, which a larger embedding table can give, have no text."""
    tokenizer = opened(toy, rules=rules)
    tokens = [TOKENS[number] for number in ids if number < len(TOKENS)]
    text = TEXT_OF[rules](tokens)
    assert tokenizer.decode(ids) == text
    stream = TextStream(tokenizer, previous=TOKENS.index("ab"))  # the prompt has no say
    assert "".join([*map(stream.add, ids), stream.end()]) == text
    kept = [token for token in tokens if token not in SPECIAL]
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT_OF[rules](kept)


@pytest.mark.parametrize("rules", ["bert4keras", "gpt2_ml"])
@settings(max_examples=200, deadline=None)
@given(ids=frequent, stop=st.text("'st l.13#[天", min_size=1, max_size=3))
def test_a_text_ends_at_the_stop_string_at_which_the_engine_ends_it(toy, rules, ids, stop):
    tokenizer, stops = opened(toy, rules=rules), StopStrings([stop])
    stream = TextStream(tokenizer, stops)
    parts, ended = [], None
    for count, token in enumerate(ids, 1):
        parts.append(stream.add(token))
        assert stops.end_with(tokenizer, ids[:count]) == stream.stopped
        if stream.stopped:
            ended = count
            break
    parts.append(stream.end())
    whole = TEXT_OF[rules]([TOKENS[number] for number in ids[:ended]])
    assert "".join(parts) == whole.partition(stop)[0]


def test_little_is_held_back(toy):
    """What a token adds is there with the token, but for spaces and a contraction that may follow."""
    tokenizer = opened(toy, rules="bert4keras")
    tokens = ["天", "气", "。", "ab", "##x", ".", "it", "'", "s", "ab", "it", "'", "s", "天", "3", ".", "14"]
    decoder = tokenizer.text_decoder()
    parts = [decoder.add(tokenizer.convert_tokens_to_ids(token)).decode() for token in tokens]
    assert parts == ["天", "气", "。", "ab", "x", ".", " it", "'", "", "s ab", " it", "'", "", " s天", "3", ".", "14"]
    assert decoder.end() == b""


def test_examples_computed_by_hand(chinese_folder):
    examples = {
        "今天天气不错，可以去跑步。": ("今天天气不错，可以去跑步。", "今天天气不错，可以去跑步。"),
        "GPT2模型 is 好的, Hello World!": ("gpt2模型is好的, hello world!", "gpt2模型is好的,helloworld!"),
        "it's 3.14, don't go (x) 1. 2. 3. 4": (
            "it's 3.14, don't go(x) 1.2. 3.4",
            "it's3.14,don'tgo(x)1.2.3.4",
        ),
        "it's": ("it' s", "it's"),
        "未知𠮷😀，（全角） a - b": ("未知，（全角）a-b", "未知，（全角）a-b"),
        "## a": ("# # a", "a"),
    }
    texts = list(examples)
    for place, rules in enumerate(("bert4keras", "gpt2_ml")):
        tokenizer = load_tokenizer(chinese_folder, rules=rules)
        ids = tokenizer.encode_batch(texts)
        assert tokenizer.batch_decode(ids) == [examples[text][place] for text in texts]
    assert tokenizer.decode([101, 791, 102]) == "[CLS]今[SEP]"
    assert load_tokenizer(chinese_folder, rules="bert4keras").decode([101, 791, 102, 100, 1]) == "今"


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ["bert4keras", "gpt2_ml"])
def test_rules_are_recorded_in_the_folder(toy, tmp_path, rules):
    WordPieceTokenizer.from_pretrained(toy, rules=rules).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["rules"] == rules
    again = load_tokenizer(tmp_path / "saved")
    name = {"bert4keras": "bert4keras's rules", "gpt2_ml": "GPT2_ML's rules"}[rules]
    assert str(again) == f"WordPiece, {len(TOKENS)} tokens, lower case, {name}"
    ids = again.encode("天气 ab [SEP]")
    assert ids == opened(toy, rules=rules).encode("天气 ab [SEP]")
    assert (ids[0], again.decode(ids)) == (TOKENS.index("天"), TEXT_OF[rules](again.convert_ids_to_tokens(ids)))
    assert again.vocab_hash() == opened(toy).vocab_hash()
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "saved" / "vocab.txt", tmp_path / "bare")
    assert load_tokenizer(tmp_path / "bare").rules == "transformers"
    with pytest.raises(UserError, match=f"strip_accents: False is not possible with rules: {rules}"):
        load_tokenizer(tmp_path / "saved", strip_accents=False)
