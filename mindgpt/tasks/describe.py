"""What a file or folder is: weights, tokenizer, MindRecord, output folder, YAML file. No tensor is read, no MindSpore.

Each function returns what it found as plain values by name, the kind first, or raises a `UserError`.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.formats import FORMATS, open_source
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, PRESETS, GPT2Config, read_config
from mindgpt.checkpoints.gpt2_names import variant_of
from mindgpt.checkpoints.locations import config_beside, find_weights
from mindgpt.checkpoints.run_folder import checkpoints_in, rank_folders, step_of
from mindgpt.checkpoints.strategy_format import read_strategy
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.tensorflow_format import is_tensorflow
from mindgpt.checkpoints.torch_format import is_torch_file
from mindgpt.checkpoints.weights import NAMINGS, Weights, naming_of, open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.section import nearest
from mindgpt.config.shipped import model_files
from mindgpt.data.mindrecord import SHARD_NAME, find_mindrecord_files, read_header
from mindgpt.data.text import TEXT_SUFFIXES
from mindgpt.io.compression import text_suffix
from mindgpt.io.files import check_readable, read_chunks, read_json, read_lines
from mindgpt.pet.names import linears_with_factors
from mindgpt.pet.peft_folder import CONFIG_NAME as PEFT_CONFIG
from mindgpt.pet.peft_folder import is_peft_folder
from mindgpt.tokenizers.loading import KINDS, TOKENIZER_FILES, holds_tokenizer, load_tokenizer, tokenizer_kind
from mindgpt.tokenizers.settings_files import SETTINGS_FILES
from mindgpt.train.run_log import read_log

Facts = dict[str, Any]
_MODES = ("train", "finetune", "eval", "predict")
_TOKENS = "backbone.embedding.word_embedding.embedding_table"
_SCORE = "score.weight"
_STORED_AS = {
    "checkpoint": "MindSpore's, with MindFormers' names",
    "hugging_face": "Hugging Face's",
    "uer": "UER-py's or TencentPretrain's",
    "megatron": "ModelScope's (Megatron)",
    "gpt2_ml": "GPT2_ML's",
}


def describe(named: str) -> Facts:
    """What is at a path, or what the name of a size means.

    Raises:
        UserError: there is nothing of that name, it is damaged, or of no known kind.
    """
    path = Path(named)
    if not path.exists() and not is_tensorflow(path):
        return _size(named)
    with contextlib.redirect_stdout(io.StringIO()):  # notes of what opens a file
        facts = _of_folder(path) if path.is_dir() else _of_file(path)
    return {"path": named, **facts}


def _of_folder(folder: Path) -> Facts:
    tests: tuple[tuple[Callable[[Path], bool], Callable[[Path], Facts]], ...] = (
        (is_peft_folder, _peft),
        (_is_run, _run),
        (_may_hold_weights, _weights),
        (holds_tokenizer, _tokenizer),
        (lambda path: (path / CONFIG_FILE).is_file(), lambda path: _network_file(path / CONFIG_FILE)),
        (lambda path: any(SHARD_NAME.search(file.name) for file in path.iterdir()), _mindrecord),
        (lambda path: any("strategy" in file.name for file in path.glob("*.ckpt")), _strategy),
    )
    for matches, described in tests:
        if matches(folder):
            return described(folder)
    found = sorted(file.name for file in folder.iterdir())
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "nothing"
    raise UserError(f"{folder}: nothing that mindgpt knows is in this folder; it holds {shown}")


def _of_file(file: Path) -> Facts:
    if not is_tensorflow(file):
        check_readable(file)
        if file.stat().st_size == 0:
            raise UserError(f"{file}: is empty (0 bytes)")
    if SHARD_NAME.search(file.name):
        return _mindrecord(file)
    if file.suffix in (".yaml", ".yml"):
        return _yaml(file)
    if file.suffix == ".ckpt" and "strategy" in file.name:
        return _strategy(file)
    if _is_weights_file(file):
        return _weights(file)
    if _is_tokenizer_file(file):
        return _tokenizer(file)
    if file.suffix == ".json" and (content := read_json(file)) and _is_network(content):
        return _network_file(file)
    if text_suffix(file) in (*TEXT_SUFFIXES, ".csv", ".tsv"):
        next(iter(read_chunks(file)), "") if text_suffix(file) != ".parquet" else None
        return {"kind": "text", "bytes": file.stat().st_size, "use": "mindgpt finetune --data, mindgpt prepare"}
    raise UserError(f"{file}: is of no kind that mindgpt knows: weights, tokenizer, MindRecord, YAML or text")


def _is_tokenizer_file(file: Path) -> bool:
    """Whether a file is a vocabulary. Any .txt may be one of WordPiece: it is one that has an [UNK]."""
    if file.name in SETTINGS_FILES or tokenizer_kind(file) is None:
        return False
    if file.suffix == ".json":
        return file.name in TOKENIZER_FILES
    return file.suffix != ".txt" or file.name in TOKENIZER_FILES or any(line == "[UNK]" for line in read_lines(file))


# ---- weights ---------------------------------------------------------------------------------------------------------


def _is_weights_file(file: Path) -> bool:
    by_name = (".ckpt", ".safetensors", ".h5", ".hdf5")
    return file.suffix in by_name or is_tensorflow(file) or is_torch_file(file) or file.name.endswith(".index.json")


def _may_hold_weights(folder: Path) -> bool:
    for name, known in FORMATS.items():
        if name != "folder" and known.matches(folder):
            return True
    files = [file for file in folder.iterdir() if file.is_file()]
    return any(map(_is_weights_file, files)) or bool(rank_folders(folder)) or bool(checkpoints_in(folder))


def _weights(path: Path) -> Facts:
    file = find_weights(path)
    stored = open_source(file)
    naming = naming_of(stored)
    view = NAMINGS[naming].view(stored)
    entries = view.entries
    factors = linears_with_factors(entries)
    facts: Facts = {"kind": "LoRA adapter" if factors and _TOKENS not in entries else "weights"}
    if file != path:
        facts["file"] = str(file)
    facts["stored_as"] = f"{_format_of(file)}, {_STORED_AS.get(naming, naming)}"
    weights, problem = _opened(file)
    config = None if weights is None else weights.config or weights.without_heads
    if facts["kind"] == "weights":
        facts["family"] = _family(naming, config, variant_of(entries))
    facts |= _network(config) if config is not None else {}
    if config is None:
        facts["config"] = problem or "none beside the weights, so the network is not known"
    elif weights is not None and weights.config is None:
        facts["num_heads"] = "not told by the weights, and no config lies with them"
    facts["parameters"] = sum(math.prod(info.shape) for info in entries.values())
    facts["tensors"] = len(entries)
    facts["dtype"] = _dtypes(entries)
    facts["bytes"] = _bytes_of(file)
    if factors:
        facts["lora"] = _lora(config, len(factors))
    if _SCORE in entries:
        facts["classifier"] = _labels(config, entries[_SCORE].shape[0])
    skipped = getattr(view, "skipped", {})
    if skipped:
        facts["also_holds"] = ", ".join(
            f"{count} of {rule}" for rule, count in sorted(Counter(skipped.values()).items())
        )
    facts |= _origin(file)
    folder = file if file.is_dir() else file.parent
    facts["tokenizer"] = tokenizer_kind(folder) or "none beside the weights"
    return facts


def _opened(file: Path) -> tuple[Weights | None, str | None]:
    """The weights with their config; or what is wrong with the config, where the weights themselves are whole."""
    try:
        return open_weights(file), None
    except UserError as error:
        if CONFIG_FILE not in str(error):
            raise
        return None, str(error)


def _format_of(file: Path) -> str:
    name = next(name for name, known in FORMATS.items() if known.matches(file))
    suffixes = {"mindspore": ".ckpt", "torch": "PyTorch", "index": "several files by an index", "folder": "a folder"}
    return suffixes.get(name, name)


def _family(naming: str, config: GPT2Config | None, variant: str | None) -> str:
    """The model family, as far as names and config tell."""
    if "gpt2_ml" in (naming, variant, config and config.variant):
        return "GPT2_ML (Chinese)"
    if naming == "megatron":
        return "GPT-3 of ModelScope (Chinese)"
    converted = config is not None and (config.layer_norm_conversion is not None or config.layer_norm == "uer")
    if naming == "uer" or converted or (config is not None and config.vocab_size == 21128):
        return "GPT-2 of UER-py (Chinese)"
    return "GPT-2"


def _network(config: GPT2Section) -> Facts:
    names = PRESETS if config.vocab_size >= 50257 and config.variant == "gpt2" else {}
    preset = next((name for name, sizes in names.items() if _same(config, sizes) and name != "gpt2"), None)
    layers = f"{config.num_layers} layer{'s' if config.num_layers > 1 else ''}"
    sizes = f"{layers}, hidden {config.hidden_size}, {config.num_heads} heads"
    return {
        "size": f"{preset}: {sizes}" if preset else sizes,
        "positions": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }


def _same(config: GPT2Section, sizes: Mapping[str, int]) -> bool:
    return all(getattr(config, key) == value for key, value in sizes.items() if key != "seq_length")


def _dtypes(entries: Mapping[str, TensorInfo]) -> str:
    counts = Counter(info.dtype for info in entries.values())
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{dtype} ({count})" for dtype, count in counts.most_common())


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}.*"))


def _lora(config: GPT2Config | None, layers: int) -> str:
    pet = None if config is None else config.pet_config
    settings = f", rank {pet.lora_rank}, alpha {pet.lora_alpha:g}" if pet else ""
    return f"factors on {layers} linear layers{settings}"


def _labels(config: GPT2Config | None, count: int) -> str:
    return f"{count} labels" if config is None or not config.label_names else ", ".join(config.label_names)


def _origin(file: Path) -> Facts:
    """Where weights came from, as far as files beside them tell."""
    found: Facts = {}
    if step := step_of(file):
        found["step"] = f"epoch {step.epoch}, step {step.step} of it"
        for above in file.resolve().parents[1:3]:
            if run := _modes_of(above):
                found["run"] = f"{' and '.join(run)} in {above}"
                break
    if (config := config_beside(file)) is not None:
        content = read_json(config)
        if isinstance(content, dict):
            if name := content.get("_name_or_path"):
                found["name"] = name
            if version := content.get("transformers_version"):
                found["written_by"] = f"transformers {version}"
            elif "mindgpt" in content:
                found["written_by"] = "mindgpt"
            conversion = (content.get("mindgpt") or {}).get("layer_norm_conversion")
            if conversion:
                found["converted"] = f"from UER-py, layer norms by {conversion!r}"
    return found


def tensors_of(named: str) -> list[Facts]:
    """Name, shape and dtype of every tensor, as it is stored.

    Raises:
        UserError: these are no weights, or they are damaged.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        source = open_source(find_weights(Path(named)))
    return [{"name": name, "shape": list(info.shape), "dtype": info.dtype} for name, info in source.entries.items()]


