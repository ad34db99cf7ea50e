"""Text of Chinese GPT-2 folders: the ids of transformers around every kind of prompt, spaces, ends, settings."""

import json

import pytest

import mindgpt
from mindgpt.config.errors import UserError
from mindgpt.generation import GenerationSettings, TextStreamer, generate_text
from mindgpt.generation.labels import encode_texts
from mindgpt.generation.prompt_ids import last_tokens, prompt_ids
from mindgpt.generation.streaming import StopStrings, TextStream
from mindgpt.generation.task_settings import settings_of_task
from mindgpt.generation.text_generation import encode_prompts
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from tests.generation.chinese_folder import CLS, SEP, greedy, publish

NEW = 24
SEED_PROMPT = "这是很久之前的事情了"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "这", "是", "好", "的", "hello", "world", "##s", "！", "!", "双"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A WordPiece tokenizer whose ids are the places in `TOKENS`."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", "utf-8")
    return mindgpt.load_tokenizer(folder)


@pytest.fixture(scope="module")
def published(shared_data, tmp_path_factory):
    """The folder, and its network of transformers."""
    folder = tmp_path_factory.mktemp("published") / "gpt2-chinese"
    return folder, publish(folder, shared_data / "zh" / "google_zh_vocab.txt")


@pytest.fixture(scope="module")
def pipe(published):
    return mindgpt.pipeline("text-generation", model=published[0], do_sample=False)


@pytest.fixture(scope="module")
def prompts(shared_data):
    """50 beginnings of real documents, and the seed's, in Chinese, Latin letters and digits."""
    lines = (shared_data / "zh" / "cluecorpussmall_sampled.txt").read_text("utf-8").split("\n")
    mixed = [SEED_PROMPT, "GPT2模型 is 好的, Hello World!", "hello", "双11，3.14", "café naïve", "[SEP]测试"]
    return [*mixed, *(line[: 5 + number % 20] for number, line in enumerate(lines[:44]))]


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [None, "all", "none"])
def test_greedy_ids_are_those_of_transformers(pipe, published, prompts, around):
    """The pipeline of transformers up to 4.42 put no special tokens around a prompt, and since 4.44 all of them."""
    transformers = pytest.importorskip("transformers")
    folder, network = published
    tokenizer = transformers.BertTokenizer.from_pretrained(str(folder))
    assert len(prompts) == 50
    expected = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=around == "all")
        expected.append(greedy(network, [CLS, *ids] if around is None else ids, NEW))
    settings = GenerationSettings.from_config(pipe.model.config, max_new_tokens=NEW)
    done = generate_text(pipe.generator, pipe.tokenizer, prompts, settings, prompt_special_tokens=around)
    assert [one.token_ids for one in done] == expected
    assert {one.finish_reason for one in done} == {"eos", "length"}
    assert all((one.finish_reason == "eos") == (ids[-1] == SEP) for one, ids in zip(done, expected, strict=True))
    for one, ids in zip(done, expected, strict=True):
        said = tokenizer.decode([number for number in ids if number != SEP], skip_special_tokens=False)
        if not said.startswith("##") and "[UNK]" not in said:  # transformers shows ## at the beginning of what is new
            assert one.text.replace(" ", "") == said.replace(" ", "")


def test_what_surrounds_a_prompt_is_a_setting_of_config_pipeline_and_call(pipe, published, tmp_path):
    folder, network = published
    bare = pipe.tokenizer.encode(SEED_PROMPT, add_special_tokens=False)
    texts = {}
    for around, ids in (("bos", [CLS, *bare]), ("all", [CLS, *bare, SEP]), ("none", bare)):
        new = greedy(network, ids, 8)
        whole = pipe.tokenizer.decode(bare + [number for number in new if number != SEP])
        texts[around] = [{"generated_text": whole}]
    assert pipe(SEED_PROMPT, max_new_tokens=8) == texts["bos"]
    assert pipe(SEED_PROMPT, max_new_tokens=8, prompt_special_tokens="all") == texts["all"]
    assert (
        SEED_PROMPT + "".join(pipe.stream(SEED_PROMPT, max_new_tokens=8, prompt_special_tokens="none"))
        == (texts["none"][0]["generated_text"])
    )
    of_pipeline = mindgpt.pipeline(
        "text-generation", model=pipe.model, tokenizer=pipe.tokenizer, prompt_special_tokens="none", max_new_tokens=8
    )
    assert of_pipeline(SEED_PROMPT) == texts["none"]
    assert of_pipeline(SEED_PROMPT, prompt_special_tokens="bos") == texts["bos"]
    model = mindgpt.GPT2LMHeadModel.from_pretrained(folder, prompt_special_tokens="all")
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["mindgpt"]["prompt_special_tokens"] == "all"
    pipe.tokenizer.save_pretrained(tmp_path / "saved")
    of_config = mindgpt.pipeline("text-generation", model=tmp_path / "saved", max_new_tokens=8)
    assert of_config(SEED_PROMPT) == texts["all"]
    assert SEED_PROMPT + "".join(of_config.stream(SEED_PROMPT)) == texts["all"][0]["generated_text"]
    for call in (pipe, pipe.stream):
        with pytest.raises(UserError, match="prompt_special_tokens: must be one of 'bos', 'all', 'none'"):
            call(SEED_PROMPT, prompt_special_tokens="cls")


