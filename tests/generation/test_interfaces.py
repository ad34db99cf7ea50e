"""`model.generate` and `pipeline` against those of transformers, on the same weights and tokenizer."""

import json
import shutil

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import mindgpt
from mindgpt import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer, UserError
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.generation.engine import Batch
from mindgpt.generation.streaming import TextStreamer
from mindgpt.generation.text_generation import stream_text

torch = pytest.importorskip("torch", reason="the oracle is transformers on torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

WINDOW = 64
TEXT = "a rose is a rose is a rose, the rose is here; 你好 🌹 and a violet"
PROMPTS = ["a rose is", "the", "here; 你好 🌹", "a violet and a rose, the rose is here"]


@pytest.fixture(scope="module")
def tokenizer():
    return GPT2Tokenizer.train([TEXT] * 3, 300)


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A language model and a classifier of transformers, each saved with the tokenizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], tokenizer.eos_token_id)
    shape = {"vocab_size": len(tokenizer), "n_positions": WINDOW, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**shape, **ids, initializer_range=0.3, id2label={0: "sad", 1: "so", 2: "glad"})
    folders = tmp_path_factory.mktemp("lm"), tmp_path_factory.mktemp("classifier")
    for folder, kind in zip(
        folders, (transformers.GPT2LMHeadModel, transformers.GPT2ForSequenceClassification), strict=True
    ):
        kind(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    yield folders
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def peer(folders):
    return transformers.GPT2LMHeadModel.from_pretrained(folders[0]).eval()


@pytest.fixture(scope="module")
def model(folders):
    return GPT2LMHeadModel.from_pretrained(folders[0])


@pytest.fixture(scope="module")
def pipe(folders):
    return mindgpt.pipeline("text-generation", model=folders[0])


# ---- model.generate --------------------------------------------------------------------------------------------------


def by_transformers(peer, batch, **settings):
    ids, mask = torch.tensor(batch["input_ids"]).long(), torch.tensor(batch["attention_mask"])
    with torch.no_grad():
        return peer.generate(ids, attention_mask=mask, **settings).numpy()


@pytest.mark.parametrize("settings", [{"max_new_tokens": 9}, {"max_length": 30, "repetition_penalty": 1.5}])
def test_a_batch_padded_on_the_left_gives_the_ids_of_transformers(model, peer, tokenizer, settings):
    batch = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="np")
    theirs = by_transformers(peer, batch, do_sample=False, **settings)
    for as_given, dtype in ((np.int64, ms.int64), (np.int32, ms.int32)):
        ours = model.generate(Tensor(batch["input_ids"].astype(as_given)), Tensor(batch["attention_mask"]), **settings)
        assert isinstance(ours, Tensor)
        assert ours.dtype == dtype
        if "max_length" in settings:  # which in transformers counts a row's padding, and here does not
            for row, peers_row, mask in zip(ours.asnumpy(), theirs, batch["attention_mask"], strict=True):
                padding = int((mask == 0).sum())
                same = min(len(peers_row), 30) - padding
                assert row[padding : padding + same].tolist() == peers_row[padding : padding + same].tolist()
            continue
        assert ours.asnumpy().tolist() == theirs.tolist()


def test_where_padding_is_and_the_form_of_the_input_change_nothing(model, tokenizer):
    rows = tokenizer.encode_batch(PROMPTS)
    expected = model.generate(rows, max_new_tokens=6)
    assert [row[: len(ids)] for row, ids in zip(expected, rows, strict=True)] == rows
    assert len({len(row) for row in expected}) > 1
    right = tokenizer(PROMPTS, padding=True, return_tensors="np")
    padded = model.generate(right["input_ids"], right["attention_mask"], max_new_tokens=6, pad_token_id=7)
    longest = max(map(len, expected))
    assert padded.asnumpy().tolist() == [row + [7] * (longest - len(row)) for row in expected]
    assert model.generate(rows[0], max_new_tokens=6) == expected[:1]
    assert model.generate(np.array(rows[0]), max_new_tokens=6).asnumpy().tolist() == expected[:1]
    assert model.generate([np.array(row) for row in rows], max_new_tokens=6) == expected
    assert model.generate(rows[0], [1] * len(rows[0]), max_new_tokens=6) == expected[:1]