def _peft(folder: Path) -> Facts:
    settings = read_json(folder / PEFT_CONFIG)
    if not isinstance(settings, dict):
        raise UserError(f"{folder / PEFT_CONFIG}: must hold a JSON object")
    source = open_source(next(file for file in folder.glob("adapter_model.*") if file.is_file()))
    return {
        "kind": "LoRA adapter",
        "stored_as": "a folder of PEFT",
        "base": settings.get("base_model_name_or_path"),
        "lora": f"rank {settings.get('r')}, alpha {settings.get('lora_alpha')}, on {settings.get('target_modules')}",
        "parameters": sum(math.prod(info.shape) for info in source.entries.values()),
        "dtype": _dtypes(source.entries),
    }


def _strategy(path: Path) -> Facts:
    strategy = read_strategy(path)
    return {"kind": "strategy of a sharded model", "ranks": strategy.ranks, "parameters": len(strategy.names)}


# ---- runs ------------------------------------------------------------------------------------------------------------


def _modes_of(folder: Path) -> list[str]:
    return [mode for mode in _MODES if (folder / f"{mode}_config.yaml").is_file()]


def _is_run(folder: Path) -> bool:
    return bool(_modes_of(folder)) or (folder / "log" / "train.jsonl").is_file()


def _run(folder: Path) -> Facts:
    facts: Facts = {"kind": "output folder of a run", "modes": ", ".join(_modes_of(folder)) or "not known"}
    for mode in _modes_of(folder):
        file = folder / f"{mode}_config.yaml"
        config, _ = load_config(file)
        if command := _command_in(file):
            facts[f"{mode}_command"] = command
        if config.load_checkpoint:
            facts[f"{mode}_from"] = config.load_checkpoint
        facts |= {"model": config.trainer.model_name, **_network(config.model.config)}
    log = folder / "log" / "train.jsonl"
    if log.is_file() and (records := read_log(log)):
        last = records[-1]
        facts |= {"last_step": last["step"], "last_loss": last["loss"]}
    evaluations = folder / "log" / "eval.jsonl"
    if evaluations.is_file() and (records := read_log(evaluations)):
        facts["last_evaluation"] = records[-1]
    if (result := folder / "eval_result.json").is_file():
        facts["evaluation"] = read_json(result)
    checkpoints = {rank: checkpoints_in(files) for rank, files in rank_folders(folder / "checkpoint").items()}
    if saved := checkpoints.get(0):
        facts["checkpoints"] = [f"{step.epoch}_{step.step}" for file in saved if (step := step_of(file))]
        facts["newest"] = str(saved[-1])
        facts["dtype"] = (
            _dtypes(NAMINGS["checkpoint"].view(open_source(saved[-1])).entries) if len(checkpoints) == 1 else ""
        )
        facts["ranks"] = len(checkpoints)
    if best := [file for files in rank_folders(folder / "checkpoint_best").values() for file in checkpoints_in(files)]:
        facts["best"] = str(best[-1])
    return {key: value for key, value in facts.items() if value not in ("", None)}


