"""A toy model in parallel layouts: its settings, the shards of a rank by hand, and cases that cover all combinations.

Nothing here asks the code under test what it makes of a layout.
"""

import itertools
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT
from tests.programs import run_simulated

REPO = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("compile_step.py")
HIDDEN, HEADS, VOCAB, TOKENS, RANK, LABELS = 256, 4, 512, 32, 8, 2
PRIME = 509  # tokens that no cards can share, unless 3 rows of padding make them 512
SMALLEST_SHARDED = 64 * 1024  # bytes of a whole weight; what is smaller, the optimizer's sharding leaves as it is

Case = dict[str, Any]
FACTORS: dict[str, tuple[Any, ...]] = {
    "dp": (1, 2, 4),
    "mp": (1, 2, 4),
    "pp": (1, 2, 4),
    "optimizer_shard": (False, True),
    "use_seq_parallel": (False, True),
    "vocab_emb_dp": (True, False),
    "recompute": ("none", "full", "selective", "sliced"),
    "flash": (False, True),
    "accumulate": (1, 2),
    "interleave": (1, 2),
    "task": ("language model", "LoRA", "classification"),
    "network": ("gpt2", "uer", "gpt2_ml"),
}
ADDED: dict[str, tuple[str, ...]] = {  # settings that `with_more_settings` adds to cases
    "weights": ("float16", "bfloat16", "float32"),
    "vocabulary": ("divisible", "padded", "prime"),
}
_VOCABULARY = {
    "divisible": {"vocab_size": VOCAB},
    "padded": {"vocab_size": VOCAB, "unpadded_vocab_size": PRIME},
    "prime": {"vocab_size": PRIME},
}
_NETWORK = {
    "gpt2": {},
    "uer": {"layer_norm": "uer", "tie_word_embeddings": False},
    "gpt2_ml": {"variant": "gpt2_ml"},
}
_RECOMPUTE = {
    "none": {},
    "full": {"recompute": True},
    "selective": {"select_recompute": True},
    "sliced": {
        "recompute": True, "recompute_slice_activation": True, "mp_comm_recompute": False,
        "parallel_optimizer_comm_recompute": True,
    },
}  # fmt: skip
_LORA = {"lora_rank": RANK, "lora_dropout": 0.1, "target_modules": ".*(dense[123]|projection|mapping)"}


def settings_of(case: Case, **network: Any) -> dict[str, Any]:
    """The YAML of a case. network: in place of the toy's sizes."""
    sizes = {
        "num_layers": layers_of(case), "hidden_size": HIDDEN, "num_heads": HEADS, "seq_length": TOKENS,
        "param_init_type": case["weights"],
        "compute_dtype": "bfloat16" if case["weights"] == "bfloat16" else "float16",
        "use_flash_attention": case["flash"],
        **_NETWORK[case["network"]], **_VOCABULARY[case["vocabulary"]], **network,
    }  # fmt: skip
    classifies = case["task"] == "classification"
    if case["task"] == "LoRA":
        sizes["pet_config"] = _LORA
    if classifies:
        sizes["num_labels"] = LABELS
    return {
        "run_mode": "finetune",
        "context": {"device_target": "Ascend"},
        "use_parallel": cards_of(case) > 1,
        "parallel": {"parallel_mode": 1},
        "parallel_config": {
            "data_parallel": case["dp"], "model_parallel": case["mp"], "pipeline_stage": case["pp"],
            "micro_batch_num": case["pp"],
            **{key: case[key] for key in ("optimizer_shard", "use_seq_parallel", "vocab_emb_dp")},
        },
        "micro_batch_interleave_num": case["interleave"],
        "runner_config": {"batch_size": 1, "gradient_accumulation_steps": case["accumulate"]},
        "recompute_config": _RECOMPUTE[case["recompute"]],
        "lr_schedule": {"learning_rate": 1e-4},
        "trainer": {"type": "TextClassificationTrainer" if classifies else "CausalLanguageModelingTrainer"},
        "model": {
            "arch": {"type": "GPT2ForSequenceClassification" if classifies else "GPT2LMHeadModel"},
            "model_config": sizes,
        },
    }  # fmt: skip


def cards_of(case: Case) -> int:
    return case["dp"] * case["mp"] * case["pp"]


def layers_of(case: Case) -> int:
    """Without stages as few as show one after another, since each takes time to compile."""
    return 4 if case["pp"] > 1 else 2


def stages_of(case: Case) -> list[int]:
    """The pipeline stages to compile, of each kind one: the first, one in the middle, the last."""
    return sorted({0, max(0, case["pp"] - 2), case["pp"] - 1})