def test_the_call_of_the_model_card(published, capsys):
    """`TextGenerationPipeline(model, tokenizer)(text, max_length=100, do_sample=True)`: the length counts [CLS]."""
    generate = mindgpt.pipeline("text-generation", model=str(published[0]))
    said = capsys.readouterr().out
    assert "task_specific_params.text-generation: do_sample=True, max_length=320 unless a call says otherwise" in said
    (result,) = generate(SEED_PROMPT, max_length=100, do_sample=True, seed=1)
    assert result["generated_text"].startswith(SEED_PROMPT)
    assert generate.settings.do_sample and generate.settings.max_length == 320
    again = generate(SEED_PROMPT, max_length=100, seed=1)  # sampling is what the folder asks for
    assert again == [result] != generate(SEED_PROMPT, max_length=100, do_sample=False)
    settings = generate.settings.changed(max_length=14, do_sample=False, eos_token_id=0)
    (one,) = generate_text(generate.generator, generate.tokenizer, [SEED_PROMPT], settings)
    assert len(one.token_ids) == 14 - 1 - len(SEED_PROMPT)
    mine = mindgpt.pipeline("text-generation", model=published[0], do_sample=False, max_new_tokens=5)
    assert (mine.settings.do_sample, mine.settings.max_length, mine.settings.max_new_tokens) == (False, None, 5)


def test_settings_of_a_task_that_mindgpt_does_not_have_are_named(tmp_path):
    file = tmp_path / "config.json"
    given = {"do_sample": True, "top_k": 0, "penalty": 3, "temperature": -1, "max_length": 50}
    file.write_text(json.dumps({"task_specific_params": {"text-generation": given, "other": {"top_p": 0.1}}}))
    settings, notes = settings_of_task(file, "text-generation")
    assert settings == {"do_sample": True, "max_length": 50}
    assert "penalty 3 is left out: mindgpt has no such setting" in notes[0] and "temperature -1 is left" in notes[1]
    for content in ({}, {"task_specific_params": None}, {"task_specific_params": {"text-generation": 3}}, []):
        file.write_text(json.dumps(content))
        assert settings_of_task(file, "text-generation") == ({}, [])


# ---- spaces, stop strings, streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "new", "text"),
    [
        ("hello", ["world", "##s", "！"], " worlds！"),
        ("hello", ["##s", "world"], "s world"),
        ("是", ["好", "的", "hello"], "好的hello"),
        ("[CLS]", ["hello", "world"], "hello world"),
    ],
)
def test_the_first_new_token_follows_the_last_of_the_prompt(small, last, new, text):
    before, ids = TOKENS.index(last), [TOKENS.index(token) for token in new]
    assert small.decode([before, *ids], skip_special_tokens=True)[0 if last == "[CLS]" else len(last) :] == text
    stream = TextStream(small, previous=before)
    assert "".join(map(stream.add, ids)) + stream.end() == text
    heard = []
    streamer = TextStreamer(small, skip_prompt=True, on_text=heard.append)
    for row in ([before], *([token] for token in ids)):
        streamer.put([row])
    streamer.end()
    assert "".join(heard) == text


def test_a_streamed_text_without_special_tokens_is_the_decoded_one(small):
    """Of what is left out, a space between two words does not depend."""
    prompt, new = [[TOKENS.index(token) for token in row] for row in (["[CLS]", "hello", "[SEP]"], ["world", "##s"])]
    heard = []
    streamer = TextStreamer(small, on_text=heard.append, skip_special_tokens=True)
    for row in (prompt, *([token] for token in new)):
        streamer.put([row])
    streamer.end()
    assert "".join(heard) == small.decode([*prompt, *new], skip_special_tokens=True) == "hello worlds"