def test_rows_that_end_early_are_padded_as_in_transformers(model, peer, tokenizer):
    batch = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="np")
    free = by_transformers(peer, batch, do_sample=False, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    eos = [int(free[0][2]), int(free[1][5])]
    settings = {"max_new_tokens": 12, "eos_token_id": eos, "pad_token_id": 3}
    theirs = by_transformers(peer, batch, do_sample=False, **settings)
    assert (theirs[:, -1] == 3).any()
    assert model.generate(batch["input_ids"], batch["attention_mask"], **settings).asnumpy().tolist() == theirs.tolist()


def test_the_streamers_of_transformers_hear_what_they_would_hear_there(model, peer, tokenizer, folders, capsys):
    ids = tokenizer.encode(PROMPTS[0])
    theirs = transformers.AutoTokenizer.from_pretrained(folders[0])
    for skip_prompt in (False, True):
        batch = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
        by_transformers(
            peer, batch, max_new_tokens=9, streamer=transformers.TextStreamer(theirs, skip_prompt=skip_prompt)
        )
        expected = capsys.readouterr().out
        model.generate(ids, max_new_tokens=9, streamer=transformers.TextStreamer(theirs, skip_prompt=skip_prompt))
        assert capsys.readouterr().out == expected
        model.generate(ids, max_new_tokens=9, streamer=TextStreamer(tokenizer, skip_prompt=skip_prompt))
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([[[1, 2]]], {"max_new_token": 3}, "generate: max_new_token: there is no such argument; did you mean 'max_new"),
        ([[[1, 2]]], {"atention_mask": [[1, 1]]}, "did you mean 'attention_mask'"),
        ([[[1, 2]]], {"temperature": 0.0}, "temperature"),
        ([[[1, 2]]], {"top_p": 1.5}, "top_p"),
        (["a rose"], {}, "input_ids: must be token ids.*mindgpt.pipeline takes the text itself"),
        ([np.ones((1, 2))], {}, "input_ids: must be whole numbers of shape .* this is float64"),
        ([np.ones((1, 2, 3), np.int32)], {}, r"this is int32 of shape \(1, 2, 3\)"),
        ([[[1, 2], [3]], [[1, 1], [1, 1]]], {}, r"rows of \[2, 1\] tokens, not of \[2, 2\]"),
        ([[[1, 2, 3]], [[1, 0, 1]]], {}, "row 0 has a 0 between its tokens"),
        ([[[1, 2], [3, 4]], [[1, 1], [0, 0]]], {}, "row 1 is 0 throughout"),
        ([[[1, 2], []]], {}, "Prompt 1 is empty"),
        ([[[1, 999]]], {}, "Prompt 0 holds the id 999"),
        ([np.array([[1]])], {"pad_token_id": -1, "max_new_tokens": 1}, "pad_token_id: must be a token id"),
        ([[[1]]], {"stop_strings": ["rose"]}, "stop_strings: give the tokenizer="),
        ([[[1]]], {"stop_strings": ["rose"], "tokenizer": object()}, "must be a tokenizer of mindgpt's or its folder"),
        ([[[1]]], {"stop_strings": ["rose"], "tokenizer": "lost"}, "No tokenizer at lost"),
        ([[[1], [2]]], {"streamer": TextStreamer(GPT2Tokenizer.train([TEXT], 260))}, "streamer: follows one text"),
        ([[[1]]], {"streamer": print}, "streamer: must have the methods put and end"),
        ([], {}, "input_ids is missing"),
        ([[[1]]], {"inputs": [[1]]}, "two names of one argument"),
        ([["a", "b"]], {}, "input_ids: must be a list of token ids"),
        ([[[1, 2], [[3]]]], {}, "input_ids: must be a list of token ids"),
        ([{"input_ids": [1], "attention_mask": [1]}], {}, r"generate\(\*\*batch\)"),
        ([[[1, 2, 3]], 1], {}, "attention_mask: must be 1 at the tokens"),
        ([[[1, 2, 3]], "abc"], {}, "attention_mask: must be 1 at the tokens"),
        ([[[1, 2, 3]], [[0.0, -1e9, 0.0]]], {}, "attention_mask: must be 1 at the tokens"),
        ([[[1, 2], [3]], [[1, [1]], [1]]], {}, "attention_mask: must be 1 at the tokens"),
        ([[[1]]], {"pad_token_id": 10**9}, "pad_token_id: must be a token id, 0 to"),
        ([[[1]]], {"stop_sequence": "x"}, "stop_sequence: there is no such argument; the name is stop_strings"),
        ([[[1]]], {"use_cache": True}, "always generated with a key/value cache"),
    ],
)
def test_arguments_of_generate_that_are_refused(model, arguments, settings, message):
    with pytest.raises(UserError, match=message):
        model.generate(*arguments, **settings)


