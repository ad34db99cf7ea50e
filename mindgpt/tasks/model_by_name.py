"""The model that `--model` names: weights of any kind, a folder with a config alone, or the name of a size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config, read_config
from mindgpt.checkpoints.locations import find_weights, preset_of
from mindgpt.checkpoints.run_folder import checkpoints_in, rank_folders
from mindgpt.checkpoints.weights import Weights, open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.config.shipped import file_of_model
from mindgpt.config.yaml_file import read_yaml
from mindgpt.io.files import DOWNLOADS
from mindgpt.pet.names import linears_with_factors
from mindgpt.tokenizers.loading import holds_tokenizer, load_tokenizer, named_files

CLASSIFIER = "score.weight"


@dataclass(frozen=True)
class NamedModel:
    """A model that a command names.

    Attributes:
        name: a short name, for the log.
        config: its network.
        load_checkpoint: its weights, as the YAML key of that name takes them; None: there are none.
        has_lora: whether these hold LoRA factors.
        classifies: whether these have a classification head.
        near: the folders that its tokenizer may lie in.
    """

    name: str
    config: GPT2Config
    load_checkpoint: Path | None = None
    has_lora: bool = False
    classifies: bool = False
    near: tuple[Path, ...] = ()


def named_model(named: str) -> NamedModel:
    """The model that is meant: a path, the name of a model that MindFormers downloaded, or of a size (`gpt2_small`).

    Raises:
        UserError: it is none of these, or there is no config by its weights.
    """
    path = Path(named)
    if named.endswith("/") and not path.is_dir():
        raise UserError(f"--model: there is no file or folder {named} (looked from {Path.cwd()})")
    if path.is_dir() and (path / "checkpoint").is_dir() and not (path / CONFIG_FILE).exists():
        path = path / "checkpoint"  # of a run's output folder
    if not path.exists() and not (DOWNLOADS / f"{named}.ckpt").exists() and _is_name(named):
        config, _ = load_config(file_of_model(named), {"use_parallel": False})
        return NamedModel(named, GPT2Config.from_section(config.model.config), near=(DOWNLOADS,))
    if _has_config_alone(path):
        return NamedModel(path.resolve().name, read_config(path)[0], near=(path,))
    try:
        file = find_weights(path)
    except UserError as error:
        raise UserError(f"--model: {error}") from None
    weights = open_weights(file)
    return NamedModel(
        _short_name(path),
        _config_of(weights, named),
        file,
        bool(linears_with_factors(weights.source.entries)),
        CLASSIFIER in weights.source.entries,
        (file if file.is_dir() else file.parent, *([path] if path.is_dir() else [])),
    )


def _is_name(named: str) -> bool:
    return not any(sign in named for sign in "/\\") and Path(named).suffix not in (
        ".ckpt",
        ".bin",
        ".safetensors",
        ".pt",
    )


def _short_name(path: Path) -> str:
    resolved = path.resolve()
    return resolved.parent.name if resolved.name == "checkpoint" else resolved.name


def _has_config_alone(path: Path) -> bool:
    """Whether a folder has a config.json and no weights."""
    if not (path / CONFIG_FILE).is_file():
        return False
    others = [file for file in path.iterdir() if file.suffix in (".ckpt", ".bin", ".safetensors", ".pt", ".index")]
    return not others and not (path / "model").is_dir() and not rank_folders(path) and not checkpoints_in(path)


def _config_of(weights: Weights, named: str) -> GPT2Config:
    config = weights.config or preset_of(named)
    if config is not None:
        return config
    if weights.without_heads is not None:
        raise UserError(
            f"--model {named}: weights do not tell the number of heads, and no config lies with them. Convert them "
            "with --num_heads (mindgpt convert), and name the result."
        )
    raise UserError(
        f"--model {named}: there is no config.json beside the weights, so the network is unknown. Put one there, or "
        "name a YAML file with --config."
    )


def tokenizer_near(model: NamedModel) -> Path:
    """The folder of a model's tokenizer: beside its weights, or the one that its training was given.

    Raises:
        UserError: there is none.
    """
    for folder in model.near:
        if holds_tokenizer(folder):
            return folder
    for folder in model.near:
        for above in (folder, *list(folder.resolve().parents)[:3]):
            if (found := _tokenizer_of_run(above)) is not None:
                return found
    if holds_tokenizer(DOWNLOADS):
        return DOWNLOADS
    looked = " and ".join(dict.fromkeys(map(str, (*model.near, DOWNLOADS))))
    raise UserError(
        f"no tokenizer: name its folder with --tokenizer DIR. Looked for {named_files()} in {looked}. `mindgpt "
        "tokenizer` learns one from text."
    )


def _tokenizer_of_run(folder: Path) -> Path | None:
    """The tokenizer that the configuration of a training names, which the run keeps in its output folder."""
    for name in ("finetune_config.yaml", "train_config.yaml"):
        values: Any = None
        if (folder / name).is_file():
            values = read_yaml(folder / name).value
        for key in ("processor", "tokenizer", "path"):
            values = values.get(key) if isinstance(values, dict) else None
        if values and holds_tokenizer(Path(values)):
            return Path(values)
    return None


def check_vocabulary(tokenizer: Path, model: NamedModel) -> int:
    """The number of tokens of a tokenizer. With weights, raises UserError if they have fewer rows."""
    tokens = len(load_tokenizer(tokenizer))
    if model.load_checkpoint is not None and tokens > model.config.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer} has {tokens} tokens, and {model.load_checkpoint} has {model.config.vocab_size}"
            ": name the model's own with --tokenizer DIR"
        )
    return tokens
