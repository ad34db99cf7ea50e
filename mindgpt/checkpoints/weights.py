"""Weights in and out of a model: opening by path, strict loading, atomic saving.

    weights = open_weights("gpt2-hf/")            # or our folder, x.ckpt, x.safetensors, x.bin, a run's sharded folder
    model = GPT2LMHeadModel(weights.config)
    report = load_weights(model, weights)         # every name used, skipped by a named rule, or an error
    save_checkpoint("model.ckpt", model)          # whole or not at all

MindSpore is imported only where its tensors are made, so that conversion starts without it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.found_config import FoundConfig
from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_ml_config import config_of_gpt2_ml, read_config_for
from mindgpt.checkpoints.gpt2_ml_views import GPT2MLView, is_gpt2_ml
from mindgpt.checkpoints.gpt2_names import are_mindformers, hint, mindformers_prefix, variant_of
from mindgpt.checkpoints.gpt2_views import MindFormersView, agree_on_head
from mindgpt.checkpoints.gpt3_config import config_of_gpt3
from mindgpt.checkpoints.locations import config_beside
from mindgpt.checkpoints.megatron_names import are_megatron
from mindgpt.checkpoints.megatron_views import MegatronView
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.other_models import other_model, refuse_other_model
from mindgpt.checkpoints.run_folder import rank_folders
from mindgpt.checkpoints.sharded_checkpoint import ShardedCheckpoint
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.tensor_source import Box, TensorInfo, TensorSource, cast, read_box
from mindgpt.checkpoints.uer_config import config_of_uer
from mindgpt.checkpoints.uer_names import are_uer
from mindgpt.checkpoints.uer_views import UERView
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import VARIANTS
from mindgpt.runtime.alignment import aligned

if TYPE_CHECKING:
    from mindspore import Parameter, Tensor, nn


class CheckpointWeights:
    """The weights of a source that is named as ours are, as a `TensorSource`: without what `SKIP_RULES` name.

    Attributes:
        path, entries: as in `TensorSource`.
        skipped: name -> the rule it was skipped by.
        notes: sentences for the person.

    Raises:
        UserError: the source holds text that no rule skips.
    """

    def __init__(self, source: TensorSource):
        self._source = source
        self.path = source.path
        texts = getattr(source, "texts", {})
        self.skipped = {name: rule for name in (*source.entries, *texts) if (rule := skip_rule(name))}
        unknown = [name for name in texts if name not in self.skipped]
        if unknown:
            raise UserError(
                f"{self.path}: these entries are text, not weights, and no rule skips them: {', '.join(unknown)}."
            )
        weights = [name for name in source.entries if name not in self.skipped]
        prefix = mindformers_prefix(weights) or ""
        self.notes = (*getattr(source, "notes", ()),)
        if prefix:
            self.notes += (f"{self.path}: {prefix} before the names is left out",)
        self._stored = {name.removeprefix(prefix): name for name in weights}
        self.entries = {name: source.entries[stored] for name, stored in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._source.read(self._stored[name])

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """See `tensor_source.read_box`."""
        return read_box(self._source, self._stored[name], box)


class Naming(NamedTuple):
    """How weights that are named in some way are recognised, and the view of them under our names.

    Attributes:
        config: the config of that view, for weights whose config is not in our form or Hugging Face's.
    """

    matches: Callable[[TensorSource], bool]
    view: Callable[[TensorSource], TensorSource]
    config: Callable[..., FoundConfig] | None = None


def _is_ours(source: TensorSource) -> bool:
    return isinstance(source, CheckpointFile | ShardedCheckpoint) or are_mindformers(source.entries)


NAMINGS = {  # the first that matches is used; what none knows is reported as no GPT-2 by the last
    "checkpoint": Naming(_is_ours, CheckpointWeights),
    "gpt2_ml": Naming(is_gpt2_ml, GPT2MLView, config_of_gpt2_ml),
    "other model": Naming(lambda source: other_model(source.entries) is not None, refuse_other_model),
    "uer": Naming(lambda source: are_uer(source.entries), UERView, config_of_uer),
    "megatron": Naming(lambda source: are_megatron(source.entries), MegatronView, config_of_gpt3),
    "hugging_face": Naming(lambda source: True, MindFormersView),
}


def naming_of(source: TensorSource) -> str:
    """The key of `NAMINGS` by which the tensors of a source are named."""
    return next(kind for kind, naming in NAMINGS.items() if naming.matches(source))


@dataclass(frozen=True)
class Weights:
    """Opened weights under our names, not yet read.

    Attributes:
        kind: how they are named where they are stored: a key of `NAMINGS`.
        config: the config that lies with them, or None.
        source: `.path`, `.entries` (name -> shape, dtype), `.skipped` (name -> rule), `.read(name)`.
        notes: sentences for the user about what was skipped or unexpected.
        assumed: settings of the config that no file says; others may be right.
        without_heads: the config, if only the number of heads is unknown; `config` is None then.
    """

    kind: str
    config: GPT2Config | None
    source: TensorSource
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    without_heads: GPT2Config | None = None


def open_weights(path: str | Path, strategy: str | Path | None = None) -> Weights:
    """Open a Hugging Face folder or file, our folder (`config.json` and `model.ckpt`), a `.ckpt` beside its config,
    safetensors under MindFormers' names, the sharded folder `checkpoint` of a parallel run, a `.bin` of UER-py or
    TencentPretrain, a folder of DeepSpeed's or of ModelScope's GPT-3, or a GPT2_ML: its TensorFlow checkpoint or its
    PyTorch port's folder.

    The config of `x.ckpt` is `x.config.json` or else `config.json` in its folder; that of a Hugging Face file is
    `config.json` in its folder; that of shards lies beside rank 0's.

    Args:
        path: of the weights.
        strategy: strategy file or folder of shards; None: the folder `strategy` beside `path`.

    Raises:
        UserError: there are no weights, a folder holds two kinds of them, they are broken, or not a GPT-2's.
    """
    path = Path(path)
    if strategy is not None and rank_folders(path):
        stored: TensorSource = ShardedCheckpoint(path, Path(strategy))
    else:
        stored = open_source(path)
    kind = naming_of(stored)
    source = NAMINGS[kind].view(stored)
    config, notes = None, [*getattr(source, "notes", ())]
    if config_of := NAMINGS[kind].config:
        found = config_of(source)
        return Weights(kind, found.config, source, (*notes, *found.notes), found.assumed, found.without_heads)
    if file := config_beside(source.path):
        config, config_notes = read_config_for(source, file)
        notes += config_notes
    agreed = agree_on_head(config, source)
    return Weights(kind, agreed.config, agreed.source, (*notes, *agreed.notes))


@dataclass
class LoadReport:
    """What `load_weights` does with each name."""

    path: Path
    loaded: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # name in the file -> rule
    not_in_file: list[str] = field(default_factory=list)  # parameters that were allowed to be missing
    casts: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (dtype in the file, dtype in the model)

    def __str__(self) -> str:
        parts = [f"{self.path}: {len(self.loaded)} parameters loaded"]
        parts += [f"{count} skipped ({rule})" for rule, count in sorted(Counter(self.skipped.values()).items())]
        casts = sorted(Counter(self.casts.values()).items())
        parts += [f"{count} cast from {old} to {new}" for (old, new), count in casts]
        if self.not_in_file:
            parts.append(f"not in the file: {', '.join(self.not_in_file)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class CheckedWeights:
    """Weights that fit a model, and are not read yet: from `check_weights`.

    Attributes:
        source: of the weights.
        names: those to load.
        report: what loading does with each name in the file.
    """

    source: TensorSource
    names: tuple[str, ...]
    report: LoadReport

    @property
    def nbytes(self) -> int:
        """Of all of them, as they are stored."""
        return sum(self.source.entries[name].nbytes for name in self.names)

    def load(
        self,
        parameters: "Mapping[str, Parameter]",
        boxes: "Callable[[Parameter, tuple[int, ...]], Box | None] | None" = None,
        masters: "Mapping[str, Parameter] | None" = None,
        unrounded: "dict[str, Tensor] | None" = None,
    ) -> int:
        """Set parameters to their weights, cast to their dtypes, one at a time.

        Args:
            parameters: name -> Parameter; weights whose names are not among them are not read.
            boxes: of a parameter that is a shard, and the shape of the whole: where the shard lies. None: all are
                whole.
            masters: name of a weight in half precision -> its float32 master copy, which is set, too.
            unrounded: receives the float32 values of weights that are trained in half precision, from which masters
                that are made later start.

        Returns:
            The bytes of what was set, as it is in the file.

        Raises:
            UserError: the values of a tensor overflow in the model's dtype.
        """
        loaded = 0
        for name in self.names:
            if name not in parameters:
                continue
            parameter, info = parameters[name], self.source.entries[name]
            box = boxes(parameter, info.shape) if boxes else None
            array = read_box(self.source, name, box)
            assert array.shape == tuple(parameter.shape), f"{name}: {array.shape}, {parameter.shape} from {box}"
            parameter.set_data(_tensor(array, parameter, f"{self.source.path}: {name}"), slice_shape=boxes is not None)
            in_float32 = info.dtype == "float32" and dtype_name(parameter) != "float32" and parameter.requires_grad
            if masters and name in masters:
                masters[name].set_data(_tensor(array, masters[name], name), slice_shape=boxes is not None)
            elif unrounded is not None and in_float32:
                unrounded[name] = _tensor(array, None, name)
            loaded += TensorInfo(array.shape, info.dtype).nbytes
        return loaded


def check_weights(
    model: "nn.Cell | Mapping[str, Parameter]",
    weights: Weights | TensorSource,
    may_be_missing: Iterable[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> CheckedWeights:
    """Check that `weights` have the names and shapes of `model`, which needs no values and is not changed.

    Args:
        model: a cell, or name -> Parameter.
        weights: from `open_weights`, or any source under our names.
        may_be_missing: regular expressions (`re.search`) of parameters that keep their value if the file lacks them,
            such as LoRA factors or a new classification head.
        left_out: names in the file that the model has no use for, such as a language model's head, and why each is
            skipped.

    Raises:
        UserError: the weights are of another variant; or names or shapes do not fit, and all are listed, with both
            shapes.
    """
    source = weights.source if isinstance(weights, Weights) else weights
    parameters = dict(model) if isinstance(model, Mapping) else model.parameters_dict()
    if built := variant_of(parameters):
        check_variant(built, variant_of(source.entries), source.path)
    allowed = [re.compile(pattern) for pattern in may_be_missing]
    left_out = {
        name: why for name, why in (left_out or {}).items() if name in source.entries and name not in parameters
    }
    report = LoadReport(source.path, skipped=dict(getattr(source, "skipped", {})) | left_out)
    report.not_in_file = [
        name for name in parameters if name not in source.entries and any(pattern.search(name) for pattern in allowed)
    ]
    entries = {name: entry for name, entry in source.entries.items() if name not in left_out}
    _check_match(parameters, entries, report)
    report.loaded = list(entries)
    dtypes = {name: (entry.dtype, dtype_name(parameters[name])) for name, entry in entries.items()}
    report.casts = {name: (held, wanted) for name, (held, wanted) in dtypes.items() if held != wanted}
    return CheckedWeights(source, tuple(entries), report)


def load_weights(
    model: "nn.Cell | Mapping[str, Parameter]",
    weights: Weights | TensorSource,
    may_be_missing: Iterable[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> LoadReport:
    """Set the parameters of `model` from `weights`, cast to the dtypes of the model.

    All names and shapes are checked before the first parameter changes: `check_weights`, which has the same arguments
    and errors.

    Raises:
        UserError: as `check_weights` and `CheckedWeights.load`.
    """
    checked = check_weights(model, weights, may_be_missing, left_out)
    checked.load(model if isinstance(model, Mapping) else model.parameters_dict())
    return checked.report


def _tensor(array: np.ndarray, parameter: "Parameter | None", name: str) -> "Tensor":
    """An array in the dtype of a parameter, or float32; its memory, where possible."""
    from mindspore import Tensor

    wanted = "float32" if parameter is None else dtype_name(parameter)
    if parameter is not None and wanted == "bfloat16":  # NumPy has no such type
        return Tensor(cast(array, "float32", name), parameter.dtype)
    return Tensor.from_numpy(aligned(cast(array, wanted, name)))


def check_variant(built: str, held: str | None, path: Path) -> None:
    """Refuse weights of another variant of GPT-2 than the network to be loaded.

    Args:
        built: the network's, as `GPT2Config.variant`.
        held: that of the weights; None: not known.
        path: of the weights.

    Raises:
        UserError: names both.
    """
    if held not in (None, built):
        raise UserError(
            f"{path}: holds the weights of {VARIANTS[held].model} (variant {held}), and the model is "
            f"{VARIANTS[built].model} (variant {built}), another network. Set variant to {held} (in a YAML "
            "model.model_config.variant), or name other weights."
        )


def _check_match(parameters: "Mapping[str, Parameter]", entries: Mapping[str, TensorInfo], report: LoadReport) -> None:
    problems = [
        f"missing in the file: {name} {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name not in entries and name not in report.not_in_file
    ]
    left_over = [name for name in entries if name not in parameters]
    problems += [f"left over in the file: {name} {list(entries[name].shape)}" for name in left_over]
    problems += [
        f"wrong shape: {name} is {list(info.shape)} in the file and {list(parameters[name].shape)} in the model"
        for name, info in entries.items()
        if name in parameters and info.shape != tuple(parameters[name].shape)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise UserError(f"{report.path}: does not fit the model, and nothing was loaded:\n  {lines}{hint(left_over)}")


def dtype_name(tensor: "Tensor") -> str:
    """NumPy's name of a MindSpore tensor's dtype: "float32"."""
    return str(tensor.dtype).lower()


def save_checkpoint(
    path: str | Path, parameters: "nn.Cell | Mapping[str, Parameter | Tensor | np.ndarray | int | float | bool | str]"
) -> None:
    """Write a `.ckpt`, whole or not at all, that mindgpt, MindFormers and `mindspore.load_checkpoint` read.

    Tensors are fetched from the device one at a time.

    Args:
        path: the file; its folder is created.
        parameters: a cell, or name -> value. Numbers are stored as MindSpore's `append_dict` stores them: int64,
            float32 or bool scalars.

    Raises:
        UserError: the file cannot be written.
    """
    values = parameters if isinstance(parameters, Mapping) else parameters.parameters_dict()
    write_checkpoint(path, ((name, storable(value)) for name, value in values.items()))


def storable(value: "Parameter | Tensor | np.ndarray | int | float | bool | str") -> np.ndarray | str:
    """The value of a checkpoint's entry as its file holds it; of a parameter perhaps not a copy."""
    if isinstance(value, (str, np.ndarray)):
        return value
    if isinstance(value, (bool, int, float)):
        return np.array(value, np.float32 if isinstance(value, float) else None)
    # A parameter made by `initializer` may not have its memory yet.
    return (value.init_data() if value.has_init else value).asnumpy()
