"""`run_mode: predict`: continues prompts."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindgpt.config.run_config import RunConfig
from mindgpt.generation import Completion, GenerationSettings, Generator, generate_text
from mindgpt.generation.streaming import print_text
from mindgpt.generation.text_generation import encode_prompts
from mindgpt.io.files import appending_to, atomic_write, make_folder
from mindgpt.runtime.collectives import gather_shares, share
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.runtime.targets import is_simulated
from mindgpt.tasks.model_setup import build_model, say_if_kernels_are_missing
from mindgpt.tasks.prompts import BATCH_SIZE, Progress, Prompt, find_tokenizer, read_prompts
from mindgpt.tasks.session import save_config
from mindgpt.tokenizers.tokenizer import BaseTokenizer

FILES = ("predictions.jsonl", "predictions.txt")


def predict(config: RunConfig, predict_data: list[str]) -> list[Completion]:
    """Continue every prompt; writes the texts to `predictions.jsonl` and `predictions.txt` and prints them. Several
    processes share the prompts, and rank 0 prints and writes. At a terminal a single text is printed as it comes.

    Args:
        predict_data: texts, or names of files and folders of texts; see `read_prompts`.

    Returns:
        The completions in the order of the prompts; with `num_return_sequences` n, n consecutive ones of each.

    Raises:
        UserError: no prompts, no tokenizer, weights that do not fit, settings that make no sense, or a prompt that
            cannot be continued.
    """
    prompts = read_prompts(predict_data)
    tokenizer = find_tokenizer(config)
    model_config = config.model.config
    settings = GenerationSettings.from_config(model_config, seed=config.seed)
    texts, names = zip(*prompts, strict=True)
    sizes = model_config.token_count, model_config.max_position_embeddings
    encode_prompts(tokenizer, texts, settings, *sizes, names, model_config.prompt_special_tokens)
    model, config = build_model(config)
    settings = GenerationSettings.from_config(config.model.config, seed=config.seed)  # perhaps those of the weights
    generator = Generator(model)
    say_if_kernels_are_missing()
    if is_simulated():
        _compile(generator, settings, len(texts), config.model.config.batch_size or BATCH_SIZE)
        return []
    if _one_text_at_a_terminal(prompts, settings):
        say(f"\n>>> {texts[0]}")
        print_text(texts[0])
        completions = generate_text(generator, tokenizer, texts, settings, on_text=lambda _, piece: print_text(piece))
        say("")
        shown = []
    else:
        completions = shown = _continued(config, generator, tokenizer, texts, settings)
    save_config(config)
    _write(config, completions, settings.num_return_sequences)
    _partial_file(config).unlink(missing_ok=True)
    for completion in shown:  # after the files: the texts are kept even if the console fails
        say(f"\n>>> {completion.prompt}\n{completion.prompt}{completion.text}")
    files = " and ".join(str(Path(config.output_dir) / name) for name in FILES)
    say(f"\n{len(completions)} text(s): {files}")
    return completions


def _compile(generator: Generator, settings: GenerationSettings, prompts: int, batch_size: int) -> None:
    """Compile the graphs only: simulated cards compute nothing."""
    rows = min(prompts, batch_size) * max(settings.num_return_sequences, settings.num_beams)
    with generator.running():
        batch, slots = generator.graphs.compile(rows, generator.graphs.context_length)
    say(f"compiled: prefill of a text, and a step of {batch} texts of up to {slots} tokens; simulated cards write none")


def _one_text_at_a_terminal(prompts: list[Prompt], settings: GenerationSettings) -> bool:
    texts = len(prompts) * settings.num_return_sequences * settings.num_beams
    return texts == 1 and world_size() == 1 and sys.stdout.isatty()


def _continued(
    config: RunConfig,
    generator: Generator,
    tokenizer: BaseTokenizer,
    prompts: tuple[str, ...],
    settings: GenerationSettings,
) -> list[Completion]:
    """The completions of all prompts. Each process computes its share."""
    batch_size = config.model.config.batch_size or BATCH_SIZE
    numbers = share(len(prompts))
    copies = settings.num_return_sequences
    mine = [prompts[number] for number in numbers]
    partial = _partial_file(config)
    partial.unlink(missing_ok=True)
    with Progress(len(mine), batch_size, "prompts") as progress:

        def on_batch(places: list[int], completions: list[Completion]) -> None:
            progress.update(len(places) // copies, sum(len(one.token_ids) for one in completions))
            if len(mine) > batch_size:
                _keep(partial, [numbers[place // copies] for place in places], completions)

        done = (
            generate_text(generator, tokenizer, mine, settings, batch_size, numbers, on_batch=on_batch) if mine else []
        )
    of_prompts = [list(map(asdict, done[start : start + copies])) for start in range(0, len(done), copies)]
    return [Completion(**fields) for of_prompt in gather_shares(of_prompts) for fields in of_prompt]


def _partial_file(config: RunConfig) -> Path:
    """The file of this process for completions until all are written."""
    of_rank = f"_{rank()}" if world_size() > 1 else ""
    return Path(config.output_dir) / f"predictions.jsonl.partial{of_rank}"


def _keep(file: Path, numbers: list[int], completions: list[Completion]) -> None:
    """Append the completions of a batch, with the numbers of their prompts, in case the run is interrupted."""
    make_folder(file.parent)
    rows = ({"number": number} | _record(one) for number, one in zip(numbers, completions, strict=True))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with appending_to(file), open(file, "a", encoding="utf-8") as lines:
        lines.write(text)


def _record(completion: Completion) -> dict[str, Any]:
    return {
        "prompt": completion.prompt,
        "generated_text": completion.prompt + completion.text,
        "new_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }


def _write(config: RunConfig, completions: list[Completion], copies: int) -> None:
    """Write both `FILES`; `sequence` numbers the texts of a prompt if there are several."""
    if rank() != 0:
        return
    base = Path(config.output_dir)
    with (
        atomic_write(base / FILES[0], "w") as lines,
        atomic_write(base / FILES[1], "w") as texts,
    ):
        for number, completion in enumerate(completions):
            record = _record(completion)
            if copies > 1:
                record["sequence"] = number % copies
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            texts.write(completion.prompt + completion.text + "\n\n")
