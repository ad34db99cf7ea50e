"""Text in, text out."""

import json
import string
import sys

import mindspore as ms
import pytest

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import UserError
from mindgpt.generation import GenerationSettings, Generator, generate_text
from mindgpt.generation.labels import encode_texts
from mindgpt.generation.text_generation import check_tokenizer_fits, encode_prompts
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from tests import programs

PROMPTS = ["a rose is a rose", "is", "the rose, the rose, the rose is here", "a", "héllo, 你好"]


@pytest.fixture(scope="module")
def tokenizer():
    return GPT2Tokenizer.train(["a rose is a rose is a rose, the rose is here"] * 3, 280)


@pytest.fixture(scope="module")
def generator(tokenizer):
    ms.set_seed(0)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64, "initializer_range": 0.3}
    return Generator(GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)))


@pytest.mark.parametrize("do_sample", [False, True])
def test_completions_are_the_engines_tokens_as_text(generator, tokenizer, do_sample):
    settings = GenerationSettings(max_new_tokens=9, do_sample=do_sample, seed=0)
    completions = generate_text(generator, tokenizer, PROMPTS, settings, batch_size=2)
    for number, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True)):
        stop = settings.changed(eos_token_id=tokenizer.eos_token_id)
        (alone,) = generator.generate([tokenizer.encode(prompt)], stop, row_numbers=[number])
        assert completion.prompt == prompt
        assert completion.token_ids == alone
        assert completion.text == tokenizer.decode([token for token in alone if token != tokenizer.eos_token_id])
    assert completions == generate_text(generator, tokenizer, PROMPTS, settings, batch_size=5)


def test_text_as_it_comes_is_the_text_in_pieces(generator, tokenizer):
    settings = GenerationSettings(max_new_tokens=9, do_sample=True, seed=0, num_return_sequences=2)
    free = [one.text for one in generate_text(generator, tokenizer, PROMPTS, settings) if one.finish_reason == "length"]
    stop = next(letter for letter in string.ascii_letters if 0 < sum(letter in text for text in free) < len(free))
    settings = settings.changed(stop_strings=[stop])
    pieces, done = [""] * 10, []

    def on_text(place, piece):
        assert piece
        pieces[place] += piece

    completions = generate_text(
        generator,
        tokenizer,
        PROMPTS,
        settings,
        batch_size=2,
        on_text=on_text,
        on_batch=lambda *batch: done.append(batch),
    )
    assert pieces == [completion.text for completion in completions]
    assert [completion.prompt for completion in completions] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [len(places) for places, _ in done] == [4, 4, 2]
    assert all(completions[place] == one for batch in done for place, one in zip(*batch, strict=True))
    assert {completion.finish_reason for completion in completions} >= {"length", "stop"}
    for completion in completions:
        said = tokenizer.decode([token for token in completion.token_ids if token != tokenizer.eos_token_id])
        assert completion.text == said.split(stop)[0]
        assert (completion.finish_reason == "stop") is (stop in said)
    with pytest.raises(UserError, match="num_beams: a beam search goes back on what it said"):
        generate_text(generator, tokenizer, ["a"], GenerationSettings(num_beams=2), on_text=on_text)


def test_finish_reasons(generator, tokenizer):
    free = generate_text(generator, tokenizer, PROMPTS[:1], GenerationSettings(max_new_tokens=6))[0]
    assert (free.finish_reason, len(free.token_ids)) == ("length", 6)
    eos = free.token_ids[3]
    cut = generate_text(generator, tokenizer, PROMPTS[:1], GenerationSettings(max_new_tokens=6, eos_token_id=eos))[0]
    end = free.token_ids.index(eos)
    assert (cut.finish_reason, cut.token_ids) == ("eos", free.token_ids[: end + 1])
    assert cut.text == tokenizer.decode(free.token_ids[:end])


def test_bad_input(generator, tokenizer):
    settings = GenerationSettings(max_new_tokens=2)
    with pytest.raises(UserError, match="Prompt 1 is empty.*'<|endoftext|>' starts a text"):
        generate_text(generator, tokenizer, ["a", ""], settings)
    with pytest.raises(UserError, match="Prompt 1 has .* tokens and fills the context length of 64"):
        generate_text(generator, tokenizer, ["a", "xyz" * 40], settings)
    with pytest.raises(UserError, match="batch_size: must be"):
        generate_text(generator, tokenizer, ["a"], settings, batch_size=0)
    with pytest.raises(UserError, match="put a single one in brackets"):
        generate_text(generator, tokenizer, "a", settings)
    larger = GPT2Tokenizer.train(["a rose is a rose is a rose, the rose is here and there"] * 3, 290)
    with pytest.raises(UserError, match=f"has {len(larger)} tokens, the model's vocab_size is {len(tokenizer)}"):
        generate_text(generator, larger, ["a"], settings)


