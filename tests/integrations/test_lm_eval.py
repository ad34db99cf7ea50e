"""lm-evaluation-harness: our model against the harness's own `hf` on the same weights.

CI does not install lm_eval: it brings 400 MB of packages that nothing else here needs. There the tests skip.
"""

import functools
import json
import math
import re

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.integrations.lm_eval import main, with_model

CONTEXT_LENGTH = 32
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "seven old ships sail north, to a new land",
    "naïve café: 北京的雨 🌧 und Übermut",
    " leading and trailing spaces ",
]
LONG = " ".join(TEXTS[:3] * 6)  # several contexts


@pytest.fixture(scope="module")
def harness():
    for package in ("torch", "transformers", "accelerate", "lm_eval"):
        pytest.importorskip(package, reason=f"needs {package}: pip install '.[lm_eval]' torch transformers accelerate")
    from mindgpt.integrations.lm_eval import register

    register()
    from lm_eval.api.registry import get_model

    return get_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random GPT-2 of transformers, with a byte-level BPE tokenizer of its own."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = GPT2Tokenizer.train(TEXTS * 5, 320)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT_LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(harness, folder):
    """(hf, ours at batch size 1, ours at batch size 4)"""
    arguments = f"pretrained={folder},dtype=float32"
    hf = harness("hf").create_from_arg_string(arguments, {"device": "cpu", "batch_size": 4})
    return hf, *(harness("mindgpt").create_from_arg_string(arguments, {"batch_size": size}) for size in (1, 4))


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, number, ("toy", number, 1)) for number, args in enumerate(arguments)]


CONTINUATIONS = [
    (context, continuation)
    for context in ("", *TEXTS, "spaces at the end  ", LONG, "<|endoftext|>the quick")
    for continuation in (" dog", " new land", "雨 🌧", " a", " b", " b<|endoftext|>")
]


def test_log_likelihoods_equal_those_of_hf(models):
    hf, *ours = models
    expected = hf.loglikelihood(instances("loglikelihood", *CONTINUATIONS), disable_tqdm=True)
    for model in ours:
        found = model.loglikelihood(instances("loglikelihood", *CONTINUATIONS), disable_tqdm=True)
        np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], rtol=0, atol=5e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_greedy_decoding_writes_is_found_greedy(models):
    hf, ours, _ = models
    (text,) = hf.generate_until(instances("generate_until", ("the quick", {"until": [], "max_gen_toks": 3})), True)
    requests = instances("loglikelihood", ("the quick", text), ("the quick", " zebra"))
    assert [greedy for _, greedy in hf.loglikelihood(requests, True)] == [True, False]
    assert [greedy for _, greedy in ours.loglikelihood(requests, True)] == [True, False]


def test_rolling_log_likelihoods_equal_those_of_hf(models):
    hf, *ours = models
    requests = instances("loglikelihood_rolling", *[(text,) for text in (*TEXTS, LONG, "", LONG[:97])])
    expected = hf.loglikelihood_rolling(requests, disable_tqdm=True)
    assert expected[4] < expected[0] < 0
    for model in ours:
        np.testing.assert_allclose(model.loglikelihood_rolling(requests, True), expected, rtol=1e-6, atol=1e-4)


def test_generated_texts_equal_those_of_hf(models):
    hf, *ours = models
    plain = {"until": [], "max_gen_toks": 12}
    (text,) = hf.generate_until(instances("generate_until", (TEXTS[0], plain)), True)
    stop = re.search("[a-z]{2}", text).group()
    requests = instances(
        "generate_until",
        *[(context, plain) for context in (*TEXTS, LONG)],
        *[(context, {"until": [stop, "zzz"], "max_gen_toks": 8, "do_sample": False}) for context in (*TEXTS, LONG)],
        (TEXTS[0], {"until": "\n", "temperature": 0.0}),
    )
    for model in models:
        model_limit = instances("generate_until", (TEXTS[0], {"until": "\n", "max_gen_toks": CONTEXT_LENGTH}))
        with pytest.raises((UserError, AssertionError), match="max_gen_toks|maximum sequence length"):
            model.generate_until(model_limit, True)
    expected = hf.generate_until(requests[:-1], True)
    assert stop not in expected[len(TEXTS) + 1] and len(set(expected)) > 6
    for model in ours:
        assert model.generate_until(requests[:-1], True) == expected


def test_shorter_max_length_and_prefix_token_equal_hf(harness, folder):
    arguments = f"pretrained={folder},dtype=float32,max_length=16,prefix_token_id=7"
    hf = harness("hf").create_from_arg_string(arguments, {"device": "cpu", "batch_size": 2})
    ours = harness("mindgpt").create_from_arg_string(arguments, {"batch_size": "auto", "max_batch_size": 2})
    assert ours.max_length == 16 and ours.prefix_token_id == 7 and ours.batch_size == 2
    requests = instances("loglikelihood", (LONG, " dog"), ("", "dog"))
    expected = [value for value, _ in hf.loglikelihood(requests, True)]
    np.testing.assert_allclose([value for value, _ in ours.loglikelihood(requests, True)], expected, atol=5e-5)
    requests = instances("loglikelihood_rolling", (LONG,))
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(requests, True), hf.loglikelihood_rolling(requests, True), rtol=1e-6
    )


