"""Weights in and out of a model: opening whatever the person names, strict loading, atomic saving.

    weights = open_weights("gpt2-hf/")            # or our folder, x.ckpt, x.safetensors, x.bin, a run's sharded folder
    model = GPT2LMHeadModel(weights.config)
    report = load_weights(model, weights)         # every name used, skipped by a named rule, or an error
    save_checkpoint("model.ckpt", model)          # whole or not at all

MindSpore is imported only where its tensors are made, so that conversion starts without it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, PRESETS, GPT2Config, read_config
from mindgpt.checkpoints.gpt2_names import MindFormersView, are_mindformers, hint
from mindgpt.checkpoints.hugging_face_format import WEIGHT_NAMES, is_torch_file, open_hugging_face, weights_in
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.run_folder import checkpoint_files, checkpoints_in, files_of_last_run, rank_folders
from mindgpt.checkpoints.sharded_checkpoint import SlicedCheckpoint, holds_slices, refuse_slice
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.tensor_source import TensorSource, cast
from mindgpt.config.errors import UserError
from mindgpt.io.files import DOWNLOADS
from mindgpt.runtime.alignment import aligned
from mindgpt.runtime.ranks import say

if TYPE_CHECKING:
    from mindspore import Parameter, Tensor, nn

CHECKPOINT_NAME = "model.ckpt"


class CheckpointWeights:
    """The weights in a `.ckpt`, in the slices of a parallel run, or in safetensors under MindFormers' names: a
    `TensorSource` without what `SKIP_RULES` name.

    Attributes:
        path, entries: as in `TensorSource`.
        skipped: name -> the rule it was skipped by.

    Raises:
        UserError: the file is broken, or one rank's slice.
    """

    def __init__(self, checkpoint: str | Path | TensorSource):
        if isinstance(checkpoint, str | Path):
            refuse_slice(Path(checkpoint))
            self._file = CheckpointFile(checkpoint)
        else:
            self._file = checkpoint
        self.path = self._file.path
        texts = getattr(self._file, "texts", {})
        names = [*self._file.entries, *texts]
        self.skipped = {name: rule for name in names if (rule := skip_rule(name))}
        texts = [name for name in texts if name not in self.skipped]
        if texts:
            raise UserError(
                f"{self.path}: these entries are text, not weights, and no rule skips them: {', '.join(texts)}."
            )
        self.entries = {name: info for name, info in self._file.entries.items() if name not in self.skipped}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._file.read(name)


@dataclass(frozen=True)
class Weights:
    """Opened weights under our names, not yet read.

    Attributes:
        kind: the format they are stored in.
        config: the config that lies with them, or None.
        source: `.path`, `.entries` (name -> shape, dtype), `.skipped` (name -> rule), `.read(name)`.
        notes: sentences for the person about what was left out, or not as expected, to be said by whoever loads them.
    """

    kind: Literal["hugging_face", "checkpoint"]
    config: GPT2Config | None
    source: MindFormersView | CheckpointWeights
    notes: tuple[str, ...] = ()


def open_weights(path: str | Path, strategy: str | Path | None = None) -> Weights:
    """Open a Hugging Face folder or file, our folder (`config.json` and `model.ckpt`), a `.ckpt` beside its config,
    safetensors under MindFormers' names, or the folder `checkpoint` of a parallel run, whose slices are put together.

    The config of `x.ckpt` is `x.config.json` or else `config.json` in its folder; that of a Hugging Face file is
    `config.json` in its folder; that of slices lies beside rank 0's.

    Args:
        path: of the weights.
        strategy: file or folder that tells how slices belong together; None: the folder `strategy` beside `path`.

    Raises UserError if there are no weights, if a folder holds two kinds of them, or if they are broken.
    """
    path = Path(path)
    if path.is_dir() and (holds_slices(path) if strategy is None else rank_folders(path)):
        return _checkpoint(SlicedCheckpoint(path, Path(strategy) if strategy else None))
    if path.is_dir():
        path = _weights_file(path)
    if path.suffix == ".ckpt" and not is_torch_file(path):
        return _checkpoint(path)
    refuse_slice(path)
    stored = open_hugging_face(path)
    if are_mindformers(stored.entries):
        return _checkpoint(stored)
    return _opened("hugging_face", MindFormersView(stored))


def _checkpoint(checkpoint: Path | TensorSource) -> Weights:
    return _opened("checkpoint", CheckpointWeights(checkpoint))


def _opened(kind: Literal["hugging_face", "checkpoint"], source: MindFormersView | CheckpointWeights) -> Weights:
    config, notes = None, [*getattr(source, "notes", ())]
    if file := config_beside(source.path):
        config, of_config = read_config(file)
        notes += of_config
    return Weights(kind, config, source, tuple(notes))


def _weights_file(folder: Path) -> Path:
    """The file of weights in `folder`."""
    hugging_face, checkpoint = weights_in(folder), folder / CHECKPOINT_NAME
    if hugging_face is None and not checkpoint.exists():
        others = [file.name for file in checkpoint_files(folder)]
        found = f" Found {', '.join(others)}: name the file you mean." if others else ""
        raise UserError(
            f"{folder}: no weights in this folder. Looked for {', '.join((*WEIGHT_NAMES, CHECKPOINT_NAME))}.{found}"
        )
    if hugging_face is not None and checkpoint.exists():
        raise UserError(f"{folder}: holds both {hugging_face.name} and {CHECKPOINT_NAME}. Name the file you mean.")
    return hugging_face or checkpoint


def find_weights(named: str | Path) -> Path:
    """The file or folder of weights that a person names: itself, the newest checkpoint of a run's folder, or for a bare
    name what MindFormers downloaded under it, `./checkpoint_download/gpt2/<name>.ckpt`. Nothing is downloaded.

    Raises:
        UserError: there is nothing of that name; the message says what to do.
    """
    path = Path(named)
    if path.is_dir():
        return newest_in(path)
    if path.exists():
        return path
    downloaded = DOWNLOADS / f"{named}.ckpt"
    if downloaded.exists():
        return downloaded
    if not is_model_name(named):
        raise UserError(f"there is no file or folder {named} (looked from {Path.cwd()})")
    raise UserError(
        f"{named} is a model name, and there is no {downloaded}. mindgpt downloads nothing: put the file there, or "
        "name a file or folder of your own. convert_weight.py makes a .ckpt of Hugging Face weights."
    )


def is_model_name(named: str | Path) -> bool:
    """Whether something that is not there was meant as a model's name rather than as a path."""
    return "/" not in str(named) and not str(named).endswith((".ckpt", ".bin", ".safetensors"))