def test_a_padding_token_behind_the_table_does_no_harm(tokenizer, tmp_path):
    """As where a pad token was added, and the model was not resized."""
    tokenizer.save_pretrained(tmp_path)
    size = len(tokenizer)
    padded = GPT2Tokenizer.from_pretrained(tmp_path, pad_token="[PAD]")
    assert len(padded) == size + 1
    check_tokenizer_fits(padded, size)
    settings = GenerationSettings(max_new_tokens=1)
    assert encode_prompts(padded, ["a rose"], settings, size, 32) == [tokenizer.encode("a rose")]
    with pytest.raises(
        UserError, match=rf"Prompt 1 holds the token '\[PAD\]', id {size}, but the model's vocab_size is"
    ):
        encode_prompts(padded, ["a", "a [PAD]"], settings, size, 32)
    rows, _ = encode_texts(padded, ["a rose"], 32, size)
    assert rows == [tokenizer.encode("a rose")]
    with pytest.raises(UserError, match=r"Text 0 holds the token '\[PAD\]'"):
        encode_texts(padded, ["[PAD]"], 32, size)
    for unfit in (GPT2Tokenizer.from_pretrained(tmp_path, eos_token="<end>"), padded):
        with pytest.raises(UserError, match="they do not belong together"):
            check_tokenizer_fits(unfit, size - (unfit is padded))


def test_a_token_that_was_added_is_named_with_its_key(tokenizer, tmp_path):
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if token != tokenizer.eos_token}
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    invented = GPT2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    with pytest.raises(UserError, match=r"<\|endoftext\|> was added as bos_token, eos_token, unk_token, since the "):
        check_tokenizer_fits(invented, len(vocabulary))
    with pytest.raises(
        UserError, match=r"added as eos_token, .* processor.tokenizer.eos_token in the YAML, eos_token="
    ):
        end = GPT2Tokenizer.from_pretrained(tmp_path, eos_token="<end>")
        check_tokenizer_fits(end, len(tokenizer))


SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": 64}


@pytest.mark.parametrize(
    ("prompt", "tokenizer_folder", "sizes", "message"),
    [
        ("", "model", SIZES, "an empty text is no prompt"),
        ("xyz" * 40, "model", SIZES, "fills the context length of 64"),
        ("bad.txt", "model", SIZES, "bad.txt:2: not UTF-8: byte 0xff at offset 9"),
        ("a", "larger", SIZES, "Use the tokenizer that the model was trained with; or, if the weights"),
        ("a", "model", SIZES | {"hidden_size": 16}, "hidden_size is 32 in the file and 16 in the YAML"),
    ],
    ids=["empty", "over the context", "no UTF-8", "tokenizer of another model", "checkpoint of another model"],
)
def test_a_command_with_bad_input_ends_with_one_clear_message(
    repo, tokenizer, tmp_path, prompt, tokenizer_folder, sizes, message
):
    """As a user types it: the message, no traceback, and a status that stops a script."""
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SIZES)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    GPT2Tokenizer.train(["a rose and a violet, and an orchid"] * 3, 290).save_pretrained(tmp_path / "larger")
    (tmp_path / "bad.txt").write_bytes(b"fine\nnot \xff\n")
    command = [sys.executable, repo / "run_mindformer.py", "--run_mode", "predict", "--output_dir", "output"]
    command += ["--config", repo / "configs" / "gpt2" / "pretrain_gpt2_quickstart.yaml", "--load_checkpoint", "model"]
    command += ["--tokenizer", tokenizer_folder, "--predict_data", prompt, "--options"]
    command += [
        f"model.model_config.{name}={value}" for name, value in (sizes | {"vocab_size": len(tokenizer)}).items()
    ]
    done = programs.run(command, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("error: ") == 1
    assert message in done.stderr
    assert not list(tmp_path.glob("output/*.jsonl"))
