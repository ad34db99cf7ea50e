"""Merging the shards of a parallel run, or resharding them for another layout: `tools/transform_ckpt.py`."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_names import MF_EMBEDDING
from mindgpt.checkpoints.locations import config_beside
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.padded_vocabulary import VocabularyRows, config_with_rows, with_vocabulary
from mindgpt.checkpoints.run_folder import Step, checkpoint_files, choose_files, listed, rank_folders, step_of
from mindgpt.checkpoints.sharded_checkpoint import ShardedCheckpoint, refuse_shard
from mindgpt.checkpoints.skip_rules import MASTER, skip_rule
from mindgpt.checkpoints.strategy_format import ShardingStrategy, read_strategy
from mindgpt.checkpoints.tensor_source import Box, TensorInfo
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write, open_to_read, read_json

Source = ShardedCheckpoint | CheckpointFile


def transform(
    source: Path,
    target: Path,
    prefix: str = "checkpoint_",
    strategy: Path | None = None,
    target_strategy: Path | None = None,
    step: Step | None = None,
    training_state: bool | None = None,
    vocab_size: int | None = None,
) -> list[Path]:
    """Write the checkpoint of a run for another number of ranks, as `<target>/rank_<r>/<prefix><r>.ckpt`, or as
    `<prefix><r>-<epoch>_<step>.ckpt` where a sharded run can resume from the result.

    Everything is checked before the first file is written; each file is written whole or not at all.

    Args:
        source: a run's folder `checkpoint`, or a whole `.ckpt`.
        target: output folder; must not be inside the source.
        prefix: of the files' names.
        strategy: how the source is sharded; None: the folder `strategy` beside it, if there are several ranks.
        target_strategy: how the result is to be sharded; None: one whole file.
        step: which checkpoint; None for the newest, which every rank must have.
        training_state: whether to write optimizer state, loss scale, counters and the like, too; None: only if
            `target_strategy` is given, since a run can then resume from the result.
        vocab_size: rows of the result's token table and of its optimizer state, with padding or without; None: as many
            as in the source.

    Returns:
        The files.

    Raises:
        UserError: the source is incomplete or not of one run, the layouts do not fit it, or the result would be
            written into the source.
    """
    checkpoint = _open(source, strategy, step)
    layouts = read_strategy(target_strategy) if target_strategy else None
    keep_state = training_state if training_state is not None else layouts is not None
    saved_step = step_of(checkpoint.path) if layouts and keep_state else None  # lets ranks agree on a step to resume
    ending = f"-{saved_step}.ckpt" if saved_step else ".ckpt"
    files = [target / f"rank_{r}" / f"{prefix}{r}{ending}" for r in range(layouts.ranks if layouts else 1)]
    _check_target(target, files, source, strategy, target_strategy)
    held = checkpoint if vocab_size is None else _with_vocabulary(checkpoint, vocab_size, keep_state)
    entries = {name: info for name, info in held.entries.items() if _kept(name, keep_state)}
    texts = {name: text for name, text in checkpoint.texts.items() if _kept(name, keep_state)}
    masters = _masters_of_float32_weights(layouts, entries) if layouts else {}
    entries = {name: entries[masters.get(name, name)] for name in entries if name not in masters.values()}
    left_out = _check_fit(layouts, entries, checkpoint) if layouts else []
    entries = {name: info for name, info in entries.items() if name not in left_out}
    _print_source(checkpoint, left_out)
    boxes_of_ranks = [_boxes(layouts, rank, entries) for rank in range(len(files))]
    with tqdm(total=sum(map(len, boxes_of_ranks)), desc=target.name, unit=" tensors", disable=None) as progress:
        for file, boxes in zip(files, boxes_of_ranks, strict=True):
            write_checkpoint(file, _contents(held, boxes, masters, texts, progress.update))
            _copy_config(checkpoint.path, file, vocab_size)
    state = "with training state" if keep_state else "weights only"
    result = f"sharded for {len(files)} ranks: {target}" if layouts else files[0]
    print(f"wrote {len(entries)} tensors, {state}, {result}")
    return files


def _open(source: Path, strategy: Path | None, step: Step | None) -> Source:
    if not source.exists():
        raise UserError(f"--src_ckpt_dir: there is no {source}.")
    if source.is_file():
        refuse_shard(source)
        if strategy or step:
            raise UserError(f"{source}: is one file; --src_ckpt_strategy and --step are for the folder of a run.")
        return CheckpointFile(source)
    folders = rank_folders(source)
    if strategy is None and len(folders) == 1:
        return CheckpointFile(choose_files(list(folders.values()), step)[0])
    return ShardedCheckpoint(source, strategy, step)


def _with_vocabulary(checkpoint: Source, rows: int, keep_state: bool) -> VocabularyRows:
    """The checkpoint with so many rows in its token tables. Raises a UserError as `with_vocabulary`."""
    beside = config_beside(checkpoint.path)
    config = GPT2Config.from_pretrained(beside) if beside else None
    held = with_vocabulary(checkpoint, config, rows, training_state=keep_state)
    old = checkpoint.entries[MF_EMBEDDING].shape[0]
    changed = [name for name in held.changed if _kept(name, keep_state)]
    print(f"vocabulary: from {old} to {rows} rows in {len(changed)} tensors")
    return held


def _kept(name: str, state: bool) -> bool:
    rule = skip_rule(name)
    return rule is None or (state and rule != "layout")


def _print_source(checkpoint: Source, left_out: list[str]) -> None:
    if isinstance(checkpoint, ShardedCheckpoint):
        step = f"step {checkpoint.step} (epoch_step)" if checkpoint.step else checkpoint.path.name
        print(f"source: {step} of {checkpoint.strategy.ranks} ranks in {checkpoint.folder}")
        for name, difference in checkpoint.differences_between_stages().items():
            print(
                f"note: {name} differs by up to {difference:.2g} between the pipeline stages; the first "
                "stage's value is used"
            )
    else:
        print(f"source: {checkpoint.path}")
    if left_out:
        print(f"note: not in the strategy of the result, and left out: {listed(left_out)}")


def _check_fit(layouts: ShardingStrategy, entries: Mapping[str, TensorInfo], checkpoint: Source) -> list[str]:
    """Check that the target strategy fits these tensors. Returns the names of optimizer state that the target
    strategy does not list.

    Raises:
        UserError: it does not; names and shapes are listed.
    """
    problems, left_out = [], []
    for name, info in entries.items():
        for stage in layouts.stages_of(name):
            layout = layouts.stages[stage][name]
            if not layout.divides(info.shape):
                problems.append(f"{name} {list(info.shape)} cannot be divided into {list(layout.shards)} shards")
        if name in layouts.names:
            continue
        if skip_rule(name) is None:
            replicated = isinstance(checkpoint, ShardedCheckpoint) and checkpoint.layout(name) is None
            problems += [] if replicated else [f"{name} is not in the strategy"]
        # Per-parameter state; a counter belongs to no parameter and goes to every rank.
        elif name.partition(".")[2] in entries:
            left_out.append(name)
    problems += [
        f"{name} is in the strategy but not in the checkpoint"
        for name in sorted(layouts.names)
        if name not in entries and skip_rule(name) is None
    ]
    if problems:
        lines = listed(problems, separator="\n  ")
        raise UserError(f"--dst_ckpt_strategy {layouts.path}: does not fit {checkpoint.path}:\n  {lines}")
    return left_out


def _masters_of_float32_weights(layouts: ShardingStrategy, entries: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Weights that the source trains in half precision and the target in float32: their master copies by their names.

    The result has the master copy's values under the weight's name. A tied table is float32 in a pipeline (see
    `tasks/training_step.py`).
    """
    states = {name.partition(".")[2] for name in layouts.names if skip_rule(name) == "optimizer state"}
    masters = {name: f"{MASTER}{name}" for name in entries if name in states}
    return {name: master for name, master in masters.items() if master in entries and master not in layouts.names}


