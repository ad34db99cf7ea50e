"""A run without a YAML file: its configuration from a model and a text, with defaults for one CPU or card."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindgpt.config.errors import UserError
from mindgpt.data.cached_rows import TRAIN, VALID, CachedRows, TextSource, cached_rows
from mindgpt.data.mindrecord import SHARD_NAME, find_mindrecord_files, read_header
from mindgpt.data.text import likely_size
from mindgpt.runtime.ranks import say
from mindgpt.runtime.targets import choose_target
from mindgpt.tasks.model_by_name import NamedModel, check_vocabulary

_BYTES_PER_TOKEN = 4
_WANTED_ROWS = 64  # a short text gets shorter rows, so that there are that many
_SHORTEST_ROW = 32
_LONGEST_ROW = {"CPU": 512, "Ascend": 1024}
_SMALL = 30e6  # parameters
_TOKENS_PER_BATCH = {"CPU": 4096, "Ascend": 8192}
_MOST_ROWS_PER_BATCH = 32
_VALID_FRACTION, _MOST_VALID_BYTES = 0.1, 1 << 20
_STEPS_FROM_SCRATCH, _MOST_EPOCHS, _EPOCHS_OF_TUNING = 1000, 20, 3
_LEARNING_RATES = (  # of training from random weights, by parameters: table 2.1 of Brown et al. 2020, and above it
    (_SMALL, 1e-3), (2e8, 6e-4), (5e8, 3e-4), (1e9, 2.5e-4), (2e9, 2e-4), (4e9, 1.6e-4), (1e10, 1.2e-4),
    (math.inf, 1e-4),
)  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """What a command says of a run, beside the model. None: it says nothing.

    Attributes:
        data, eval_data: texts, or MindRecord files; `eval_data` ["none"]: no evaluation.
        tokenizer: its folder.
        lora: whether to train LoRA factors alone; `lora_rank` of them.
        seq_length, batch_size: of a row, and rows of a batch.
        field, document_per: how text is read.
    """

    data: Sequence[str] = ()
    eval_data: Sequence[str] = ()
    tokenizer: Path | None = None
    lora: bool = False
    lora_rank: int = 8
    seq_length: int | None = None
    batch_size: int | None = None
    device_target: str | None = None
    field: str = "text"
    document_per: str = "file"


@dataclass(frozen=True)
class Data:
    """MindRecord files of a run, by part, the number of their rows, and the length of a sequence."""

    files: dict[str, Path]
    rows: dict[str, int]
    seq_length: int


def settings_of_run(mode: str, model: NamedModel, wishes: Wishes) -> dict[str, Any]:
    """The content of a YAML file for a run; makes MindRecord rows of its texts.

    Args:
        mode: a run mode.
        model: what is trained, evaluated or run.
        wishes: the rest.

    Raises:
        UserError: text, tokenizer and model do not fit together, or one is missing.
    """
    target = choose_target(wishes.device_target)
    if mode == "finetune" and model.load_checkpoint is None:
        raise UserError(
            f"--model {model.name}: is the size of a model, without weights, and finetune needs trained ones: a "
            "Hugging Face folder, a .ckpt, a run's output folder. `mindgpt train` begins with random ones."
        )
    if mode in ("eval", "predict") and model.load_checkpoint is None:
        raise UserError(f"--model {model.name}: has no weights; name a folder or file that has")
    network = _network(model, target)
    settings: dict[str, Any] = {
        "run_mode": mode,
        "trainer": {"type": _TRAINERS[model.classifies], "model_name": model.name},
        "model": {"arch": {"type": _ARCHITECTURES[model.classifies]}, "model_config": network},
    }
    if model.load_checkpoint is not None:
        settings["load_checkpoint"] = str(model.load_checkpoint.resolve())
    if wishes.tokenizer is not None:
        settings["processor"] = {"tokenizer": {"path": str(wishes.tokenizer.resolve())}}
        tokens = check_vocabulary(wishes.tokenizer, model)
        if model.load_checkpoint is None:
            network["vocab_size"] = tokens
            for name in ("unpadded_vocab_size", "eos_token_id", "bos_token_id", "pad_token_id"):
                network.pop(name, None)  # of another vocabulary
    if model.has_lora or wishes.lora:
        network["pet_config"] = {"pet_type": "lora"}
        if wishes.lora and not model.has_lora:
            network["pet_config"] |= {"lora_rank": wishes.lora_rank, "lora_alpha": 2.0 * wishes.lora_rank}
    if mode == "predict":
        network.setdefault("max_new_tokens", 64)
        return settings
    data = data_of_run(mode, wishes, network["max_position_embeddings"], target)
    network["seq_length"] = data.seq_length
    if mode == "eval":
        settings["eval_dataset"] = {"data_loader": {"dataset_dir": str(data.files[VALID])}}
        settings["runner_config"] = {"batch_size": _batch_size(target, network, data.rows[VALID])}
        settings["metric"] = {"type": "PerplexityMetric"}
        return settings
    return settings | _training(mode, model, wishes, data, target, network)


_TRAINERS = {False: "CausalLanguageModelingTrainer", True: "TextClassificationTrainer"}
_ARCHITECTURES = {False: "GPT2LMHeadModel", True: "GPT2ForSequenceClassification"}


def as_yaml(settings: Mapping[str, Any]) -> str:
    """The settings as a YAML file."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)