def compile_as_rank(folder: Path, settings: dict[str, Any], rank: int, cards: int) -> dict[str, Any]:
    """The facts that `compile_step.py` prints."""
    own = folder / f"card_{rank}"
    own.mkdir()
    (own / "run.yaml").write_text(yaml.safe_dump(settings))
    done = run_simulated(
        [sys.executable, PROGRAM, "run.yaml", "output"],
        rank,
        cards,
        cwd=own,
        timeout=300,
        more=DUMP_ENVIRONMENT | {"MS_DEV_SAVE_GRAPHS_PATH": os.fspath(own / "graphs")},
        python_path=[REPO],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# What a card holds, worked out by hand -------------------------------------------------------------------------------


def part_of_weights(case: Case, stage: int) -> dict[str, int]:
    """The number of values of each weight that a rank of a pipeline stage holds, by the table in docs/parallel.md."""
    layers = layers_of(case)
    blocks = range(stage * layers // case["pp"], (stage + 1) * layers // case["pp"])
    first, last = stage == 0, stage == case["pp"] - 1
    weights = {name: size for block in blocks for name, size in _of_block(case, f"backbone.blocks.{block}.")}
    table = "backbone.embedding.{}_embedding.embedding_table"
    if first:
        weights[table.format("word")] = (rows_of(case) * HIDDEN, rows_of(case) // classes_of(case))
        weights[table.format("position")] = (TOKENS * HIDDEN, 1)
        if case["network"] == "gpt2_ml":
            weights |= {f"backbone.embedding.layernorm.{name}": (HIDDEN, 1) for name in ("gamma", "beta")}
    if last:
        if case["network"] != "gpt2_ml":
            weights |= {f"backbone.layernorm.{name}": (HIDDEN, 1) for name in ("gamma", "beta")}
        if case["task"] == "classification":
            weights["score.weight"] = (LABELS * HIDDEN, 1)
        elif case["network"] == "uer":
            weights["head.weight"] = (rows_of(case) * HIDDEN, rows_of(case) // classes_of(case))
    parts = {name: _sharded(case, size, parts) for name, (size, parts) in weights.items()}
    if (
        first and is_tied(case) and case["task"] == "LoRA" and case["pp"] > 1
    ):  # frozen and copied to the last stage: not sharded
        parts[table.format("word")] = classes_of(case) * HIDDEN
    return parts


def masters_of(case: Case, stage: int) -> set[str]:
    """The weights of a rank that are trained in half precision. Layer norms are float32, and so is a tied table that is
    sent between stages."""
    if case["weights"] == "float32" or case["task"] == "LoRA":  # factors are float32
        return set()
    names = {name for name in part_of_weights(case, stage) if "layernorm" not in name}
    if case["pp"] > 1 and is_tied(case):
        names = {name for name in names if "word_embedding" not in name}
    return names


def _of_block(case: Case, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (number of values, number of shards by model_parallel))"""
    mp, wide = case["mp"], 4 * HIDDEN
    linears = {f"attention.dense{n}": (HIDDEN, HIDDEN, True) for n in (1, 2, 3)}
    linears |= {"attention.projection": (HIDDEN, HIDDEN, False), "output.mapping": (HIDDEN, wide, True)}
    linears |= {"output.projection": (wide, HIDDEN, False)}
    for name, (inputs, outputs, by_column) in linears.items():
        yield f"{prefix}{name}.weight", (inputs * outputs, mp)
        yield f"{prefix}{name}.bias", (outputs, mp if by_column else 1)
        if case["task"] == "LoRA":
            yield f"{prefix}{name}.mindpet_delta_lora_a", (RANK * inputs, 1 if by_column else mp)
            yield f"{prefix}{name}.mindpet_delta_lora_b", (RANK * outputs, mp if by_column else 1)
    for norm in ("layernorm1", "layernorm2"):
        for name in ("gamma", "beta"):
            yield f"{prefix}{norm}.{name}", (HIDDEN, 1)


def _sharded(case: Case, size: int, parts: int) -> int:
    """Optimizer sharding divides a shard among all ranks of a stage that hold it, unless the weight, whole and in its
    own dtype, is too small, or its rows cannot be divided. What is float32 beside half-precision weights, norms and
    LoRA factors, is too small."""
    holders = case["dp"] * case["mp"] // parts
    own, whole_bytes = size // parts, size * (4 if case["weights"] == "float32" else 2)
    divisible = size != PRIME * HIDDEN
    return own // holders if case["optimizer_shard"] and divisible and whole_bytes >= SMALLEST_SHARDED else own


def holders_of(case: Case, stage: int) -> dict[str, int]:
    """How many ranks of a stage hold the same shard of each of its weights."""
    whole = part_of_weights(case | {"dp": 1, "mp": 1, "optimizer_shard": False}, stage)
    parts = part_of_weights(case, stage)
    return {name: case["dp"] * case["mp"] * parts[name] // whole[name] for name in parts}


def flops_of_step(case: Case, stage: int) -> tuple[int, int]:
    """Of the matrix products of a step on a rank of a stage: forward and twice that backward; and the most that
    recomputation adds (less, where the backward pass does not need a product's result again)."""
    assert case["task"] != "LoRA", "frozen weights have fewer"
    times = case["pp"] if case["pp"] > 1 else case["accumulate"]  # one row a card, micro-batch and interleaved part
    times *= case["interleave"] if cards_of(case) > 1 else 1
    attention = 4 * TOKENS * TOKENS * HIDDEN // case["mp"]
    block = 2 * TOKENS * (4 * HIDDEN**2 + 2 * HIDDEN * 4 * HIDDEN) // case["mp"] + attention
    blocks, head = layers_of(case) // case["pp"], 0
    if stage == case["pp"] - 1:
        classifies = case["task"] == "classification"
        head = 2 * HIDDEN * LABELS if classifies else 2 * HIDDEN * math.prod(logits_of(case))
    last_product = 2 * TOKENS * 4 * HIDDEN**2 // case["mp"]  # only a layer norm at the end of a block needs its result
    block_again = block if case["network"] == "gpt2_ml" else block - last_product
    again = {"none": 0, "full": block_again, "selective": attention, "sliced": block_again}[case["recompute"]]
    return times * 3 * (blocks * block + head), times * blocks * again


def masks_of_step(case: Case, stage: int) -> int:
    """Operators that generate a dropout mask on a rank of a stage: one for each dropout layer, recomputed or not.

    Blocks are compiled once; what is before them once for each part of a step that is not a micro-batch of stages.
    """
    of_block = 3 + (6 if case["task"] == "LoRA" else 0)
    parts = (case["accumulate"] if case["pp"] == 1 else 1) * case["interleave"] if cards_of(case) > 1 else 1
    return layers_of(case) // case["pp"] * of_block + (parts if stage == 0 else 0)


def is_tied(case: Case) -> bool:
    """Whether the token embedding is the head."""
    return case["task"] != "classification" and case["network"] != "uer"


def rows_of(case: Case) -> int:
    """Of the token table."""
    return PRIME if case["vocabulary"] == "prime" else VOCAB


def classes_of(case: Case) -> int:
    """How many of the vocabulary's rows a rank holds."""
    rows = rows_of(case)
    return rows if case["vocab_emb_dp"] or rows % case["mp"] else rows // case["mp"]


def logits_of(case: Case) -> list[int]:
    """The shape of the logits that a rank computes. What the vocabulary does not divide, the rows do."""
    classes = classes_of(case)
    return [TOKENS // case["mp"], classes] if classes == rows_of(case) else [TOKENS, classes]


def values_of(shapes: dict[str, list[int]]) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


# Covering all combinations of so many settings -----------------------------------------------------------------------


def covering(
    strength: int,
    allowed: Callable[[Case], bool],
    cost: Callable[[Case], float] = lambda case: 1,
    seed: int = 0,
) -> list[Case]:
    """Allowed cases in which every allowed combination of `strength` settings occurs; the same ones every time.

    Greedy: the next case is the one with the most new combinations for its cost, of some that are sampled.
    """
    draw = random.Random(seed)
    cases = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]
    cases = list(filter(allowed, cases))
    open_ = dict.fromkeys(combination for case in cases for combination in _combinations(case, strength))
    chosen = []
    while open_:
        wanted = dict(next(iter(open_)))
        fitting = [case for case in cases if wanted.items() <= case.items()]
        some = draw.sample(fitting, min(60, len(fitting)))
        best = max(
            some,
            key=lambda case: sum(combination in open_ for combination in _combinations(case, strength)) / cost(case),
        )
        for combination in _combinations(best, strength):
            open_.pop(combination, None)
        chosen.append(best)
    return chosen


def with_more_settings(cases: list[Case]) -> list[Case]:
    """The cases, each with the dtype of weights and the vocabulary that make the most new combinations with two other
    settings. As factors of their own they would need more cases, each of which has to be compiled.
    """
    for name, values in ADDED.items():
        seen, chosen = {value: set() for value in values}, []
        for case in cases:
            pairs = set(_combinations(case, 2))
            value = max(values, key=lambda value: len(pairs - seen[value]))
            seen[value] |= pairs
            chosen.append(case | {name: value})
        cases = chosen
    return cases


def _combinations(case: Case, strength: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    return itertools.combinations(case.items(), strength)
