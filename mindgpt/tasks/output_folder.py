"""The output folder of a run: a check that it can be written, its lock, and what an earlier run left there.

Loads no MindSpore, so that an error is reported at once.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindgpt.checkpoints.run_folder import checkpoints_in, rank_folders
from mindgpt.config.callback_sections import CheckpointMonitorSection, SummaryMonitorSection
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.io.files import make_folder
from mindgpt.io.locks import Lock, holder_of, try_lock
from mindgpt.runtime.interrupts import on_interrupt
from mindgpt.runtime.ranks import rank

_KINDS = {"train": "training", "finetune": "training", "eval": "evaluation", "predict": "prediction"}


@contextlib.contextmanager
def held_output_folder(config: RunConfig) -> Iterator[None]:
    """Within the block, no other run of this kind writes into the output folder. An evaluation may, during a training.

    A folder that did not exist and holds nothing afterwards is removed again.

    Raises:
        UserError: the folder cannot be written, or another run of this kind is writing there.
    """
    folder, kind = Path(config.output_dir), _KINDS[config.run_mode]
    _check_can_be_written(folder, "output_dir", "name another with --output_dir")
    if rank() != 0:  # rank 0 writes what all have in common
        yield
        return
    check_callback_folders(config)
    folders = {folder: "output_dir"}
    if kind == "training":
        folders.setdefault(checkpoint_folder(config), "callbacks: CheckpointMonitor.directory")
    missing = [path for held in folders for path in (held.absolute(), *held.absolute().parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        for held, called in folders.items():
            make_folder(held)
            lock = _lock(held, kind, called)
            stack.callback(lock.release)
            stack.enter_context(on_interrupt(lock.release))
        yield


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, each before those above it, that hold nothing."""
    for path in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # it holds something
            path.rmdir()


def check_callback_folders(config: RunConfig) -> None:
    """Raise `UserError` if the folders of a training's callbacks cannot be written."""
    if _KINDS[config.run_mode] != "training":
        return
    for number, section in enumerate(config.callbacks):
        for kind, key in ((CheckpointMonitorSection, "directory"), (SummaryMonitorSection, "summary_dir")):
            if isinstance(section, kind) and getattr(section, key):
                _check_can_be_written(Path(getattr(section, key)), f"callbacks.{number}.{key}", "name another")


def _check_can_be_written(folder: Path, called: str, way_out: str) -> None:
    """Raise `UserError` if a folder, which need not exist yet, cannot be written. Creates nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{called}: {there} is a file, and no folder; {way_out}")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".mindgpt-", dir=there))
    except OSError as error:
        raise UserError(f"{called}: cannot write into the folder {there} ({error.strerror}); {way_out}") from error


def _lock(folder: Path, kind: str, called: str) -> Lock:
    path = folder / f".{kind}.lock"
    way_out = "with --output_dir" if called == "output_dir" else "there"
    try:
        lock = try_lock(path)
    except OSError as error:
        raise UserError(f"{called}: cannot write {path} ({error.strerror}); name another {way_out}") from error
    if lock is None:
        raise UserError(
            f"{called}: another {kind} is writing into {folder} ({holder_of(path)}). Name another folder {way_out}, or "
            "wait until it has ended."
        )
    return lock


def earlier_run_note(config: RunConfig) -> str | None:
    """A note for a new training whose folders hold an earlier one; None: they do not."""
    folder, checkpoints = Path(config.output_dir), checkpoint_folder(config)
    found = [file for ranks in rank_folders(checkpoints).values() for file in checkpoints_in(ranks)]
    has_logs = (folder / "log" / "train.jsonl").exists()
    if not found and not has_logs:
        return None
    place = folder if has_logs else checkpoints
    logs = "its logs are renamed, and " if has_logs else ""
    return (
        f"note: {place} holds an earlier run ({len(found)} checkpoints), which stays: {logs}the checkpoints of this "
        f"run get names of their own. From the first of these on, --load_checkpoint {checkpoints} and "
        "--resume_training mean this run"
    )


def checkpoint_folder(config: RunConfig) -> Path:
    """The folder of a training's checkpoints, with a folder `rank_<r>` for each rank."""
    monitor = next((section for section in config.callbacks if isinstance(section, CheckpointMonitorSection)), None)
    return Path(monitor.directory if monitor and monitor.directory else Path(config.output_dir) / "checkpoint")
