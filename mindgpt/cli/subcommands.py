"""The subcommands of `mindgpt`: a line here, and a text in `help_texts.py`, adds one. Quick to import."""

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Subcommand(NamedTuple):
    """One subcommand.

    Attributes:
        summary: a line for the list of all.
        place: module and function that runs it, which takes the words after its name; loaded when it is run.
        parser: the function in that module that makes its parser, for shell completion; "": there is none.
        old_name: the program of a checkout that does the same, which its full help names.
        computes: whether it computes with MindSpore, which needs a Ctrl-C of its own (`runtime/interrupts.py`).
    """

    summary: str
    place: str
    parser: str = "build_parser"
    old_name: str = ""
    computes: bool = False

    def load(self, name: str | None = None) -> Callable:
        """The function that runs it, or another one of its module."""
        module, function = self.place.split(":")
        return getattr(importlib.import_module(module), name or function)


def _tool(summary: str, module: str, old_name: str, **more: bool) -> Subcommand:
    return Subcommand(summary, f"mindgpt.cli.{module}:main", old_name=old_name, **more)


def _mode(summary: str, mode: str) -> Subcommand:
    return Subcommand(summary, f"mindgpt.cli.run_modes:{mode}", f"{mode}_parser", computes=True)


_PREPARE = "tools/dataset_preprocess"
SUBCOMMANDS: dict[str, Subcommand] = {
    "train": _mode("train from random weights, or train on from given ones", "train"),
    "finetune": _mode("fine-tune trained weights on your text, all of them or by LoRA", "finetune"),
    "eval": _mode("perplexity of a model on a text; accuracy of a classifier", "evaluate"),
    "predict": _mode("continue prompts; label texts with a classifier", "predict"),
    "chat": _mode("type prompts, read what follows as it is generated", "chat"),
    "score": _tool("log-probability and perplexity of each text", "score_text", "tools/score_text.py", computes=True),
    "prepare text": _tool("text to MindRecord", "text_to_mindrecord", f"{_PREPARE}/text_to_mindrecord.py"),
    "prepare instructions": _tool(
        "prompts and responses to MindRecord",
        "instruction_to_mindrecord",
        f"{_PREPARE}/instruction_to_mindrecord.py",
    ),
    "prepare classification": _tool(
        "labelled texts to MindRecord",
        "txtcls_dataset_to_mindrecord",
        f"{_PREPARE}/gpt2/txtcls_dataset_to_mindrecord.py",
    ),
    "prepare wikitext": _tool(
        "WikiText to MindRecord", "wikitext2_data_process", f"{_PREPARE}/gpt2/wikitext2_data_process.py"
    ),
    "prepare split": _tool("a text into train.txt and valid.txt", "split_text", "tools/split_text.py"),
    "tokenizer": _tool("learn a vocabulary from text", "train_tokenizer", "tools/train_tokenizer.py"),
    "convert": Subcommand(
        "weights to and from Hugging Face, UER-py, GPT2_ML, ModelScope",
        "mindgpt.models.gpt2.convert_weight:main",
        old_name="mindgpt/models/gpt2/convert_weight.py",
    ),
    "merge": _tool("shards of a parallel run into one file, or others", "transform_ckpt", "tools/transform_ckpt.py"),
    "lora merge": _tool("LoRA into its base weights", "transform_ckpt_lora", "tools/transform_ckpt_lora.py"),
    "lora convert": _tool("LoRA to and from PEFT and TencentPretrain", "convert_lora", "tools/convert_lora.py"),
    "plan": _tool("the layout of a training on N cards, or a dry run of one", "plan_command", "tools/plan.py"),
    "plot": _tool("draw the loss curves of runs", "plot_run", "tools/plot_run.py"),
    "info": Subcommand("say what a file or folder is, without loading it", "mindgpt.cli.info:main"),
    "launch": Subcommand("run a subcommand in several processes", "mindgpt.cli.launch:main"),
    "serve": Subcommand("HTTP server with OpenAI's interface, and a page", "mindgpt.cli.serve:main", computes=True),
    "lm_eval": Subcommand(
        "run tasks of the lm-evaluation-harness", "mindgpt.integrations.lm_eval:main", parser="", computes=True
    ),
    "completion": Subcommand("print a script that completes words in bash or zsh", "mindgpt.cli.completion:main", ""),
}
"""By name; a name of two words belongs to a group, whose first word is no subcommand itself."""

GROUPS = {
    "prepare": "data for training: text, instructions, classification, wikitext, split",
    "lora": "LoRA adapters: merge, convert",
}


def find(words: Sequence[str]) -> tuple[str, Subcommand, list[str]] | None:
    """The subcommand that words begin with: its name, itself, and the words after it; None if they begin with none."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in SUBCOMMANDS:
            return name, SUBCOMMANDS[name], list(words[count:])
    return None