def test_the_names_of_transformers_for_the_prompt_and_a_folder_for_the_tokenizer(model, tokenizer, folders):
    ids = tokenizer.encode(PROMPTS[0])
    expected = model.generate(ids, max_new_tokens=3)
    assert model.generate(inputs=ids, max_new_tokens=3) == expected
    assert model.generate(**tokenizer(PROMPTS[0]), max_new_tokens=3) == expected
    stop = {"stop_strings": tokenizer.decode(expected[0][-2:-1]), "max_new_tokens": 3}
    assert model.generate(ids, tokenizer=folders[0], **stop) == model.generate(ids, tokenizer=tokenizer, **stop)


class Heard:
    """A streamer that keeps what it is told, and may break at a token."""

    def __init__(self, breaks_at=None):
        self.told, self.breaks_at = [], breaks_at

    def put(self, value):
        if len(self.told) == self.breaks_at:
            raise RuntimeError("broken")
        self.told.append(value.tolist())

    def end(self):
        self.told.append("end")


def test_a_streamer_hears_nothing_of_a_refused_prompt_and_the_end_of_a_broken_one(model):
    for prompt, settings in (([[1] * WINDOW], {}), ([[999]], {}), ([[1]], {"suppress_tokens": [999]})):
        heard = Heard()
        with pytest.raises(UserError):
            model.generate(prompt, streamer=heard, **settings)
        assert heard.told == []
    heard = Heard(breaks_at=3)
    with pytest.raises(RuntimeError, match="broken"):
        model.generate([1, 2], streamer=heard, max_new_tokens=9)
    assert heard.told[0] == [[1, 2]]
    assert heard.told[-1] == "end"


def test_no_token_that_ends_a_text_is_streamed(model, tokenizer):
    ids = tokenizer.encode(PROMPTS[0])
    new = model.generate(ids, max_new_tokens=9)[0][len(ids) :]
    last = next(n for n, token in enumerate(new) if n > 1 and token not in new[:n])
    texts = []
    streamer = TextStreamer(tokenizer, skip_prompt=True, on_text=texts.append)
    ended = model.generate(ids, max_new_tokens=9, eos_token_id=[new[last]], streamer=streamer)[0]
    assert ended[len(ids) :] == new[: last + 1]
    assert "".join(texts) == tokenizer.decode(new[:last])


def test_settings_of_drawing_without_drawing_are_warned_of(model, pipe, recwarn):
    model.generate([1], max_new_tokens=1, do_sample=True, temperature=0.5)
    pipe("a", max_new_tokens=1)
    assert not [one for one in recwarn if "do_sample" in str(one.message)]
    for run in (model.generate, pipe, pipe.stream):
        with pytest.warns(UserWarning, match="^temperature, top_k have no effect: do_sample is False") as warned:
            run("a" if run != model.generate else [1], max_new_tokens=1, temperature=0.5, top_k=5)
        assert [one.filename for one in warned] == [__file__]


# ---- pipelines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [PROMPTS[0], PROMPTS, PROMPTS[:1]])
@pytest.mark.parametrize("full", [None, False])
def test_text_generation_is_that_of_transformers(pipe, folders, texts, full):
    theirs = transformers.pipeline("text-generation", model=str(folders[0]))
    settings = {} if full is None else {"return_full_text": full}
    expected = theirs(texts, do_sample=False, max_new_tokens=9, **settings)
    assert pipe(texts, max_new_tokens=9, **settings) == expected
    assert pipe(texts, max_new_tokens=9, batch_size=1, **settings) == expected


def test_several_texts_of_a_prompt_and_seeds(pipe):
    settings = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3, "seed": 1}
    many = pipe(PROMPTS, **settings)
    assert [len(texts) for texts in many] == [3] * 4
    assert all(
        one["generated_text"].startswith(prompt) for prompt, texts in zip(PROMPTS, many, strict=True) for one in texts
    )
    assert len({one["generated_text"] for one in many[0]}) > 1
    assert pipe(PROMPTS, **settings, batch_size=2) == many
    assert pipe(PROMPTS[0], **settings) == many[0]
    assert pipe(PROMPTS[0], **{**settings, "seed": 2}) != many[0]


