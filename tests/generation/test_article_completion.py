"""Articles are continued as by bert4keras, from text to text: pipeline, streams, ids, a run, the example."""

import ast
import contextlib
import io
import json
import sys

import mindspore
import pytest

import mindgpt
from mindgpt.config.errors import UserError
from mindgpt.generation import TextStreamer, generate_text, stream_text
from mindgpt.tasks.main import main
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from tests import programs
from tests.tokenizers.wordpiece_vocabularies import write_vocab

NAMES = "[PAD] [UNK] [CLS] [SEP] [MASK] 今 天 气 不 错 很 好 去 跑 步 。 ， it ' s 3 . 14 ok ##ay"
TOKENS = [*NAMES.split(), *map(chr, range(0x4E10, 0x4E20))]
PROMPT = "今天天气"
END = TOKENS.index("。")
SHAPE = {"vocab_size": len(TOKENS), "hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64}
ASKED = {"do_sample": True, "end_token": "。", "min_length": 6, "max_length": 30, "top_k": 20, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random toy model; its tokenizer_config.json names bert4keras's rules."""
    folder = write_vocab(tmp_path_factory.mktemp("article") / "model", TOKENS)
    WordPieceTokenizer.from_pretrained(folder, rules="bert4keras").save_pretrained(folder)
    mindspore.set_seed(0)
    config = mindgpt.GPT2Config(**SHAPE, eos_token_id=TOKENS.index("天"), initializer_range=0.1)
    mindgpt.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return mindgpt.pipeline("text-generation", model=folder, **ASKED)


def articles(pipe, prompts=(PROMPT,), **settings):
    return generate_text(pipe.generator, pipe.tokenizer, prompts, pipe.settings.changed(**settings), batch_size=2)


def test_an_article_is_the_prompt_and_what_bert4keras_decodes(pipe):
    found = articles(pipe, n=8)
    assert {one.finish_reason for one in found} == {"eos", "length"}
    for one in found:
        ids = one.token_ids
        assert one.text == pipe.tokenizer.decode(ids)
        assert (one.finish_reason == "eos") == (ids[-1] == END and len(ids) >= 6) and len(ids) <= 30
        assert END not in ids[5:-1]
        if one.finish_reason == "eos":
            assert one.text.endswith("。")
    assert any(TOKENS.index("天") in one.token_ids[:-1] for one in found)  # the config's eos_token_id
    assert any(END in one.token_ids[:5] for one in found)
    lengths = [(len(one.token_ids), one.finish_reason == "length") for one in found]
    assert lengths == sorted(lengths)
    whole = [{"generated_text": PROMPT + one.text} for one in found]
    assert pipe(PROMPT, num_return_sequences=8) == whole
    assert pipe([PROMPT], minlen=6, maxlen=30, topk=20, end_id=END, n=8) == [whole]


def test_what_comes_before_the_prompts_end_has_no_say_in_what_follows(pipe):
    """generate() of the original returns the prompt as typed, and after it what is decoded by itself."""
    for prompt in ("It's OK", "今 ok", "3."):
        (one,) = articles(pipe, [prompt])
        assert one.text == pipe.tokenizer.decode(one.token_ids)
        assert pipe(prompt) == [{"generated_text": prompt + one.text}]


def test_batches_and_streams_end_where_a_single_text_ends(pipe):
    prompts = [PROMPT, "今天天气不错，很好", "好", "it's ok"]
    alone = [
        generate_text(pipe.generator, pipe.tokenizer, [prompt], pipe.settings, numbers=[number])[0]
        for number, prompt in enumerate(prompts)
    ]
    pieces = [""] * len(prompts)

    def on_text(place, piece):
        pieces[place] += piece

    done = generate_text(pipe.generator, pipe.tokenizer, prompts, pipe.settings, batch_size=3, on_text=on_text)
    assert done == alone and pieces == [one.text for one in done]
    assert len({len(one.token_ids) for one in done}) > 1
    assert "".join(pipe.stream(PROMPT)) == alone[0].text
    assert "".join(stream_text(pipe.generator, pipe.tokenizer, PROMPT, pipe.settings)) == alone[0].text
    stopped = articles(pipe, stop_strings=[alone[0].text[3:5]])[0]
    assert (stopped.text, stopped.finish_reason) == (alone[0].text.partition(alone[0].text[3:5])[0], "stop")
    with pytest.raises(UserError, match="come in the order in which they end"):
        generate_text(
            pipe.generator, pipe.tokenizer, [PROMPT], pipe.settings.changed(n=2), on_text=lambda place, piece: None
        )


def test_ids_end_by_a_text_too(pipe, folder):
    ids = pipe.tokenizer.encode(PROMPT)
    expected = articles(pipe)[0]
    heard = []
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, on_text=heard.append)
    found = pipe.model.generate(ids, tokenizer=folder, streamer=streamer, **ASKED)
    assert found == [ids + expected.token_ids] == pipe.model.generate(ids, **ASKED | {"end_token": END})
    assert "".join(heard) == expected.text
    with pytest.raises(UserError, match="end_token: give the tokenizer=, too: it is a text, and these are ids"):
        pipe.model.generate(ids, **ASKED)
    with pytest.raises(UserError, match="generate: end_ids: there is no such argument"):
        pipe.model.generate(ids, end_ids=3)


def test_an_end_must_be_one_token(pipe):
    for call in (pipe, lambda prompt, **given: next(pipe.stream(prompt, **given))):
        with pytest.raises(
            UserError, match=r"end_token: '今天' must be one token; the tokenizer makes 2 .*: '今', '天'\."
        ):
            call(PROMPT, end_token="今天")
        with pytest.raises(UserError, match="end_token: the vocabulary does not know '龥', which becomes '.UNK.'"):
            call(PROMPT, end_token="龥")
        with pytest.raises(UserError, match="end_token: 99 is outside the vocabulary"):
            call(PROMPT, end_token=99)
    names = {name: articles(pipe, end_token=name, n=12, top_k=None) for name in ("[SEP]", "OK")}
    for name, found in names.items():
        ids = {one.token_ids[-1] for one in found if one.finish_reason == "eos"}
        assert ids == {TOKENS.index(name.replace("OK", "ok"))}


def test_beams(pipe):
    settings = {"do_sample": False, "top_k": None, "num_beams": 3}
    (one,) = articles(pipe, **settings)
    assert pipe(PROMPT, **settings) == [{"generated_text": PROMPT + one.text}]
    with pytest.raises(UserError, match="do_sample: not with end_token"):
        pipe(PROMPT, num_beams=3)


def test_the_names_of_both_programs_in_pipeline_and_task_settings(folder, tmp_path):
    """`task_specific_params` of a published folder do not get in the way of bert4keras's names."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["task_specific_params"] = {"text-generation": {"do_sample": True, "top_k": 50, "max_length": 20}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pipe = mindgpt.pipeline("text-generation", model=tmp_path, end_id="。", topk=5, minlen=3, maxlen=9)
    assert (pipe.settings.top_k, pipe.settings.max_new_tokens, pipe.settings.end_token) == (5, 9, "。")
    assert len(pipe.tokenizer.encode(pipe(PROMPT, return_full_text=False)[0]["generated_text"])) <= 9


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(folder, tmp_path, monkeypatch):
    """Run the program here: its exit status and its errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(
        "run_mode: predict\nseed: 3\nmodel:\n  model_config: {seq_length: 64, hidden_size: 32, num_layers: 2, "
        f"num_heads: 2, vocab_size: {len(TOKENS)}, do_sample: True, top_k: 20, max_decode_length: 30, min_length: 6, "
        "end_token: 。, num_return_sequences: 3}\n",
        "utf-8",
    )

    def run(*words):
        words = ["run_mindformer.py", "--config", "model.yaml", "--load_checkpoint", str(folder), *words]
        monkeypatch.setattr(sys, "argv", words)
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            main()
        return end.value.code, errors.getvalue()

    return run


@pytest.mark.usefixtures("cpu")
def test_a_run_obeys_the_yaml_and_options(start, pipe, tmp_path):
    status, errors = start("--predict_data", PROMPT, "好")
    assert status in (None, 0), errors
    lines = (tmp_path / "output" / "predictions.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    expected = articles(pipe, [PROMPT, "好"], n=3)
    assert [one["generated_text"] for one in found] == [one.prompt + one.text for one in expected]
    assert [one["finish_reason"] for one in found] == [one.finish_reason for one in expected]
    for options, message in (
        (["model.model_config.end_token=今天"], "end_token: '今天' must be one token"),
        (["model.model_config.min_length=31"], "min_length: 31 is more than there may be, 30"),
        (["model.model_config.end_id=3"], "end_id: unknown key; the name is end_token"),
    ):
        status, errors = start("--predict_data", PROMPT, "--options", *options)
        assert status == 2 and message in errors and "Traceback" not in errors


def test_the_example(folder, repo):
    command = [sys.executable, "examples/gpt2_ml/article_completion.py", folder, "今天", "好"]
    done = programs.run(command, repo, programs.user_environment() | {"PYTHONPATH": str(repo)})
    assert done.returncode == 0, done.stderr
    (first,), (second,) = map(ast.literal_eval, done.stdout.splitlines()[-2:])
    assert first.startswith("今天") and len(first) > 50 and second.startswith("好") and first != second


def test_the_example_without_a_model(tmp_path, repo):
    command = [sys.executable, "examples/gpt2_ml/article_completion.py", tmp_path / "none"]
    done = programs.run(command, repo, programs.user_environment() | {"PYTHONPATH": str(repo)})
    assert done.returncode == 2 and "there is no such folder" in done.stderr and "Traceback" not in done.stderr
