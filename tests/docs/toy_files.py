"""The files that the pages' commands name, at toy size: `make(folder, page)` writes what a page takes for granted.

Rows have the length that the commands ask for, so that no flag is changed; the networks are one block wide enough for
four heads. `write_configs` gives a page the shipped YAML files, changed in their sizes alone.
"""

import gzip
import json
import random
import runpy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.models.gpt2 import convert_weight
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from tests.docs.pages import REPO

VOCAB, WIDTH, HEADS, LAYERS, POSITIONS = 300, 32, 4, 1, 1024
TEXT = "the quick brown fox jumps over a lazy dog while seven old ships sail north to new land"
HANZI = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏今气不错双十一科学空间这是很久之前的事情了"
SPECIAL = ["[PAD]", *(f"[unused{number}]" for number in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDPIECES = [*SPECIAL, "。", "，", *dict.fromkeys(HANZI)]  # special tokens have BERT's ids, which the YAML files name
CLUE_SIZE = 8021  # tokens of GPT2_ML's model of 30 GB, which its command names
CHECKPOINT = "toy_rank_0-1_2.ckpt"


def english(lines: int, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(TEXT.split(), k=12)) + " ." for _ in range(lines)]


def chinese(lines: int, length: int = 30) -> list[str]:
    draw = random.Random(2)
    return ["".join(draw.choices(HANZI, k=length)) + "。" for _ in range(lines)]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def write_records(path: Path, records: Sequence[object]) -> None:
    write_lines(path, [json.dumps(record, ensure_ascii=False) for record in records])


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    write_lines(path, ["\t".join(row) for row in (header, *rows)])


def write_wordpieces(path: Path, size: int = len(WORDPIECES)) -> None:
    write_lines(path, [*WORDPIECES, *(f"more{number}" for number in range(size - len(WORDPIECES)))])


def tool(path: str, *words: object) -> None:
    runpy.run_path(str(REPO / "tools" / path))["main"](list(map(str, words)))


def convert(source: Path, target: Path, *more: object) -> None:
    convert_weight.main(["--input_path", str(source), "--output_path", str(target), *map(str, more)])


def write_weights(file: Path, **sizes) -> Path:
    """A `.ckpt` of random weights with config.json beside it."""
    config = {"num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "vocab_size": VOCAB}
    model = GPT2LMHeadModel(GPT2Config(**(config | {"seq_length": POSITIONS} | sizes)))
    saved = file.parent / "saved"
    model.save_pretrained(saved)
    shutil.move(saved / "model.ckpt", file)
    shutil.move(saved / "config.json", file.parent / "config.json")
    shutil.rmtree(saved)
    return file


def write_run(output: Path, weights: Path) -> None:
    """What a run leaves of its checkpoints and its log."""
    for name in ("checkpoint", "checkpoint_best"):
        folder = output / name / "rank_0"
        folder.mkdir(parents=True)
        shutil.copy(weights, folder / CHECKPOINT)
        shutil.copy(weights.parent / "config.json", folder)
    values = {"epoch": 1, "learning_rate": 1e-3, "grad_norm": 1.0, "loss_scale": 1.0, "tokens_per_second": 9.0}
    steps = [{"step": step, "loss": 6 - step / 10, "skipped": False} | values for step in range(1, 9)]
    write_records(output / "log" / "train.jsonl", steps)


def write_rows(folder: Path, **lengths: int) -> None:
    """MindRecord files of English rows of these lengths."""
    write_lines(folder / "rows.txt", english(900))
    for name, length in lengths.items():
        tool(
            "dataset_preprocess/text_to_mindrecord.py", "--input_file", folder / "rows.txt", "--max_length", length,
            "--output_file", folder / f"{name}.mindrecord", "--tokenizer_type", folder / "tokenizer",
        )  # fmt: skip


def write_gpt2(folder: Path) -> None:
    """`gpt2.ckpt`, `gpt2-hf/` and `tokenizer/`."""
    tokenizer = GPT2Tokenizer.train(["\n".join(english(200))], VOCAB)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_weights(folder / "gpt2.ckpt")
    convert(folder / "gpt2.ckpt", folder / "gpt2-hf")
    tokenizer.save_pretrained(folder / "gpt2-hf")


def readme(folder: Path) -> None:
    write_gpt2(folder)
    write_lines(folder / "my.txt", english(200))
    write_lines(folder / "valid.txt", english(60, seed=2))


def command_line(folder: Path) -> None:
    readme(folder)
    write_rows(folder, train=65)


def guide(folder: Path) -> None:
    write_gpt2(folder)
    for part, lines in (("train", 500), ("valid", 300)):
        write_lines(folder / f"wiki.{part}.tokens", [" = Ships = ", "", *english(lines)])
    write_run(folder / "output", folder / "gpt2.ckpt")
    for name in ("outA", "outB"):
        shutil.copytree(folder / "output", folder / name)
    write_uer(folder / "uer.bin", layers=1)
    write_wordpieces(folder / "vocab.txt")
    write_deepspeed(folder / "zero_run", folder / "uer.bin")


def fine_tuning(folder: Path) -> None:
    write_gpt2(folder)
    write_rows(folder, train=1025, valid=1024, rows_of_2049=2049)
    questions = english(300, seed=3)
    records = [
        {"instruction": text, "input": "", "output": answer}
        for text, answer in zip(questions, english(300), strict=True)
    ]
    (folder / "alpaca_data.json").write_text(json.dumps(records))


def classification(folder: Path) -> None:
    write_gpt2(folder)
    for name in ("train", "dev"):
        write_table(folder / f"{name}.tsv", ["sentence", "label"], [[t, str(i % 2)] for i, t in enumerate(english(16))])


def generation(folder: Path) -> None:
    write_gpt2(folder)
    write_lines(folder / "prompts.txt", english(2))
    write_records(folder / "more.jsonl", [{"prompt": "the quick"}])
    write_lines(folder / "folder" / "more.txt", ["seven old"])
    write_lines(folder / "texts.txt", english(3))


def data(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    write_gpt2(folder)
    lines = english(400)
    content = "".join(json.dumps({"text": line}) + "\n" for line in lines).encode()
    for name, compress in (("part.jsonl.zst", zstandard.compress), ("part.jsonl.gz", gzip.compress)):
        (folder / "corpus" / "more").mkdir(parents=True, exist_ok=True)
        (folder / "corpus" / "more" / name).write_bytes(compress(content))
    (folder / "data").mkdir()
    (folder / "imdb").mkdir()
    for number in range(2):
        pq.write_table(pa.table({"content": lines}), folder / "data" / f"train-{number:05}-of-00002.parquet")
    pq.write_table(pa.table({"text": lines[:8], "label": [0, 1] * 4}), folder / "imdb" / "train.parquet")
    write_lines(folder / "prompts" / "one.txt", english(2))


def write_uer(file: Path, layers: int) -> None:
    """A `.bin` of UER-py with its JSON, whose tokenizer is WordPiece."""
    scratch = file.parent / "scratch"
    scratch.mkdir()
    weights = write_weights(scratch / "x.ckpt", num_layers=layers, vocab_size=len(WORDPIECES))
    convert(weights, file, "--target_format", "uer")
    shutil.rmtree(scratch)


def write_deepspeed(folder: Path, uer: Path) -> None:
    import torch

    from tests.checkpoints.deepspeed_folders import write_zero

    state = torch.load(uer, weights_only=True)
    shared = {name: "embedding.word.embedding.weight" for name in state if name.endswith("output_layer.weight")}
    write_zero(folder, state, stage=2, world=2, tied=shared)
    for beside in uer.parent.glob("*config.json"):
        shutil.copy(beside, folder / "config.json")


def chinese_gpt2(folder: Path) -> None:
    write_lines(folder / "cluecorpussmall.txt", chinese(40))
    for name in ("gpt2-chinese-cluecorpussmall", "gpt2-distil-chinese-cluecorpussmall"):
        scratch = folder / "scratch"
        scratch.mkdir()
        write_weights(scratch / "x.ckpt", vocab_size=len(WORDPIECES))
        convert(scratch / "x.ckpt", folder / name)
        write_wordpieces(folder / name / "vocab.txt")
        shutil.rmtree(scratch)
    (folder / "tokenizer").mkdir()
    write_wordpieces(folder / "tokenizer" / "vocab.txt")
    write_wordpieces(folder / "google_zh_vocab.txt")
    rows = [[str(i % 2), text] for i, text in enumerate(chinese(16))]
    for name in ("train", "dev"):
        write_table(folder / f"{name}.tsv", ["label", "text_a"], rows)
    write_uer(folder / "seq1024_model.bin-250000", layers=6)
    write_deepspeed(folder / "cluecorpussmall_gpt2_xlarge_seq1024_model", folder / "seq1024_model.bin-250000")


def chinese_gpt3(folder: Path) -> None:
    texts = chinese(60)
    tokenizer = JiebaTokenizer.train(texts, VOCAB, min_frequency=1)
    model = folder / "nlp_gpt3_text-generation_2.7B"
    scratch = folder / "scratch"
    scratch.mkdir()
    weights = write_weights(scratch / "x.ckpt", seq_length=2048, eos_token_id=0)
    write_run(folder / "output", weights)
    convert(weights, model, "--target_format", "modelscope", "--tensor_parallel", 2)
    shutil.rmtree(scratch)
    tokenizer.save_pretrained(model)
    write_lines(folder / "texts.txt", texts)
    write_records(folder / "poems.jsonl", [{"src_txt": text} for text in texts])
    write_records(folder / "dureader.jsonl", [{"src_txt": text, "tgt_txt": text[:5]} for text in texts])
    asked = [{"text1": f"{text}[SEP]{text[:4]}", "text2": text[:5]} for text in texts[:8]]
    write_records(folder / "dureader_train.jsonl", asked)
    write_records(folder / "valid.jsonl", asked[:2])
    tool(
        "dataset_preprocess/instruction_to_mindrecord.py", "--layout", "modelscope", "--prompt_key", "text1",
        "--response_key", "text2", "--input_file", folder / "valid.jsonl", "--output_file", folder / "valid.mindrecord",
        "--sequence_length", 512, "--tokenizer_type", model,
    )  # fmt: skip


def gpt2_ml(folder: Path) -> None:
    from tests.checkpoints.tensorflow_files import write_bundle
    from tests.models.gpt2_ml_reference import random_weights

    sizes = {"variant": "gpt2_ml", "vocab_size": len(WORDPIECES), "num_layers": LAYERS, "hidden_size": WIDTH}
    content = {
        "hidden_size": WIDTH, "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1, "hidden_act": "gelu", "initializer_range": 0.014, "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": POSITIONS, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    }  # fmt: skip
    (folder / "gpt2").mkdir()
    published = ((folder / "gpt2/model.ckpt-100000", len(WORDPIECES)), (folder / "model.ckpt-220000", CLUE_SIZE))
    for prefix, size in published:
        config = GPT2Config(**(sizes | {"vocab_size": size}), num_heads=HEADS, seq_length=POSITIONS)
        write_bundle(prefix, random_weights(config, seed=1), snappy=True)
        (prefix.parent / "mega.json").write_text(json.dumps(content | {"vocab_size": size}))
    write_wordpieces(folder / "gpt2" / "vocab.txt")
    write_wordpieces(folder / "clue-vocab.txt", CLUE_SIZE)
    port = folder / "gpt2-ml-torch"
    convert(folder / "gpt2" / "model.ckpt-100000", port, "--target_format", "gpt2_ml_torch")
    scratch = folder / "scratch"
    scratch.mkdir()
    weights = write_weights(scratch / "x.ckpt", **sizes)
    write_run(folder / "output", weights)
    shutil.rmtree(scratch)
    write_lines(folder / "articles.txt", chinese(120))
    tool(
        "dataset_preprocess/text_to_mindrecord.py", "--input_file", folder / "articles.txt", "--document_per", "line",
        "--special_tokens", "none", "--max_length", 1024, "--tokenizer_type", folder / "gpt2" / "vocab.txt",
        "--output_file", folder / "valid.mindrecord",
    )  # fmt: skip


def parallel(folder: Path) -> None:
    write_gpt2(folder)
    write_rows(folder, train=1025)


MAKERS: dict[str, Callable[[Path], None]] = {
    "README": readme, "command_line": command_line, "guide": guide, "fine_tuning": fine_tuning,
    "classification": classification, "data": data,
    "generation": generation, "chinese_gpt2": chinese_gpt2, "chinese_gpt3": chinese_gpt3, "gpt2_ml": gpt2_ml,
    "parallel": parallel,
}  # fmt: skip


def write_configs(folder: Path, words: Sequence[str]) -> None:
    """The shipped YAML files among these words, for the toy networks: as they are but for sizes and lengths of runs."""
    for word in words:
        if not word.endswith(".yaml") or not (REPO / word).is_file():
            continue
        shipped = REPO / word
        name = shipped.stem
        sizes: dict[str, object] = {"num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "vocab_size": VOCAB}
        sizes |= {f"{where}_dropout_rate": 0.0 for where in ("hidden", "attention", "embedding")}  # compiles faster
        if "chinese" in name or "gpt2_ml" in name:
            sizes["vocab_size"] = len(WORDPIECES)
        elif "gpt3" not in name:
            sizes["eos_token_id"] = VOCAB - 1
        if "gpt3" in name:
            sizes |= {"max_position_embeddings": 2048, "max_new_tokens": 3} | (
                {} if "predict" in name else {"seq_length": 511}
            )
        if "txtcls" in name:
            sizes |= {"seq_length": 128, "max_position_embeddings": POSITIONS}
        if "predict" in name:
            sizes |= {"max_new_tokens": 3, "min_new_tokens": 0}
        toy = {
            "base_config": [str(shipped)],
            "context": {"enable_graph_kernel": False},
            "runner_config": {"epochs": 1, "batch_size": 2, "gradient_accumulation_steps": 1},
            "model": {"model_config": sizes},
            "train_dataset": {"num_samples": 4},
            "eval_dataset": {"num_samples": 2},
        }
        if "lora" in name:
            toy["callbacks"] = [{"type": "MFLossMonitor"}, {"type": "CheckpointMonitor", "save_trainable_params": True}]
        target = folder / word
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(toy))
