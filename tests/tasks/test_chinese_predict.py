"""Prediction and scoring with WordPiece and SentencePiece tokenizers, as a user types them, against transformers."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

import mindgpt
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.tasks.main import main
from mindgpt.tasks.prompts import find_tokenizer
from mindgpt.tasks.score import score_texts
from tests.generation.chinese_folder import CLS, SEP, greedy, publish

PROMPTS = ["这是很久之前的事情了", "GPT2模型 is 好的, Hello World!", "hello"]
NEW = 10


@pytest.fixture(scope="module")
def base(shared_data, tmp_path_factory):
    """A folder with a published model, `zh`, and a YAML for it."""
    base = tmp_path_factory.mktemp("chinese")
    (base / "zh.yaml").write_text(
        "run_mode: predict\n"
        "model:\n  model_config: {seq_length: 128, vocab_size: 21128, hidden_size: 32, num_layers: 2, num_heads: 2, "
        f"max_new_tokens: {NEW}}}\n"
    )
    return base


@pytest.fixture(scope="module")
def network(base, shared_data):
    return publish(base / "zh", shared_data / "zh" / "google_zh_vocab.txt")


@pytest.fixture(scope="module")
def expected(network, base):
    """The text that transformers' greedy ids spell, by prompt and what surrounds it."""
    tokenizer = mindgpt.load_tokenizer(base / "zh")

    def text(prompt, around="bos"):
        bare = tokenizer.encode(prompt, add_special_tokens=False)
        ids = {"bos": [CLS, *bare], "all": [CLS, *bare, SEP]}[around]
        new = [number for number in greedy(network, ids, NEW) if number != SEP]
        spelled = tokenizer.decode(bare + new)
        return prompt + spelled[len(tokenizer.decode(bare)) :]

    return text


@pytest.fixture
def start(base, network, tmp_path, monkeypatch):
    """Run the program here: its exit status, its output and its errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        words = ["run_mindformer.py", "--config", base / "zh.yaml", "--load_checkpoint", base / "zh", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            main()
        return end.value.code, out.getvalue(), errors.getvalue()

    return run


def results(folder):
    return [json.loads(line) for line in (folder / "output" / "predictions.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.usefixtures("cpu")
def test_prompts_are_continued_after_cls_and_as_the_yaml_says(start, expected, tmp_path):
    status, out, errors = start("--predict_data", *PROMPTS)
    assert (status, errors) == (0, "")
    records = results(tmp_path)
    assert [record["generated_text"] for record in records] == list(map(expected, PROMPTS))
    assert f"\n>>> {PROMPTS[0]}\n{records[0]['generated_text']}\n" in out
    around = "model.model_config.prompt_special_tokens=all"
    status, _, errors = start("--predict_data", *PROMPTS, "--options", around)
    assert (status, errors) == (0, "")
    assert [record["generated_text"] for record in results(tmp_path)] == [expected(text, "all") for text in PROMPTS]
    stop = records[0]["generated_text"][len(PROMPTS[0]) + 2 :][:2]
    status, _, errors = start("--predict_data", PROMPTS[0], "--options", f"model.model_config.stop_strings=['{stop}']")
    assert (status, errors) == (0, "")
    (record,) = results(tmp_path)
    assert record["generated_text"] == records[0]["generated_text"].split(stop)[0]
    assert record["finish_reason"] == "stop"


@pytest.mark.usefixtures("cpu")
def test_bad_input_ends_in_one_message_and_writes_nothing(start, tmp_path):
    for arguments, part in (
        (["--predict_data", "你好", "😀"], "the vocabulary knows nothing of this text: all of its tokens are [UNK]"),
        (
            ["--predict_data", "你好", "--options", "model.model_config.prompt_special_tokens=cls"],
            "prompt_special_tokens",
        ),
        (
            ["--predict_data", "你好", "--options", "model.model_config.eos_token_id=50256"],
            "50256 is outside the vocab",
        ),
        (
            ["--predict_data", "你好", "--options", "processor.tokenizer.type=T5Tokenizer"],
            "is for a SentencePiece tokenizer",
        ),
    ):
        status, _, errors = start(*arguments)
        assert status == 2 and part in errors and "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cpu")
def test_a_text_is_scored_after_cls_and_with_its_end_if_asked(base, network, tmp_path):
    """Log-probabilities of every character, the first included; with "all" that of [SEP], the end, too."""
    torch = pytest.importorskip("torch")
    tokenizer = mindgpt.load_tokenizer(base / "zh")
    weights = {"load_checkpoint": str(base / "zh"), "output_dir": str(tmp_path)}
    for around in (None, "all", "none"):
        more = {} if around is None else {"model.model_config.prompt_special_tokens": around}
        config, _ = load_config(base / "zh.yaml", {**weights, **more})
        score_texts(config, ["hello 今天天气不错"], str(tmp_path / "scores.jsonl"), per_token=True)
        (record,) = map(json.loads, (tmp_path / "scores.jsonl").read_text("utf-8").splitlines())
        bare = tokenizer.encode("hello 今天天气不错", add_special_tokens=False)
        ids = {None: [CLS, *bare], "all": [CLS, *bare, SEP], "none": bare}[around]
        with torch.no_grad():
            log_probs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        values = log_probs[range(len(ids) - 1), ids[1:]].tolist()
        assert record["log_probability"] == pytest.approx(sum(values), abs=1e-3)
        assert [one["id"] for one in record["per_token"]] == ids
        assert [one["log_probability"] for one in record["per_token"]][1:] == pytest.approx(values, abs=1e-4)
        special = {"[CLS]", "[SEP]"}
        assert "".join(one["text"] for one in record["per_token"] if one["text"] not in special) == "hello今天天气不错"
    with pytest.raises(UserError, match="'😀': the vocabulary knows nothing of this text"):
        score_texts(load_config(base / "zh.yaml", weights)[0], ["😀"], str(tmp_path / "none.jsonl"))
    assert not (tmp_path / "none.jsonl").exists()


def test_the_script_takes_the_folder(base, network, repo, expected, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MS_", "RANK_ID"))}
    script = repo / "scripts/examples/gpt2/run_gpt2_predict.sh"
    words = ["single", base / "zh.yaml", base / "zh", 1, base / "zh", PROMPTS[0]]
    done = subprocess.run(
        ["bash", str(script), *map(str, words)], cwd=tmp_path, env=environment | {"PYTHON": sys.executable},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [record["generated_text"] for record in results(tmp_path)] == [expected(PROMPTS[0])]


# ---- files that a YAML names, SentencePiece --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spm_folder(tmp_path_factory):
    """A model of sentencepiece, `tokenizer.model`, with the tokens of BERT, and the settings that name them."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    lines = ["这是很久之前的事情了", "hello world, low lower lowest", "今天天气不错"] * 5
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=120, hard_vocab_limit=False,
        user_defined_symbols=["[CLS]", "[SEP]"], minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    return folder


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "path"])
def test_a_yaml_names_a_sentencepiece_model(base, spm_folder, key):
    place = {f"processor.tokenizer.{key}": str(spm_folder / "tokenizer.model")}
    eot = {f"processor.tokenizer.{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk", "pad")}
    for more in ({}, eot, {"processor.tokenizer.type": "LlamaTokenizer"}):
        tokenizer = find_tokenizer(load_config(base / "zh.yaml", {**place, **more})[0])
        assert type(tokenizer) is mindgpt.SentencePieceTokenizer and tokenizer.new_tokens == []
        assert tokenizer.decode(tokenizer.encode("hello 世界的事情")).startswith("hello ")
    with pytest.raises(UserError, match="tokenizer.type: is for a WordPiece tokenizer, and .* holds SentencePiece"):
        find_tokenizer(load_config(base / "zh.yaml", {**place, "processor.tokenizer.type": "BertTokenizer"})[0])


