"""`base_config`: MindFormers 0.3's list of YAML files that a file adds to and changes.

As there: of the listed files a later one's section replaces an earlier one's, and the file itself goes into the result
key by key, so that it only needs what differs. Names are relative to the file that lists them.
"""

from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.section import dotted, shown
from mindgpt.config.yaml_file import Location, YamlFile, read_yaml

_KEY = "base_config"


def read_with_bases(path: str | Path, above: tuple[Path, ...] = ()) -> tuple[YamlFile, list[tuple[int, str]]]:
    """Read a file and, if it has a `base_config`, what it is based on.

    Args:
        path: of the file.
        above: the files, resolved, on whose behalf this one is read.

    Returns:
        The file, and problems as (line to sort by, text).

    Raises:
        UserError: a file cannot be read, as by `read_yaml`, or is based on itself.
    """
    file = read_yaml(path)
    problems = [(line, f"{file.path}:{line}: {dotted(where)}: {what}") for line, where, what in file.problems]
    names = file.value.pop(_KEY, None)
    if names is None:
        return file, problems
    merged, line = YamlFile(file.path), file.line_of((_KEY,))
    for name in names if isinstance(names, list) else [names]:
        try:
            base, more = _read_base(file.path, name, (*above, file.path.resolve()))
        except UserError as error:
            raise UserError(f"{file.path}:{line}: {_KEY}: {error}") from None
        problems += more
        for key in base.value:
            _replace(merged, base, (key,))
    _put(merged, file, merged.value, file.value, ())
    return merged, problems


def _read_base(path: Path, name: Any, above: tuple[Path, ...]) -> tuple[YamlFile, list[tuple[int, str]]]:
    if not isinstance(name, str) or not name:
        raise UserError(f"must be the name of a YAML file or a list of such, not {shown(name)}")
    base = path.parent / Path(name).expanduser()
    if base.resolve() in above:
        raise UserError(f"{base} is based on this file, or is this file")
    return read_with_bases(base, above)


def _put(merged: YamlFile, file: YamlFile, values: dict[str, Any], new: dict[str, Any], location: Location) -> None:
    """Put `new`, which stands at `location` in `file`, over the `values` there, key by key."""
    for key, value in new.items():
        here = (*location, key)
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merged.lines[here], merged.sources[here] = file.lines[here], file.source_of(here)
            _put(merged, file, values[key], value, here)
        else:
            _replace(merged, file, here)


def _replace(merged: YamlFile, file: YamlFile, here: Location) -> None:
    """Take the value at `here` from `file`, with the lines of everything in it."""
    for old in [location for location in merged.lines if location[: len(here)] == here]:
        del merged.lines[old], merged.sources[old]
    for location, line in file.lines.items():
        if location[: len(here)] == here:
            merged.lines[location], merged.sources[location] = line, file.source_of(location)
    target: Any = merged.value
    value: Any = file.value
    for key in here[:-1]:
        target, value = target[key], value[key]
    target[here[-1]] = value[here[-1]]