def _command_in(file: Path) -> str | None:
    """The command that a run has written above its configuration."""
    first = next(iter(read_chunks(file)), "").split("\n", 1)[0]
    return first.removeprefix("# ") if first.startswith("# ") else None


# ---- the rest --------------------------------------------------------------------------------------------------------


def _tokenizer(path: Path) -> Facts:
    tokenizer = load_tokenizer(path)
    kind = KINDS[str(tokenizer_kind(path))]
    files = [name for name in kind.files if (path / name).is_file()] if path.is_dir() else [path.name]
    return {
        "kind": "tokenizer",
        "tokenizer": tokenizer_kind(path),
        "tokens": len(tokenizer),
        "special_tokens": dict(tokenizer.special_tokens_map),
        "vocab_sha256": tokenizer.vocab_hash(),
        "files": files,
    }


def _mindrecord(path: Path) -> Facts:
    files = find_mindrecord_files(path)
    headers = [read_header(file) for file in files]
    metadata = {key: value for key, value in headers[0].metadata.items() if key != "set"}
    return {
        "kind": "MindRecord",
        "files": len(files),
        "rows": sum(header.num_rows for header in headers),
        "columns": ", ".join(headers[0].columns),
        **({"made_by": "mindgpt"} if metadata else {"made_by": "another program"}),
        **metadata,
        "bytes": sum(Path(file).stat().st_size for file in files),
    }