def test_a_yaml_names_a_vocabulary_of_wordpiece(base, network):
    place = {"processor.tokenizer.vocab_file": str(base / "zh" / "vocab.txt")}
    tokenizer = find_tokenizer(load_config(base / "zh.yaml", place)[0])
    assert tokenizer.kind == "WordPiece" and tokenizer.encode("今天") == [CLS, 791, 1921, SEP]


@pytest.mark.usefixtures("cpu")
def test_prediction_with_a_sentencepiece_model(spm_folder, tmp_path, monkeypatch):
    """With BERT's settings [CLS] begins a prompt, as by UER's `--spm_model_path`; without, there is nothing around."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    settings = spm_folder / "special_tokens_map.json"
    tokenizer = mindgpt.load_tokenizer(spm_folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config).eval()
    network.save_pretrained(tmp_path / "model")
    for named in ({"cls_token": "[CLS]", "sep_token": "[SEP]"}, None):
        settings.write_text(json.dumps(named)) if named else settings.unlink()
        pipe = mindgpt.pipeline("text-generation", model=tmp_path / "model", tokenizer=spm_folder, max_new_tokens=12)
        bare = pipe.tokenizer.encode("hello 今天", add_special_tokens=False)
        first = pipe.tokenizer.convert_tokens_to_ids(["[CLS]"] if named else [])
        row = torch.tensor([first + bare])
        with torch.no_grad():
            done = network.generate(
                row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False, pad_token_id=0,
                eos_token_id=pipe.tokenizer.eos_token_id,
            )  # fmt: skip
        new = [number for number in done[0, row.shape[1] :].tolist() if number != pipe.tokenizer.eos_token_id]
        text = pipe.tokenizer.decode(bare + new)
        assert pipe("hello 今天") == [{"generated_text": text}]
        assert "hello 今天" + "".join(pipe.stream("hello 今天")) == text
    assert pipe.tokenizer.eos_token == "</s>"
