"""Where weights and their config lie: the file in a folder, the newest checkpoint of a run, a name that was typed."""

import re
from pathlib import Path

from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, PRESETS, GPT2Config
from mindgpt.checkpoints.indexed_format import NAME_MAP
from mindgpt.checkpoints.run_folder import checkpoint_files, checkpoints_in, files_of_last_run
from mindgpt.checkpoints.sharded_checkpoint import holds_shards
from mindgpt.checkpoints.tensorflow_format import index_in, index_of, is_prefix_with_step
from mindgpt.checkpoints.torch_format import is_torch_file
from mindgpt.config.errors import UserError
from mindgpt.io.files import DOWNLOADS
from mindgpt.runtime.ranks import say

CHECKPOINT_NAME = "model.ckpt"
SAFETENSORS_NAME = "model.safetensors"
HUGGING_FACE_NAMES = (  # in the order in which transformers looks for its own
    SAFETENSORS_NAME,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    NAME_MAP,
    "tencentpretrain_model.bin.index.json",  # of TencentPretrain's convert_model_into_blocks.py
)
_OF_TRAINER = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)\b|rng_state_")
_HUB_CACHE = ("blobs", "refs", "snapshots")


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder.

    Raises:
        UserError: there is none, there are both Hugging Face's and ours, or the folder is part of a Hugging Face cache.
    """
    found, checkpoint = _hugging_face_weights(folder), folder / CHECKPOINT_NAME
    if found is None and not checkpoint.exists():
        of_tensorflow = index_in(folder)
        of_others = _torch_files(folder) + ([of_tensorflow] if of_tensorflow else [])
        if len(of_others) == 1:
            return of_others[0]
        others = list(dict.fromkeys(file.name for file in (*checkpoint_files(folder), *of_others)))
        hint = f" Found {', '.join(others)}: name the file you mean." if others else ""
        names = ", ".join((*HUGGING_FACE_NAMES, CHECKPOINT_NAME))
        raise UserError(f"{folder}: no weights in this folder. Looked for {names}, *.index of TensorFlow.{hint}")
    if found is not None and checkpoint.exists():
        raise UserError(f"{folder}: holds both {found.name} and {CHECKPOINT_NAME}. Name the file you mean.")
    return found or checkpoint


def _torch_files(folder: Path) -> list[Path]:
    """The files of PyTorch in a folder, without those that a Trainer of Hugging Face leaves beside the weights."""
    files = [file for file in folder.iterdir() if file.is_file() and is_torch_file(file)]
    return sorted(file for file in files if not _OF_TRAINER.match(file.name))


def holds_weights(path: Path) -> bool:
    """Whether a path is a folder with a whole model, of Hugging Face or ours."""
    names = (*HUGGING_FACE_NAMES, CHECKPOINT_NAME)
    return path.is_dir() and any((path / name).exists() for name in names)


def _hugging_face_weights(folder: Path) -> Path | None:
    """The file that transformers would load from a folder, or None."""
    found = next((folder / name for name in HUGGING_FACE_NAMES if (folder / name).exists()), None)
    if found is None and (snapshots := _snapshots_below(folder)) is not None:
        named = f": {' or '.join(snapshots)}" if snapshots else " (it has none)"
        raise UserError(f"{folder}: is a Hugging Face model cache. Name a snapshot in it{named}.")
    return found


def _snapshots_below(folder: Path) -> list[str] | None:
    """The snapshots in a cache of the Hugging Face hub, or in a part of one; None if the folder is neither."""
    if all((folder / name).is_dir() for name in _HUB_CACHE):
        models = [folder]
    elif folder.name == "snapshots" and folder.parent.name.startswith("models--"):
        models = [folder.parent]
    else:
        models = [path for place in (folder, folder / "hub") for path in place.glob("models--*") if path.is_dir()]
        if not models:
            return None
    return sorted(str(path) for model in models for path in model.glob("snapshots/*") if path.is_dir())


def find_weights(named: str | Path) -> Path:
    """The file or folder that a path or name means: the path itself, the newest checkpoint of a run's folder, the index
    of a TensorFlow checkpoint for its prefix, or for a bare name what MindFormers downloaded,
    `./checkpoint_download/gpt2/<name>.ckpt`. Nothing is downloaded.

    Raises:
        UserError: there is nothing of that name; the message says what to do.
    """
    path = Path(named)
    if path.is_dir():
        return newest_in(path)
    if path.exists():
        return path
    if (index := index_of(path)) and index != path:
        return index
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
    """Whether a name that does not exist as a path looks like a model's name."""
    name = str(named)
    is_path = "/" in name or name.endswith((".ckpt", ".bin", ".safetensors")) or is_prefix_with_step(name)
    return not is_path and index_of(Path(name)) is None


def preset_of(named: str | Path) -> GPT2Config | None:
    """The config of a bare model name that is a preset, such as "gpt2"; None for a path."""
    return None if Path(named).exists() or str(named) not in PRESETS else GPT2Config.from_pretrained(named)


def newest_in(folder: Path) -> Path:
    """The newest checkpoint in a run's checkpoint folder; its name is printed. Any other folder, or one that holds the
    shards of a parallel run, is returned unchanged."""
    if holds_shards(folder):
        return folder
    rank_0 = folder / "rank_0"
    search_folder = rank_0 if rank_0.is_dir() else folder
    found = checkpoints_in(search_folder)
    if not found:
        return _only_checkpoint_in(search_folder) or folder
    newest, of_last_run = found[-1], files_of_last_run(search_folder)
    others = len(found) - len(of_last_run) if of_last_run else 0
    earlier = f", of the last run; {others} of earlier runs are there too" if others else ""
    say(f"weights: the newest in {search_folder} is {newest.name}{earlier}")
    written_last = max(checkpoint_files(search_folder), key=lambda file: file.stat().st_mtime_ns)
    if not of_last_run and written_last != newest:
        say(f"note: {written_last.name} was written later; if it is of a later run, name it with --load_checkpoint")
    return newest


def _only_checkpoint_in(folder: Path) -> Path | None:
    """The one checkpoint in a folder, whatever its name, if the folder holds no other weights."""
    files = checkpoint_files(folder)
    if len(files) != 1 or (folder / CHECKPOINT_NAME).exists() or _hugging_face_weights(folder):
        return None
    say(f"weights: {files[0]}")
    return files[0]


def own_config(checkpoint: Path) -> Path:
    """The path `x.config.json`: the config of `x.ckpt` if the `config.json` beside it belongs to another model."""
    return checkpoint.with_suffix("." + CONFIG_FILE)


def config_beside(weights: Path) -> Path | None:
    """The config file of weights, or None."""
    own = own_config(weights)
    return own if weights.suffix == ".ckpt" and own.exists() else file_beside(weights, CONFIG_FILE)


def file_beside(weights: Path, name: str) -> Path | None:
    """The file of this name that belongs to weights, or None: it lies beside them. Weights that are a folder, as
    DeepSpeed's, may also have it inside. ModelScope's folder, which has a folder `model`, has it nowhere else, and that
    of a training has it in `output`."""
    folders = [weights, weights / "output"] if weights.is_dir() else []
    folders += [] if (weights / "model").is_dir() else [weights.parent]
    return next((folder / name for folder in folders if (folder / name).exists()), None)
