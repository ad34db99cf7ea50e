"""Where the weights of a run are: the files and folders that a configuration names. Loads no MindSpore."""

from pathlib import Path

from mindgpt.checkpoints.locations import find_weights, is_model_name, newest_in
from mindgpt.checkpoints.run_folder import checkpoints_in, rank_folders
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.io.files import DOWNLOADS
from mindgpt.pet.peft_folder import is_peft_folder
from mindgpt.runtime.ranks import say
from mindgpt.tasks.output_folder import checkpoint_folder


def weights_path(config: RunConfig) -> Path | None:
    """The file or folder of weights that a run starts from, or None to start from scratch.

    `load_checkpoint` takes precedence over `model.model_config.checkpoint_name_or_path`. A bare model name, which
    MindFormers downloaded, is looked for in `./checkpoint_download/gpt2`. A folder of a run's checkpoints means the
    newest one. An evaluation or prediction for which none are named takes those in its own output folder, and says so.

    Raises:
        UserError: what is named is not there, or nothing is named and the run mode needs weights.
    """
    named = config.load_checkpoint or config.model.config.checkpoint_name_or_path
    own = None if config.trains else _checkpoints_in_output_folder(config)
    if own is not None and _names_no_weights_of_this_kind(config, named):
        what = f"{named} has no classification head" if named else "none are named"
        say(f"weights: {what}, so those of the run in this output folder are used (--load_checkpoint names others)")
        return newest_in(own)
    if not named:
        if config.run_mode == "train":
            return None
        raise UserError(
            f"run_mode {config.run_mode} needs weights: name a .ckpt, a run's checkpoint folder or a Hugging Face "
            "folder with --load_checkpoint"
        )
    somewhere = Path(named).exists() or (DOWNLOADS / f"{named}.ckpt").exists()
    if config.run_mode == "train" and is_model_name(named) and not somewhere:
        say(f"weights: {named} is not in {DOWNLOADS}, and nothing is downloaded")
        return None
    if config.src_strategy_path_or_dir and len(rank_folders(Path(named))) > 1:
        return Path(named)  # shards; only that strategy says so if none lies beside them
    try:
        return find_weights(named)
    except UserError as error:
        hint = ""
        if own:
            hint = f" A run has left some in this output folder: --load_checkpoint {own}"
        elif Path(named).is_relative_to(DOWNLOADS):  # what a YAML names, in case that the command names nothing
            hint = "; --load_checkpoint names others, such as a run's folder checkpoint"
        raise UserError(f"load_checkpoint: {error}{hint}") from None


def _checkpoints_in_output_folder(config: RunConfig) -> Path | None:
    """The folder of checkpoints that an earlier run with these settings has left, or None."""
    folder = checkpoint_folder(config)
    return folder if any(checkpoints_in(ranks) for ranks in rank_folders(folder).values()) else None


def _names_no_weights_of_this_kind(config: RunConfig, named: str) -> bool:
    """Whether no weights are named, or for a classifier only a model: those that have names are language models."""
    if not named:
        return True
    classifies = config.trainer.type == "TextClassificationTrainer"
    return classifies and is_model_name(named) and not Path(named).exists()


def strategy_file(config: RunConfig, path: Path) -> str | None:
    """The strategy file or folder that describes the shards at `path`, if one is named; None: look beside them.

    With `auto_trans_ckpt` or without it, shards are merged, and sharded again for the layout of this run.

    Raises:
        UserError: one is named, and there is nothing that it could be of.
    """
    named = config.src_strategy_path_or_dir
    if named and not (path.is_dir() and rank_folders(path)):
        raise UserError(
            f"src_strategy_path_or_dir: {named} describes shards, but load_checkpoint {path} is no folder of them "
            "(rank_0, rank_1, ...). Leave it out for weights that are whole."
        )
    return named or None


def adapter_path(config: RunConfig) -> Path | None:
    """The PEFT folder or file of a LoRA adapter that a run loads on top of its weights, or None.

    A run's folder `checkpoint_trainable` means the newest in it.

    Raises:
        UserError: what is named is not there.
    """
    section = config.model.config.pet_config
    if section is None or not section.adapter:
        return None
    path = Path(section.adapter)
    if not path.exists():
        raise UserError(f"adapter: there is no file or folder {path} (looked from {Path.cwd()})")
    return newest_in(path) if path.is_dir() and not is_peft_folder(path) else path