def _boxes(layouts: ShardingStrategy | None, rank: int, entries: Mapping[str, TensorInfo]) -> dict[str, Box | None]:
    """The box of each tensor that a rank gets; None: the whole tensor. Every rank gets what no strategy mentions."""
    if layouts is None:
        return dict.fromkeys(entries)
    stage, local_rank = divmod(rank, layouts.ranks_per_stage)
    own = layouts.stages[stage]
    return {
        name: own[name].box(local_rank, info.shape) if name in own else None
        for name, info in entries.items()
        if name in own or name not in layouts.names
    }


def _contents(
    checkpoint: Source | VocabularyRows,
    boxes: Mapping[str, Box | None],
    masters: Mapping[str, str],
    texts: Mapping[str, str],
    count: Callable[[int], object],
) -> Iterator[tuple[str, np.ndarray | str]]:
    for name, box in boxes.items():
        yield name, checkpoint.read_box(masters.get(name, name), box)
        count(1)
    yield from texts.items()


def _check_target(target: Path, files: list[Path], source: Path, *strategies: Path | None) -> None:
    """Check that the target is separate from the sources and from other checkpoints.

    Raises:
        UserError: it is not.
    """
    read = [source, source.absolute().parent / "strategy", *filter(None, strategies)]
    for folder in filter(Path.is_dir, read):
        if target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--dst_ckpt_dir: {target} lies in {folder}, which is an input. Name another folder.")
    planned = {file.resolve() for file in files}
    found = [file.resolve() for folder in rank_folders(target).values() for file in checkpoint_files(folder)]
    unexpected = [file for file in found if file not in planned or file == source.resolve()]
    if unexpected:
        raise UserError(
            f"--dst_ckpt_dir: {target} holds other checkpoints already ({unexpected[0]}), which would be taken for "
            "part of the result. Name an empty folder."
        )


def _copy_config(source: Path, file: Path, vocab_size: int | None) -> None:
    config = config_beside(source)
    if config is not None and vocab_size is not None:
        architecture = (read_json(config).get("architectures") or ["GPT2LMHeadModel"])[0]
        config_with_rows(GPT2Config.from_pretrained(config), vocab_size).save_pretrained(file.parent, architecture)
    elif config is not None:
        with open_to_read(config) as content, atomic_write(file.with_name("config.json")) as output:
            output.write(content.read())