def test_settings_may_be_given_when_the_pipeline_is_made(model, tokenizer, pipe):
    made = mindgpt.pipeline("text-generation", model, tokenizer, max_new_tokens=4, return_full_text=False, batch_size=2)
    assert made(PROMPTS) == pipe(PROMPTS, max_new_tokens=4, return_full_text=False)
    assert made(PROMPTS[0], max_new_tokens=2) == pipe(PROMPTS[0], max_new_tokens=2, return_full_text=False)


def test_a_stream_is_the_text_in_pieces(pipe):
    for prompt in PROMPTS[:2]:
        for settings in ({}, {"do_sample": True, "seed": 3}):
            ((whole),) = pipe(prompt, max_new_tokens=20, return_full_text=False, **settings)
            pieces = list(pipe.stream(prompt, max_new_tokens=20, **settings))
            assert len(pieces) > 3
            assert "".join(pieces) == whole["generated_text"]
    for text, settings, message in (
        ("", {}, "Prompt 0 is empty"),
        (["a"], {}, "stream: takes one text"),
        ("a", {"num_return_sequences": 2, "do_sample": True}, "several texts cannot be read as one stream"),
        ("a", {"num_beams": 2}, "a beam search goes back"),
    ):
        with pytest.raises(UserError, match=message):
            pipe.stream(text, **settings)  # at the call, not at the first piece


def test_arguments_of_pipelines_that_are_refused(pipe, folders):
    for texts in (None, 3, b"abc", {"text": "a"}, ["a", 3]):
        with pytest.raises(UserError, match="pipeline: takes a text or a list of texts"):
            pipe(texts)
    with pytest.raises(UserError, match="return_full_text: must be True or False, not 'no'"):
        pipe("a", return_full_text="no")
    classifier = mindgpt.pipeline("text-classification", folders[1])
    with pytest.raises(UserError, match="foo: there is no such argument; known are: batch_size, truncation, top_k"):
        classifier("a", foo=1)
    for task, folder in zip(("text-generation", "text-classification"), folders, strict=True):
        for options, message in (
            ({"batch_size": "x"}, "batch_size: must be a whole number"),
            ({"batch_size": 0}, "batch_size: must be a whole number"),
            ({"device": 0}, "device: .*; mindspore.set_device chooses"),
        ):
            with pytest.raises(UserError, match=message):
                mindgpt.pipeline(task, folder, **options)


def test_a_stream_that_is_left_early_ends_the_generation(pipe, monkeypatch):
    steps = 0
    decode = Batch.decode

    def counted(*arguments):
        nonlocal steps
        steps += 1
        return decode(*arguments)

    monkeypatch.setattr(Batch, "decode", counted)
    stream = stream_text(pipe.generator, pipe.tokenizer, PROMPTS[0], pipe.settings.changed(max_new_tokens=40))
    next(stream)
    stream.close()
    monkeypatch.undo()
    assert steps < 10  # no further than the first whole character
    assert pipe(PROMPTS[1], max_new_tokens=5)


def test_stop_strings_cut_the_text_and_nothing_of_them_is_streamed(pipe, model, tokenizer):
    (free,) = pipe(PROMPTS[0], max_new_tokens=30, return_full_text=False)
    free = free["generated_text"]
    for begin, end in ((4, 5), (5, 9), (7, 8)):
        stop = free[begin:end]
        expected = free[: free.index(stop)]
        settings = {"max_new_tokens": 30, "stop_strings": [stop, "never said"]}
        (cut,) = pipe(PROMPTS[0], return_full_text=False, **settings)
        assert cut["generated_text"] == expected
        assert "".join(pipe.stream(PROMPTS[0], **settings)) == expected
        ids = model.generate(tokenizer.encode(PROMPTS[0]), tokenizer=tokenizer, **settings)[0]
        assert stop in tokenizer.decode(ids)[len(PROMPTS[0]) :]
        assert stop not in tokenizer.decode(ids[:-1])[len(PROMPTS[0]) :]