def test_sampled_texts_depend_on_numpys_seed_and_not_on_the_batch(models):
    _, *ours = models
    sampled = {"until": [], "max_gen_toks": 10, "do_sample": True, "temperature": 1.5}
    requests = instances("generate_until", *[(text, sampled) for text in TEXTS])
    texts = []
    for model, seed in zip((*ours, ours[0]), (1, 1, 2), strict=True):
        np.random.seed(seed)
        texts.append(model.generate_until(requests, True))
    assert texts[0] == texts[1] != texts[2]


TASKS = {
    "toy_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "toy_perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "toy_text": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(models, tmp_path_factory):
    """A folder of tasks, for `--include_path`, whose answers `hf` knows in part."""
    folder = tmp_path_factory.mktemp("tasks")
    settings = {"until": ["\n"], "max_gen_toks": 6}
    texts = models[0].generate_until(instances("generate_until", *[(text, settings) for text in (*TEXTS, LONG)]), True)
    with open(folder / "toy.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate((*TEXTS, LONG)):
            document = {"question": text, "choices": [" dog", " land", " ships sail"], "answer": number % 3}
            file.write(json.dumps(document | {"text": texts[number] if number % 2 else "other"}) + "\n")
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(folder / "toy.jsonl")}, "cache_dir": str(folder / "cache")}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))
    return folder


def test_command_gives_the_results_of_hf(tasks, folder, tmp_path, capsys, monkeypatch):
    import lm_eval

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    quick = functools.partial(lm_eval.simple_evaluate, bootstrap_iters=0)  # its errors of the mean take a minute
    monkeypatch.setattr(lm_eval, "simple_evaluate", quick)
    results = {}
    for model, size in (("hf", 4), ("mindgpt", 1), ("mindgpt", 4)):
        output = tmp_path / f"{model}-{size}.json"
        words = ["--include_path", tasks, "--tasks", ",".join(TASKS), "--batch_size", size, "--output_path", output]
        words += ["--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu"]
        main([*(["--model", "hf"] if model == "hf" else []), *map(str, words)])
        (file,) = tmp_path.glob(f"{model}-{size}*.json")
        results[model, size] = json.loads(file.read_text())["results"]
        assert f"{model} (" in capsys.readouterr().out
    expected = results.pop(("hf", 4))
    numbers = {
        (task, name): value
        for task, values in expected.items()
        for name, value in values.items()
        if isinstance(value, float)
    }
    assert numbers["toy_text", "exact_match,none"] == 0.4
    assert math.isfinite(numbers["toy_perplexity", "word_perplexity,none"])
    for found in results.values():
        for (task, name), value in numbers.items():
            assert found[task][name] == pytest.approx(value, rel=5e-5), (task, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": None}, "pretrained=PATH is missing"),
        ({"pretrained": "nowhere"}, "nowhere"),
        ({"max_lenght": 3}, "no argument max_lenght.*max_length"),
        ({"max_length": 99}, "99 is more than the context length, 32"),
        ({"max_length": "x"}, "max_length: must be a whole number"),
        ({"batch_size": 0}, "batch_size: must be a whole number"),
        ({"device": "tpu"}, "device: must be cpu or npu"),
        ({"dtype": "int8"}, "dtype: must be one of"),
        ({"prefix_token_id": 4000}, "prefix_token_id: 4000 is no id"),
        ({"tokenizer": "nowhere"}, "No tokenizer at nowhere"),
    ],
)
def test_bad_arguments_are_named(harness, folder, arguments, message):
    with pytest.raises(UserError, match=message):
        harness("mindgpt").create_from_arg_obj({"pretrained": str(folder)} | arguments)


def test_bad_requests_are_named(models):
    _, ours, _ = models
    with pytest.raises(UserError, match="toy, document 0: the continuation to score is empty"):
        ours.loglikelihood(instances("loglikelihood", ("", "")), True)
    with pytest.raises(UserError, match="the model sees 32"):
        ours.loglikelihood(instances("loglikelihood", ("a", LONG)), True)
    with pytest.raises(UserError, match="max_gen_toks"):
        ours.generate_until(instances("generate_until", ("a", {"until": "b", "max_length": 9})), True)
    with pytest.raises(UserError, match="beam_size"):
        ours.generate_until(instances("generate_until", ("a", {"max_gen_toks": 3, "beam_size": 9})), True)
    with pytest.raises(UserError, match="chat template"):
        ours.apply_chat_template([])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tasks", "x"], ["run", "--model", "mindgpt", "--tasks", "x"]),
        (["run", "--tasks", "x"], ["run", "--model", "mindgpt", "--tasks", "x"]),
        (["--model", "hf"], ["run", "--model", "hf"]),
        (["--model=hf"], ["run", "--model=hf"]),
        (["--config", "a.yaml"], ["run", "--config", "a.yaml"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["run", "--help"], ["run", "--help"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_the_model_is_added_where_none_is_named(words, expected):
    assert with_model(words) == expected


def test_a_missing_harness_is_said_in_a_line(monkeypatch):
    for name in ("lm_eval", "lm_eval.models", "lm_eval.api.registry", "lm_eval.__main__"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'mindgpt\[lm_eval\]'"):
        main(["--tasks", "x"])
