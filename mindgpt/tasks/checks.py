"""Checks of the files that a run names, before MindSpore is loaded, so that a wrong path is reported at once.

Nothing is kept: what needs a file opens it again, and prints the notes about it.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from mindgpt.checkpoints.run_folder import named_checkpoint
from mindgpt.checkpoints.torch_format import is_torch_file
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.data_sections import DatasetSection
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.data.mindrecord import find_mindrecord_files, read_header
from mindgpt.evaluation.generation_metrics import check_metric_packages
from mindgpt.pet.adapter import open_adapter
from mindgpt.runtime.targets import choose_target
from mindgpt.tasks.output_folder import checkpoint_folder
from mindgpt.tasks.prompts import find_tokenizer, read_prompts
from mindgpt.tasks.weights_files import adapter_path, strategy_file, weights_path


def check_named_files(config: RunConfig, texts: list[str], called: str = "--predict_data") -> None:
    """Check every file that the configuration names, as far as this needs no MindSpore.

    Args:
        config: of the run.
        texts: to predict from; see `read_prompts`, also for `called`.

    Raises:
        UserError: something is not there, is of another kind, or cannot be written.
    """
    choose_target(config.context.device_target)
    with contextlib.redirect_stdout(io.StringIO()):  # notes are printed when a file is used
        if config.run_mode == "predict":
            read_prompts(texts, called)
        for name, section in _data_sets(config):
            for file in find_mindrecord_files(data_folder(section, name)):
                read_header(file)
        if config.trains and config.resume_training:  # takes precedence over load_checkpoint
            _check_resume_name(config)
        else:
            _check_weights(config)
        if compares_texts := _evaluates(config) and config.metric.type == "GenerationMetric":
            check_metric_packages()
        if config.run_mode == "predict" or compares_texts:
            find_tokenizer(config)


def _check_weights(config: RunConfig) -> None:
    """Raise `UserError` if weights or adapter do not exist or cannot be read. PyTorch files are not opened: loading
    PyTorch takes as long as loading MindSpore."""
    if (path := weights_path(config)) is not None and not _is_of_torch(path):
        open_weights(path, strategy_file(config, path))
    if (path := adapter_path(config)) is not None and not _is_of_torch(path):
        open_adapter(path)


def _is_of_torch(path: Path) -> bool:
    files = list(path.iterdir()) if path.is_dir() else [path]
    return any(map(is_torch_file, files))


def data_folder(section: DatasetSection, name: str) -> str:
    """The path of the data set `name` ("train" or "eval"), a file or folder.

    Raises:
        UserError: none is named.
    """
    if not section.data_loader.dataset_dir:
        raise UserError(
            f"{name}_dataset.data_loader.dataset_dir: no data set is named; give a MindRecord file or a folder of them "
            f"with --{name}_dataset_dir"
        )
    return section.data_loader.dataset_dir


def _data_sets(config: RunConfig) -> Iterator[tuple[str, DatasetSection]]:
    """The data sets that the run mode reads."""
    if config.trains:
        yield "train", config.train_dataset
    if _evaluates(config):
        yield "eval", config.eval_dataset


def _evaluates(config: RunConfig) -> bool:
    return config.run_mode == "eval" or bool(config.trains and config.do_eval)


def resume_folders(config: RunConfig) -> list[Path]:
    """The checkpoint folders that a run may resume from: its own, and `load_checkpoint`."""
    return [checkpoint_folder(config), *([Path(config.load_checkpoint)] if config.load_checkpoint else [])]


def ranks_in(folders: list[Path]) -> list[Path]:
    """The folders in `resume_folders` that hold checkpoints of a model that is not sharded."""
    own, *named = folders
    found = [own / "rank_0"]
    for folder in named:
        found += [folder / "rank_0", folder] if folder.is_dir() else [folder.parent]
    return found


def _check_resume_name(config: RunConfig) -> None:
    named = config.resume_training
    if isinstance(named, str) and not config.use_parallel:  # else each rank may have its own checkpoint of that step
        named_checkpoint(named, ranks_in(resume_folders(config)))