def _network(model: NamedModel, target: str) -> dict[str, Any]:
    """The section `model.model_config`: what differs from its defaults."""
    network = model.config.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    for name in ("checkpoint_name_or_path", "pet_config", "batch_size"):
        network.pop(name, None)
    if model.config.ffn_hidden_size == 4 * model.config.hidden_size:
        network.pop("ffn_hidden_size", None)  # so that --set hidden_size changes it, too
    if model.config.embedding_dropout_rate == model.config.hidden_dropout_rate:
        network.pop("embedding_dropout_rate", None)
    if target == "Ascend":
        network |= {"compute_dtype": "float16", "use_flash_attention": True}
    return network


# ---- data ------------------------------------------------------------------------------------------------------------


def is_mindrecord(name: str) -> bool:
    """Whether a word names a MindRecord file, or a folder that holds some."""
    path = Path(name)
    if path.is_dir():
        return any(SHARD_NAME.search(file.name) for file in path.iterdir())
    return bool(SHARD_NAME.search(path.name))


def data_of_run(mode: str, wishes: Wishes, positions: int, target: str) -> Data:
    """The MindRecord files of a training or an evaluation. Those of texts are made, or come from the cache.

    Raises:
        UserError: there is no data, or no tokenizer for a text.
    """
    if not wishes.data:
        raise UserError(f"{mode} needs --data FILE: text, or MindRecord that `mindgpt prepare` has made")
    trains = mode != "eval"
    parts = {TRAIN: wishes.data} if trains else {VALID: wishes.data}
    evaluates = trains and list(wishes.eval_data) != ["none"]
    if evaluates and wishes.eval_data:
        parts[VALID] = wishes.eval_data
    length = wishes.seq_length or _length_of(parts, positions, target)
    files: dict[str, Path] = {}
    rows: dict[str, int] = {}
    for part, names in parts.items():
        if _are_mindrecords(names):
            files[part] = Path(names[0])
            rows[part] = sum(read_header(file).num_rows for file in find_mindrecord_files(files[part]))
            say(f"data: {files[part]}: {rows[part]:,} rows")
            continue
        lengths = {part: length + (part == TRAIN)}
        if evaluates and VALID not in parts:
            lengths[VALID] = length
        made = rows_of_text(names, wishes, lengths)
        files |= made.files
        rows |= made.rows
    return Data(files, rows, length)


def _are_mindrecords(names: Sequence[str]) -> bool:
    found = [is_mindrecord(name) for name in names]
    if any(found) and len(names) > 1:
        raise UserError(f"{names[found.index(True)]}: of MindRecord name one file, or a folder of them")
    return any(found)


def _length_of(parts: Mapping[str, Sequence[str]], positions: int, target: str) -> int:
    """Tokens of a sequence: those that MindRecord files have; else as long as model, device and the text allow."""
    lengths = {}
    for part, names in parts.items():
        if _are_mindrecords(names):
            header = read_header(find_mindrecord_files(names[0])[0])
            if (block := header.metadata.get("block_length")) is not None:
                lengths[part] = int(block) - (part == TRAIN)
    if lengths:
        return lengths.get(TRAIN, min(lengths[part] for part in lengths))
    if TRAIN not in parts:
        return min(positions, 1024)
    size = sum(likely_size(TextSource.of([name]).files) for name in parts[TRAIN] if not is_mindrecord(name))
    fitting = size // _BYTES_PER_TOKEN // _WANTED_ROWS
    power = 1 << max(fitting, 1).bit_length() - 1
    return min(positions, _LONGEST_ROW[target], max(power, _SHORTEST_ROW))