def _yaml(file: Path) -> Facts:
    config, ignored = load_config(file)
    network = GPT2Config.from_section(config.model.config)
    facts: Facts = {
        "kind": "configuration",
        "run_mode": config.run_mode,
        "model": config.trainer.model_name,
        "architecture": config.model.arch.type,
        "family": _family("megatron" if "gpt3" in config.trainer.model_name else "", network, network.variant),
        **_network(network),
        "parameters": network.num_parameters(),
        "seq_length": network.seq_length,
        "compute_dtype": network.compute_dtype,
        "batch_size": config.runner_config.batch_size,
        "load_checkpoint": config.load_checkpoint or "none",
    }
    if config.trains:
        facts["epochs"] = config.runner_config.epochs
        facts["learning_rate"] = config.lr_schedule.learning_rate if config.lr_schedule else None
    if config.model.config.pet_config is not None:
        facts["lora"] = f"rank {config.model.config.pet_config.lora_rank}"
    if ignored:
        facts["without_effect"] = ", ".join(ignored)
    if command := _command_in(file) if file.name.endswith("_config.yaml") else None:
        facts["command"] = command
    return facts


def _is_network(content: Any) -> bool:
    return isinstance(content, dict) and bool({"n_embd", "hidden_size", "model_type"} & content.keys())


def _network_file(file: Path) -> Facts:
    config, notes = read_config(file)
    facts = {"kind": "config of a network, without weights", "family": _family("", config, config.variant)}
    return facts | _network(config) | {"parameters": config.num_parameters()} | ({"notes": notes} if notes else {})


def _size(named: str) -> Facts:
    files = model_files()
    if named not in files:
        names = [name for name in files if "_seq" not in name]
        hint = "" if "/" in named or Path(named).suffix else f", nor is it the name of a size; {nearest(named, names)}"
        raise UserError(f"{named}: there is no such file or folder (looked from {Path.cwd()}){hint}")
    return {"path": named, **_yaml(files[named]), "kind": "size of a model", "file": str(files[named])}