def preset_of(named: str | Path) -> GPT2Config | None:
    """The config of a bare model name that is a preset, such as "gpt2"; None for a path."""
    return None if Path(named).exists() or str(named) not in PRESETS else GPT2Config.from_pretrained(named)


def newest_in(folder: Path) -> Path:
    """`folder` itself if it holds a model, or the slices of one that was cut over cards; the newest checkpoint if it is
    a run's checkpoint folder, of which a line tells."""
    if holds_slices(folder):
        return folder
    ranks = folder / "rank_0"
    candidates = ranks if ranks.is_dir() else folder
    found = checkpoints_in(candidates)
    if not found:
        return _only_file_in(candidates) or folder
    newest, of_last_run = found[-1], files_of_last_run(candidates)
    others = len(found) - len(of_last_run) if of_last_run else 0
    earlier = f", of the last run; {others} of earlier runs are there too" if others else ""
    say(f"weights: the newest in {candidates} is {newest.name}{earlier}")
    written_last = max(checkpoint_files(candidates), key=lambda file: file.stat().st_mtime_ns)
    if not of_last_run and written_last != newest:
        say(f"note: {written_last.name} was written later; if it is of a later run, name it with --load_checkpoint")
    return newest


def _only_file_in(folder: Path) -> Path | None:
    """The one checkpoint in a folder, whatever it is called, if nothing else there can be meant."""
    files = checkpoint_files(folder)
    if len(files) != 1 or (folder / CHECKPOINT_NAME).exists() or weights_in(folder):
        return None
    say(f"weights: {files[0]}")
    return files[0]


def own_config(checkpoint: Path) -> Path:
    """Where the config of `x.ckpt` lies if `config.json` beside it is another model's: `x.config.json`."""
    return checkpoint.with_suffix("." + CONFIG_FILE)


def config_beside(weights: Path) -> Path | None:
    """The config file that belongs to a file of weights, or None."""
    candidates = [own_config(weights)] if weights.suffix == ".ckpt" else []
    return next((file for file in (*candidates, weights.with_name(CONFIG_FILE)) if file.exists()), None)


