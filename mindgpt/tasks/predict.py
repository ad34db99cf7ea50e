"""`run_mode: predict`: prompts in, texts out."""

import json
from dataclasses import asdict
from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.config.run import RunConfig
from mindgpt.data.byte_bpe import holds_tokenizer
from mindgpt.data.files import DOWNLOADS, atomic_write, read_lines
from mindgpt.generation import Completion, GenerationSettings, Generator, generate_text
from mindgpt.models.gpt2.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.runtime.collectives import joined, share
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.models import build_model, weights_path
from mindgpt.tasks.session import keep_config

BATCH_SIZE = 8
_SPECIAL_TOKENS = ("unk_token", "bos_token", "eos_token", "pad_token")


def predict(config: RunConfig, predict_data: list[str]) -> list[Completion]:
    """Continue every prompt; prints the texts and writes them to `predictions.jsonl` and `predictions.txt`. Several
    processes share the prompts, and rank 0 prints and writes.

    Args:
        predict_data: texts, or names of files with one prompt a line.

    Raises:
        UserError: no prompts, no tokenizer, weights that do not fit, or settings that make no sense.
    """
    prompts = read_prompts(predict_data)
    tokenizer = find_tokenizer(config)
    settings = GenerationSettings.from_config(config.model.config, seed=config.seed)
    generator = Generator(build_model(config))
    batch_size = config.model.config.batch_size or BATCH_SIZE
    numbers = share(len(prompts))
    mine = [prompts[number] for number in numbers]
    completions = generate_text(generator, tokenizer, mine, settings, batch_size, numbers) if mine else []
    completions = [Completion(**fields) for fields in joined([asdict(completion) for completion in completions])]
    keep_config(config)
    for completion in completions:
        say(f"\n>>> {completion.prompt}\n{completion.prompt}{completion.text}")
    _write(config, completions)
    return completions


def read_prompts(predict_data: list[str]) -> list[str]:
    """The prompts that `--predict_data` names: an existing file stands for its lines that are not blank.

    Raises:
        UserError: nothing is named, a file holds no prompt or is not UTF-8, or a prompt is empty.
    """
    if not predict_data:
        raise UserError(
            'run_mode predict needs prompts: --predict_data "a text" ["a text" ...], or a file, one prompt a line'
        )
    prompts = []
    for word in predict_data:
        if not _is_file(word):
            if not word.strip():
                raise UserError("--predict_data: an empty text is no prompt")
            prompts.append(word)
            continue
        lines = [line for line in read_lines(word) if line.strip()]
        if not lines:
            raise UserError(f"--predict_data: {word} holds no prompt; it needs one a line")
        prompts += lines
    return prompts


def _is_file(word: str) -> bool:
    """Whether the file system has a file of that name; a long text is not even a possible name."""
    try:
        return Path(word).is_file()
    except OSError:
        return False


def find_tokenizer(config: RunConfig) -> GPT2Tokenizer:
    """The tokenizer that the configuration names, or the one beside the weights, or where MindFormers downloaded it.

    Raises:
        UserError: there is none.
    """
    section = config.processor.tokenizer
    tokens = {name: getattr(section, name) for name in _SPECIAL_TOKENS if name in section.model_fields_set}
    named = section.path or section.tokenizer_file or section.vocab_file
    if named:
        if section.merges_file and Path(section.merges_file).parent != Path(section.vocab_file).parent:
            raise UserError("processor.tokenizer: vocab_file and merges_file must lie in one folder")
        return GPT2Tokenizer.from_pretrained(named, **tokens)
    weights = weights_path(config)
    folders = [DOWNLOADS] if weights is None else [weights if weights.is_dir() else weights.parent, DOWNLOADS]
    for folder in folders:
        if holds_tokenizer(folder):
            say(f"tokenizer: {folder}")
            return GPT2Tokenizer.from_pretrained(folder, **tokens)
    raise UserError(
        f"no tokenizer: name its folder with --tokenizer DIR. Looked for tokenizer.json or vocab.json "
        f"in {' and '.join(map(str, folders))}."
    )


def _write(config: RunConfig, completions: list[Completion]) -> None:
    if rank() != 0:
        return
    base = Path(config.output_dir)
    with atomic_write(base / "predictions.jsonl", "w") as file:
        for completion in completions:
            record = {
                "prompt": completion.prompt,
                "generated_text": completion.prompt + completion.text,
                "new_tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with atomic_write(base / "predictions.txt", "w") as file:
        for completion in completions:
            file.write(completion.prompt + completion.text + "\n\n")
    say(f"\n{len(completions)} text(s): {base / 'predictions.jsonl'} and {base / 'predictions.txt'}")
