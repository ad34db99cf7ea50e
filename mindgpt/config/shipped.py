"""The YAML files that mindgpt comes with: in a checkout, or where pip has put them."""

import site
import sys
from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.config.section import nearest

_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"
_INSTALLED = Path("share", "mindgpt", "configs")


def configs_folder() -> Path:
    """The folder `configs`. It may be missing: a program that needs a file of it says so when it opens the file."""
    bases = (sys.prefix, site.getuserbase() or sys.prefix)
    folders = (_CHECKOUT, *(Path(base, _INSTALLED) for base in bases))
    return next((folder for folder in folders if folder.is_dir()), _CHECKOUT)


def model_files() -> dict[str, Path]:
    """For each name of a size, such as gpt2_small or gpt3_1.3b, the file that trains it from random weights."""
    found: dict[str, Path] = {}
    for file in sorted(configs_folder().glob("*/pretrain_*.yaml")):
        name = file.stem.removeprefix("pretrain_").removesuffix("_fp16")
        for ending in ("_seq128", "_seq1024"):
            if name.endswith(ending):
                found.setdefault(name, file)
                name = name.removesuffix(ending)
        if name not in found or file.stem.endswith("_seq1024_fp16"):
            found[name] = file
    if "gpt2_small" in found:
        found["gpt2"] = found["gpt2_small"]
    return found


def file_of_model(name: str) -> Path:
    """The file that trains a model of this name from random weights.

    Raises:
        UserError: there is no such name; the nearest is given.
    """
    files = model_files()
    if name not in files:
        known = [each for each in files if "_seq" not in each]
        raise UserError(f"{name}: is neither a file, nor a folder, nor the name of a size; {nearest(name, known)}")
    return files[name]