@dataclass
class LoadReport:
    """What `load_weights` did with each name."""

    path: Path
    loaded: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # name in the file -> rule
    not_in_file: list[str] = field(default_factory=list)  # parameters that were allowed to be missing
    casts: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (dtype in the file, dtype in the model)

    def __str__(self) -> str:
        parts = [f"{self.path}: {len(self.loaded)} parameters loaded"]
        for rule in sorted(set(self.skipped.values())):
            parts.append(f"{list(self.skipped.values()).count(rule)} skipped ({rule})")
        for old, new in sorted(set(self.casts.values())):
            parts.append(f"{list(self.casts.values()).count((old, new))} cast from {old} to {new}")
        if self.not_in_file:
            parts.append(f"not in the file: {', '.join(self.not_in_file)}")
        return "; ".join(parts)


def load_weights(
    model: "nn.Cell | Mapping[str, Parameter]", weights: Weights | TensorSource, may_be_missing: Iterable[str] = ()
) -> LoadReport:
    """Set the parameters of `model` from `weights`; each is cast to the dtype it has in the model.

    All names and shapes are checked before the first parameter changes.

    Args:
        model: a cell, or name -> Parameter.
        weights: from `open_weights`, or any source under our names.
        may_be_missing: regular expressions (`re.search`) of parameters that keep their value if the file lacks them,
            such as LoRA factors or a new classification head.

    Raises:
        UserError: lists the parameters the file lacks, the names it has left over and those of another shape, with both
            shapes; or names a tensor whose values overflow in the model's dtype.
    """
    from mindspore import Tensor

    source = weights.source if isinstance(weights, Weights) else weights
    parameters = dict(model) if isinstance(model, Mapping) else model.parameters_dict()
    allowed = [re.compile(pattern) for pattern in may_be_missing]
    report = LoadReport(source.path, skipped=dict(getattr(source, "skipped", {})))
    report.not_in_file = [
        name for name in parameters if name not in source.entries and any(pattern.search(name) for pattern in allowed)
    ]
    _check_match(parameters, source, report)
    for name in source.entries:
        parameter = parameters[name]
        held, wanted = source.entries[name].dtype, dtype_name(parameter)
        array = source.read(name)
        if wanted == "bfloat16":  # NumPy has no such type
            value = Tensor.from_numpy(cast(array, "float32", f"{source.path}: {name}")).astype(parameter.dtype)
        else:
            value = Tensor.from_numpy(aligned(cast(array, wanted, f"{source.path}: {name}")))
        parameter.set_data(value)
        report.loaded.append(name)
        if held != wanted:
            report.casts[name] = (held, wanted)
    return report


def _check_match(parameters: "Mapping[str, Parameter]", source: TensorSource, report: LoadReport) -> None:
    problems = [
        f"missing in the file: {name} {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name not in source.entries and name not in report.not_in_file
    ]
    left_over = [name for name in source.entries if name not in parameters]
    problems += [f"left over in the file: {name} {list(source.entries[name].shape)}" for name in left_over]
    problems += [
        f"wrong shape: {name} is {list(info.shape)} in the file and {list(parameters[name].shape)} in the model"
        for name, info in source.entries.items()
        if name in parameters and info.shape != tuple(parameters[name].shape)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{source.path}: does not fit the model, and nothing was loaded:\n  {lines}{hint(left_over)}")


def dtype_name(tensor: "Tensor") -> str:
    """NumPy's name of a MindSpore tensor's dtype: "float32"."""
    return str(tensor.dtype).lower()


def save_checkpoint(
    path: str | Path, parameters: "nn.Cell | Mapping[str, Parameter | Tensor | np.ndarray | int | float | bool | str]"
) -> None:
    """Write a `.ckpt` that mindgpt, MindFormers and `mindspore.load_checkpoint` read; it appears when it is whole.

    Args:
        path: the file; its folder is created.
        parameters: a cell (its parameters under their names), or name -> value. Numbers are stored as MindSpore's
            `append_dict` stores them: int64, float32 or bool scalars.

    Tensors are fetched from the device one at a time. Raises UserError if the file cannot be written.
    """
    values = parameters if isinstance(parameters, Mapping) else parameters.parameters_dict()
    write_checkpoint(path, ((name, _storable(value)) for name, value in values.items()))


def _storable(value: "Parameter | Tensor | np.ndarray | int | float | bool | str") -> np.ndarray | str:
    if isinstance(value, (str, np.ndarray)):
        return value
    if isinstance(value, (bool, int, float)):
        return np.array(value, np.float32 if isinstance(value, float) else None)
    # A parameter made by `initializer` may not have been given its memory yet.
    return (value.init_data() if value.has_init else value).asnumpy()
