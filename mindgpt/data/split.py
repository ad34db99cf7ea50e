"""A text in two parts: one to train on, one to judge by."""

from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.data.files import PathLike, atomic_write, read_text


def help_topics() -> str:
    """The text of Python's own help topics, which lies on every machine that has Python: half a megabyte of English."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def split_text(text: str, fraction: float) -> tuple[str, str]:
    """The text up to a line end, and the rest: about `fraction` of it, from the end.

    Raises:
        UserError: `fraction` is not between 0 and 1, or one part would be empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the fraction to judge by must lie between 0 and 1, not {fraction}")
    place = text.find("\n", int(len(text) * (1 - fraction))) + 1
    first, rest = text[:place], text[place:]
    if not first.strip() or not rest.strip():
        raise UserError(f"a text of {len(text)} characters cannot be split: it is too short, or has no line ends.")
    return first, rest


def split_file(source: PathLike | None, folder: PathLike, fraction: float) -> tuple[Path, Path]:
    """Write `train.txt` and `valid.txt` into `folder`, from a UTF-8 file, or from `help_topics` if `source` is None.

    Raises:
        UserError: the file cannot be read or is not UTF-8, or see `split_text`.
    """
    parts = split_text(help_topics() if source is None else read_text(source), fraction)
    files = Path(folder) / "train.txt", Path(folder) / "valid.txt"
    for file, part in zip(files, parts, strict=True):
        with atomic_write(file, "w") as output:
            output.write(part)
    return files