def rows_of_text(names: Sequence[str], wishes: Wishes, lengths: Mapping[str, int]) -> CachedRows:
    """Rows of texts, from the cache or made now; says which.

    Raises:
        UserError: there is no tokenizer, or see `cached_rows`.
    """
    if wishes.tokenizer is None:
        raise UserError("text needs a tokenizer: name its folder with --tokenizer DIR")
    source = TextSource.of(names, field=wishes.field, document_per=wishes.document_per)
    fraction = min(_VALID_FRACTION, _MOST_VALID_BYTES / max(likely_size(source.files), 1))
    made = cached_rows(source, wishes.tokenizer, lengths, fraction)
    what = {TRAIN: "to train on", VALID: "to evaluate on"}
    parts = ", ".join(f"{made.rows[part]:,} rows of {lengths[part]} tokens {what[part]}" for part in lengths)
    how = "made, and kept in" if made.made else "from the cache,"
    say(f"data: {' '.join(map(str, names))}: {parts} ({how} {made.folder})")
    return made


# ---- training --------------------------------------------------------------------------------------------------------


def parameters_of(network: Mapping[str, Any]) -> int:
    """About how many parameters a network has."""
    hidden = network.get("hidden_size", 768)
    return 12 * network.get("num_layers", 12) * hidden**2 + network.get("vocab_size", 50257) * hidden


def _batch_size(target: str, network: Mapping[str, Any], rows: int) -> int:
    tokens = _TOKENS_PER_BATCH[target] * (2 if parameters_of(network) < _SMALL else 1)
    return max(1, min(tokens // network["seq_length"], _MOST_ROWS_PER_BATCH, rows))


def _learning_rate(mode: str, network: Mapping[str, Any], lora: bool, from_weights: bool) -> float:
    size = parameters_of(network)
    if lora:
        return 2e-4 if size < 1e9 else 1e-4
    if from_weights:
        return 5e-5 if size < 1e9 else 2e-5
    return next(rate for limit, rate in _LEARNING_RATES if size < limit)


def _training(
    mode: str, model: NamedModel, wishes: Wishes, data: Data, target: str, network: Mapping[str, Any]
) -> dict[str, Any]:
    rows, evaluates = data.rows[TRAIN], VALID in data.files
    batch = wishes.batch_size or min(_batch_size(target, network, rows), max(1, rows // 4))
    from_weights = model.load_checkpoint is not None
    rate = _learning_rate(mode, network, wishes.lora, from_weights)
    steps = max(1, rows // batch)
    epochs = _EPOCHS_OF_TUNING
    if not from_weights:
        epochs = min(max(1, math.ceil(_STEPS_FROM_SCRATCH / steps)), _MOST_EPOCHS)
    total = epochs * steps
    callbacks: list[dict[str, Any]] = [
        {"type": "MFLossMonitor", "per_print_times": max(1, min(10, total // 20))},
        {
            "type": "CheckpointMonitor",
            "prefix": model.name if model.name.isascii() and model.name.replace("_", "").isalnum() else "gpt2",
            "save_checkpoint_steps": max(1, min(500, total // 3)),
            "keep_checkpoint_max": 2,
        },
    ]
    if wishes.lora:
        callbacks[1]["save_trainable_params"] = True
    settings: dict[str, Any] = {
        "runner_config": {"epochs": epochs, "batch_size": batch},
        "lr_schedule": {"type": "cosine", "learning_rate": rate, "lr_end": rate / 10, "warmup_ratio": 0.03},
        "optimizer": {
            "type": "AdamW",
            "beta1": 0.9,
            "beta2": 0.999 if from_weights else 0.95,
            "weight_decay": 0.01 if from_weights else 0.1,
        },
        "train_dataset": {"data_loader": {"dataset_dir": str(data.files[TRAIN])}},
        "callbacks": callbacks,
        "do_eval": evaluates,
        "metric": {"type": "PerplexityMetric"},
    }
    if evaluates:
        settings["eval_dataset"] = {"data_loader": {"dataset_dir": str(data.files[VALID])}}
        settings["eval_epoch_interval"] = 1
    if target == "Ascend":
        settings["runner_wrapper"] = {"scale_sense": {"type": "DynamicLossScaleUpdateCell", "loss_scale_value": 65536}}
    return settings


def shown_defaults(config: Any) -> Iterable[str]:
    """The settings of a training that people change most, as chosen."""
    yield f"seq_length {config.model.config.seq_length}"
    yield f"batch_size {config.runner_config.batch_size}"
    yield f"epochs {config.runner_config.epochs}"
    if config.lr_schedule is not None:
        yield f"learning_rate {config.lr_schedule.learning_rate:g}"
    pet = config.model.config.pet_config
    if pet is not None:
        yield f"lora_rank {pet.lora_rank}"