def test_stop_strings_end_beams_as_in_transformers(pipe, model, peer, tokenizer, folders):
    settings = {"num_beams": 3, "max_new_tokens": 12, "do_sample": False}
    ids = tokenizer.encode(PROMPTS[0])
    free = tokenizer.decode(model.generate(ids, **settings)[0][len(ids) :])
    stop = free[5:7]
    batch = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    theirs = transformers.AutoTokenizer.from_pretrained(folders[0])
    expected = by_transformers(peer, batch, stop_strings=[stop], tokenizer=theirs, **settings)
    assert model.generate(ids, stop_strings=[stop], tokenizer=tokenizer, **settings) == expected.tolist()
    (cut,) = pipe(PROMPTS[0], stop_strings=[stop], return_full_text=False, **settings)
    assert stop not in cut["generated_text"]


def test_generation_config_beside_the_weights(folders, peer, tokenizer, tmp_path, capsys):
    """Its ends of text, penalty and length are the defaults, as in transformers; what is not known is named."""
    folder = tmp_path / "lm"
    shutil.copytree(folders[0], folder)
    ids = tokenizer.encode(PROMPTS[0])
    free = peer.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0, len(ids) :].tolist()
    asked = {"eos_token_id": [free[4], free[6]], "max_new_tokens": 9, "repetition_penalty": 1.2, "epsilon_cutoff": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert "generation_config.json: mindgpt has no epsilon_cutoff: left out" in capsys.readouterr().out
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    expected = by_transformers(theirs, {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}, do_sample=False)
    assert model.generate(ids) == expected.tolist()
    assert len(model.generate(ids, max_new_tokens=2)[0]) == len(ids) + 2


def test_labels_are_those_of_transformers(folders):
    theirs = transformers.pipeline("text-classification", model=str(folders[1]))
    ours = mindgpt.pipeline("text-classification", model=folders[1], batch_size=3)
    for texts in (PROMPTS[0], PROMPTS):
        for keywords in ({}, {"top_k": None}, {"top_k": 2}, {"top_k": 1}):
            assert nearly(ours(texts, **keywords), theirs(texts, **keywords))
        made_so = transformers.pipeline("text-classification", model=str(folders[1]), top_k=2)
        assert nearly(
            mindgpt.pipeline("text-classification", ours.model, ours.tokenizer, top_k=2)(texts), made_so(texts)
        )


def nearly(ours, theirs):
    """Whether two results have the same form, labels and, to rounding, scores."""
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(nearly, ours, theirs))
    assert ours["label"] == theirs["label"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    return True


def test_texts_that_a_classifier_cannot_read(folders):
    ours = mindgpt.pipeline("text-classification", model=folders[1])
    with pytest.raises(UserError, match="Text 1 is empty"):
        ours(["a", ""])
    long = "a violet " * 60
    with pytest.raises(UserError, match="Text 0 has more tokens than the 64 that the model reads; truncation=True"):
        ours(long)
    cut = ours.tokenizer.decode(ours.tokenizer.encode(long)[:WINDOW])
    assert ours(long, truncation=True) == ours(cut)
    for wrong in (0, True, "all"):
        with pytest.raises(UserError, match="top_k: must be a number of labels"):
            ours("a", top_k=wrong)
    with pytest.raises(UserError, match="batch_size: must be"):
        ours("a", batch_size=0)


def test_our_folder_and_a_checkpoint_beside_its_config(folders, model, tokenizer, pipe, tmp_path):
    model.save_pretrained(tmp_path / "ours")
    expected = pipe(PROMPTS[0], max_new_tokens=3)
    assert mindgpt.pipeline("text-generation", tmp_path / "ours", folders[0])(PROMPTS[0], max_new_tokens=3) == expected
    model.config.save_pretrained(tmp_path)
    save_checkpoint(tmp_path / "x.ckpt", model)
    tokenizer.save_pretrained(tmp_path)
    made = mindgpt.pipeline("text-generation", model=str(tmp_path / "x.ckpt"))
    assert made(PROMPTS[0], max_new_tokens=3) == expected


def test_task_model_and_tokenizer_that_do_not_fit(folders, model, tokenizer, tmp_path):
    language, classifier = folders
    cases = [
        (["text-generaton", language], {}, "there is no task 'text-generaton'; did you mean 'text-generation'"),
        (["text-generation"], {}, "model=... is missing"),
        (
            ["text-generation", "gpt2"],
            {},
            "gpt2 is a model name, and there is no checkpoint_download/gpt2/gpt2.ckpt. mindgpt downloads nothing",
        ),
        (
            ["text-generation", "gpt2", tokenizer],
            {},
            "gpt2 is a model name, and there is no checkpoint_download/gpt2/gpt2.ckpt. mindgpt downloads nothing",
        ),
        (["text-generation", model], {}, "tokenizer=... is missing"),
        (["text-generation", classifier], {}, r'weights of a classifier: pipeline\("text-classification"'),
        (["text-classification", language], {}, "weights of a language model, which knows no labels"),
        (["text-classification", model, tokenizer], {}, r'this is a GPT2LMHeadModel: pipeline\("text-generation"'),
        (["text-generation", 3, tokenizer], {}, "needs a GPT2LMHeadModel, and this is a int"),
        (["text-generation", model, 3], {}, "tokenizer: must be a folder"),
        (["text-generation", model, tmp_path], {}, "No tokenizer in"),
        (["text-generation", language], {"top_pp": 1}, "top_pp: unknown key; did you mean 'top_p'"),
    ]
    larger = GPT2Tokenizer.train([TEXT + " more of other words"] * 3, 320)
    cases.append(
        (["text-generation", model, larger], {}, f"tokenizer has {len(larger)} tokens, the model's vocab_size")
    )
    wide = GPT2LMHeadModel(mindgpt.GPT2Config(**{**model.config.model_dump(), "vocab_size": len(tokenizer) + 1025}))
    cases.append(
        (["text-generation", wide, tokenizer], {}, f"tokenizer has {len(tokenizer)} tokens, the model's vocab")
    )
    model.save_pretrained(tmp_path / "bare")
    cases.append((["text-generation", tmp_path / "bare"], {}, "holds no tokenizer .*tokenizer.json.*: name the folder"))
    for arguments, keywords, message in cases:
        with pytest.raises(UserError, match=message):
            mindgpt.pipeline(*arguments, **keywords)
    assert isinstance(GPT2ForSequenceClassification.from_pretrained(classifier), GPT2ForSequenceClassification)


# ---- names that MindFormers and transformers have --------------------------------------------------------------------


def test_a_downloaded_model_is_found_by_its_name(model, tokenizer, tmp_path, monkeypatch):
    """`from_pretrained("gpt2")` and `pipeline(model="gpt2")` look where the command line looks."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gpt2 is a model name, and there is no checkpoint_download/gpt2/gpt2.ckpt"):
        GPT2LMHeadModel.from_pretrained("gpt2")
    folder = tmp_path / "checkpoint_download" / "gpt2"
    model.save_pretrained(folder)
    (folder / "model.ckpt").rename(folder / "gpt2.ckpt")
    tokenizer.save_pretrained(folder)
    again = GPT2LMHeadModel.from_pretrained("gpt2")
    for name, parameter in model.parameters_dict().items():
        np.testing.assert_array_equal(again.parameters_dict()[name].asnumpy(), parameter.asnumpy())
    assert GPT2Tokenizer.from_pretrained("gpt2").get_vocab() == tokenizer.get_vocab()
    texts = mindgpt.pipeline("text-generation", model="gpt2")("a rose", max_new_tokens=3)
    assert texts == mindgpt.pipeline("text-generation", model=model, tokenizer=tokenizer)("a rose", max_new_tokens=3)


def test_input_mask_is_the_attention_mask(model):
    ids = Tensor([[5, 6, 7, 8], [9, 10, 11, 12]], ms.int32)
    mask = Tensor([[0, 0, 1, 1], [1, 1, 1, 1]], ms.int32)
    model.set_train(False)
    np.testing.assert_array_equal(model(ids, input_mask=mask).asnumpy(), model(ids, attention_mask=mask).asnumpy())
    ids_of = [
        model.generate(ids, max_new_tokens=3, **{name: mask}).asnumpy() for name in ("input_mask", "attention_mask")
    ]
    np.testing.assert_array_equal(*ids_of)
    for call in (model, model.generate):
        with pytest.raises(UserError, match="input_mask and attention_mask mean the same"):
            call(ids, attention_mask=mask, input_mask=mask)


def test_parameters_are_counted_once(model):
    assert model.num_parameters() == model.config.num_parameters() == model.num_parameters(only_trainable=True)
    table = model.backbone.embedding.word_embedding.embedding_table
    table.requires_grad = False
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - table.size
    table.requires_grad = True
