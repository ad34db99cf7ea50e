"""From a YAML file and overrides to a `RunConfig`, and back to YAML.

The steps: read the file with its line numbers and what it is based on, replace MindFormers' `dataset_config` aliases,
put the overrides in, validate, and report every problem at once as `FILE:LINE: section.key: what is wrong`.
"""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mindgpt.config.base_files import read_with_bases
from mindgpt.config.callback_sections import CALLBACKS, IgnoredCallbackSection
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import Section, dotted, problems_of, shown
from mindgpt.config.yaml_file import Location, YamlFile

_DATASETS = ("train_dataset", "eval_dataset")


def load_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None, origins: Mapping[str, str] | None = None
) -> tuple[RunConfig, list[str]]:
    """Read the YAML file at `path`, apply `overrides`, and validate the result.

    Args:
        path: a configuration of ours or of MindFormers 1.5 GPT-2.
        overrides: values by dotted YAML key, list indexes included (`callbacks.1.prefix`).
        origins: for each override what the user typed (`--epochs`), for messages.

    Returns:
        The configuration, and the dotted names of the file's keys that are accepted without having an effect.

    Raises:
        UserError: the file cannot be read, or anything in it is wrong: all problems at once, one a line.
    """
    file, problems = read_with_bases(path)
    problems += _replace_dataset_aliases(file)
    typed: dict[Location, str] = {}
    for key, value in (overrides or {}).items():
        origin = (origins or {}).get(key, key)
        location = _override_location(key)
        try:
            _override(file.value, location, value)
        except UserError as error:
            problems.append((0, f"command line: {origin}: {error}"))
        typed[location] = origin
    config = None
    try:
        config = RunConfig.model_validate(file.value)
    except ValidationError as error:
        problems += [_located(file, typed, where, what) for where, what in problems_of(error)]
    if config is None or problems:
        lines = dict.fromkeys(text for _, text in sorted(problems))  # a problem in an aliased section is found twice
        raise UserError("\n".join(lines))
    return config, list(_ignored_keys(config, file.value, ()))


def dump_config(config: RunConfig) -> str:
    """YAML text that `load_config` reads back to an equal `RunConfig`: every value written out, no anchors."""
    values = config.model_dump(by_alias=True, exclude_none=True)
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


class _PlainDumper(yaml.SafeDumper):
    """Writes no aliases: whoever edits the file must be able to change each of two equal values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """PyYAML writes these three line ends unquoted by default, and reads them back as another one."""
    style = '"' if any(end in text for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_PlainDumper.add_representer(str, _represent_text)


def _replace_dataset_aliases(file: YamlFile) -> Iterator[tuple[int, str]]:
    """Move `train_dataset_task.dataset_config` to `train_dataset`, which MindFormers' files alias there.

    Yields a problem, as `_placed` gives it, where both are given and differ.
    """
    for section in _DATASETS:
        task = file.value.get(f"{section}_task")
        if not isinstance(task, dict) or "dataset_config" not in task:
            continue
        where = (f"{section}_task", "dataset_config")
        content = task.pop("dataset_config")
        if content is None:
            continue
        if file.value.get(section) is None:
            file.value[section] = content
            tables: tuple[dict[Location, Any], ...] = (file.lines, file.sources)
            for table in tables:
                table |= {(section, *place[2:]): entry for place, entry in table.items() if place[:2] == where}
        elif file.value[section] != content:
            yield _placed(file, where, f"differs from the section {section}; write it once, as {section}")


def _override_location(key: str) -> Location:
    parts = tuple(int(part) if part.isascii() and part.isdigit() else part for part in key.split("."))
    for section in _DATASETS:
        if parts[:2] == (f"{section}_task", "dataset_config"):
            return (section, *parts[2:])
    return parts


def _override(values: dict[str, Any], location: Location, value: Any) -> None:
    """Set `value` at `location`, creating mappings on the way and removing other spellings of the same key.

    Raises `UserError` where the path leads through something without keys. Keys and value are validated later.
    """
    here: Any = values
    section: type[Section] | None = RunConfig
    for depth, part in enumerate(location):
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                raise UserError(f"{dotted(location[:depth])} is a list of {len(here)}; give an index below that")
        elif isinstance(here, dict):
            part = str(part)
            for spelling in _other_spellings(section, part):
                here.pop(spelling, None)
        else:
            raise UserError(f"{dotted(location[:depth])} is {shown(here)}, which has no keys")
        if depth == len(location) - 1:
            here[part] = value
            return
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here, section = here[part], _section_below(section, part)


def _section_below(section: type[Section] | None, key: int | str) -> type[Section] | None:
    """The class of the subsection under `key`; None where there is no one such class, as below a list."""
    if section is None:
        return None
    for name, field in section.model_fields.items():
        if key == (field.alias or name):
            candidates = (field.annotation, *typing.get_args(field.annotation))
            return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)), None)
    return None


def _other_spellings(section: type[Section] | None, key: str) -> list[str]:
    if section is None:
        return []
    own = section.other_names.get(key, key)
    spellings = [own, *(other for other, name in section.other_names.items() if name == own)]
    return [spelling for spelling in spellings if spelling != key]


def _located(file: YamlFile, typed: Mapping[Location, str], where: Location, what: str) -> tuple[int, str]:
    """A problem as (line to sort by, text), with the override that caused it or its line in the file."""
    for location, origin in typed.items():
        if where[: len(location)] == location or (location[: len(where)] == where and where not in file.lines):
            key = "" if origin.split()[-1] == dotted(where) else f" {dotted(where)}:"
            return 0, f"command line: {origin}:{key} {what}"
    return _placed(file, where, what)


def _placed(file: YamlFile, where: Location, what: str) -> tuple[int, str]:
    """A problem as (line to sort by, text)."""
    line = file.line_of(where)
    return line, f"{file.source_of(where)}:{line}: {dotted(where)}: {what}"


def _ignored_of_callback(item: Any, above: Location) -> Iterator[str]:
    """As `_ignored_keys`, of an item of the lists of callbacks."""
    kind = CALLBACKS.get(item["type"]) if isinstance(item, dict) else None
    if kind is None:
        return
    if issubclass(kind, IgnoredCallbackSection):
        yield f"{dotted(above)} ({item['type']})"
    else:
        yield from (dotted((*above, key)) for key in item if key in kind.ignored)


def _ignored_keys(section: Section, values: Mapping[str, Any], above: Location) -> Iterator[str]:
    """The dotted names of the keys among `values` that are accepted without effect."""
    for key, value in values.items():
        location = (*above, key)
        if key in section.ignored:
            yield dotted(location)
        elif key in ("callbacks", "eval_callbacks") and isinstance(value, list):
            for index, item in enumerate(value):
                yield from _ignored_of_callback(item, (*location, index))
        elif isinstance(value, dict):
            name = next(
                (name for name, field in type(section).model_fields.items() if key == (field.alias or name)), ""
            )
            below = getattr(section, name, None)
            if isinstance(below, Section):
                yield from _ignored_keys(below, value, location)