@pytest.mark.parametrize(
    ("stop", "text"),
    [("好的", "是"), ("o w", "是好的hell"), ("s！", "是好的hello world"), ("这", None), (" world", "是好的hello")],
)
def test_stop_strings_across_tokens_of_wordpiece(small, stop, text):
    ids = [TOKENS.index(token) for token in ("是", "好", "的", "hello", "world", "##s", "！")]
    before = TOKENS.index("这")
    whole = "是好的hello worlds！"
    stream = TextStream(small, StopStrings([stop]), before)
    assert "".join(map(stream.add, ids)) + stream.end() == (whole if text is None else text)
    ends = [StopStrings([stop]).end_with(small, ids[: n + 1], before) for n in range(len(ids))]
    assert any(ends) == stream.stopped == (text is not None)
    if text is not None:  # at the very token that completes it, and not before
        first = ends.index(True)
        assert stop in small.decode(ids[: first + 1]) and stop not in small.decode(ids[:first])


def test_streams_and_stop_strings_of_a_model(pipe, prompts):
    for prompt in prompts[:12]:
        whole = pipe(prompt, max_new_tokens=NEW, return_full_text=False)[0]["generated_text"]
        assert "".join(pipe.stream(prompt, max_new_tokens=NEW)) == whole
        stop = whole[5:7]
        if len(stop) == 2:
            cut = pipe(prompt, max_new_tokens=NEW, return_full_text=False, stop_strings=[stop])
            assert cut[0]["generated_text"] == whole[: whole.index(stop)]
            assert "".join(pipe.stream(prompt, max_new_tokens=NEW, stop_strings=[stop])) == whole[: whole.index(stop)]
    ids = pipe.tokenizer.build_inputs_with_special_tokens(pipe.tokenizer.encode("hello", add_special_tokens=False))[:-1]
    free = pipe.model.generate(ids, max_new_tokens=NEW)[0][len(ids) :]
    text = pipe.tokenizer.decode([ids[-1], *free])[len("hello") :]
    stop = text[3:6]
    assert pipe.model.generate(ids, max_new_tokens=NEW, stop_strings=[stop], tokenizer=pipe.tokenizer)[0][
        len(ids) :
    ] == next(
        free[:n] for n in range(1, NEW + 1) if stop in pipe.tokenizer.decode([ids[-1], *free[:n]])[len("hello") :]
    )


def test_texts_to_label_have_both_special_tokens_and_are_not_empty(small):
    hello, cls, sep = TOKENS.index("hello"), small.bos_token_id, small.eos_token_id
    assert encode_texts(small, ["hello", "hello hello"], 3, 14) == ([[cls, hello, sep], [cls, hello, sep]], [1])
    with pytest.raises(UserError, match="Text 1 is empty: there is nothing to label"):
        encode_texts(small, ["hello", ""], 3, 14)


# ---- prompts that say nothing ----------------------------------------------------------------------------------------


def test_the_ids_of_a_prompt(small):
    ids = [TOKENS.index("hello")]
    cls, sep = small.bos_token_id, small.eos_token_id
    assert prompt_ids(small, ["hello", ""]) == prompt_ids(small, ["hello", ""], "bos") == [[cls, *ids], [cls]]
    assert prompt_ids(small, ["hello", ""], "all") == [[cls, *ids, sep], [cls, sep]]
    assert prompt_ids(small, ["hello", ""], "none") == [ids, []]
    for around in ("bos", "all", None):
        assert last_tokens(small, prompt_ids(small, ["hello", ""], around), around) == [*ids, cls]
    typed = prompt_ids(small, ["hello[SEP]"], "none")
    assert last_tokens(small, typed, "none") == [sep]
    byte_level = GPT2Tokenizer.train(["a rose is a rose"], 260)
    assert prompt_ids(byte_level, ["a rose"]) == [byte_level.encode("a rose")]
    assert last_tokens(byte_level, [[1, 2]]) == [2]


def test_a_text_of_unknown_characters_only_is_refused(small, pipe, tmp_path):
    settings = GenerationSettings(max_new_tokens=1)
    for around in ("bos", "all", "none"):
        for unknown in ("😀", "[CLS]😀 𠮷[SEP]", "[UNK]"):
            with pytest.raises(UserError, match=r"Prompt 1: the vocabulary knows nothing .* are \[UNK\]"):
                encode_prompts(small, ["hello", unknown], settings, 14, 64, prompt_special_tokens=around)
        encode_prompts(small, ["hello 😀"], settings, 14, 64, prompt_special_tokens=around)
    with pytest.raises(UserError, match="Prompt 1: the vocabulary knows nothing of this text"):
        pipe([SEED_PROMPT, "😀"])
    cased = WordPieceTokenizer(pipe.tokenizer.save_vocabulary(tmp_path)[0], do_lower_case=False)
    with pytest.raises(UserError, match="knows nothing of this text"):
        generate_text(pipe.generator, cased, ["HELLO"], GenerationSettings(max_new_tokens=1))
    byte_level = GPT2Tokenizer.train(["a rose is a rose"], 260)
    encode_prompts(byte_level, [byte_level.eos_token], settings, len(byte_level), 64)
