"""Reading a YAML file with the line of every key kept, so that a problem can be reported where it was written.

The meaning is that of `yaml.safe_load` (YAML 1.1, anchors, aliases, merge keys; no Python objects), but for two
things: a key written twice in one mapping is a problem, and so is an alias that contains itself.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path

Location = tuple[int | str, ...]
"""A path of keys and list indexes from the top of the file."""

_PLAIN_TAGS = (yaml.resolver.Resolver.DEFAULT_MAPPING_TAG, yaml.resolver.Resolver.DEFAULT_SEQUENCE_TAG)
_MOST_NODES = 100_000  # a page of nested aliases can stand for billions of nodes; a configuration has hundreds


@dataclass
class YamlFile:
    """What a file holds: the value, the line (from 1) of every key and list item, and the problems found on the way."""

    path: Path
    value: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[tuple[int, Location, str]] = field(default_factory=list)
    sources: dict[Location, Path] = field(default_factory=dict)
    """Where a location comes from if it is not from `path`: see `mindgpt.config.base_files`."""

    def line_of(self, location: Location) -> int:
        """The line of `location`, or of the nearest thing above it that is in the file."""
        return self.lines.get(self._written(location), 1)

    def source_of(self, location: Location) -> Path:
        """The file of `location`."""
        return self.sources.get(self._written(location), self.path)

    def _written(self, location: Location) -> Location:
        while location and location not in self.lines:
            location = location[:-1]
        return location


def read_yaml(path: str | Path) -> YamlFile:
    """Read a file whose top level is a mapping.

    Raises:
        UserError: no such file, not a file, not UTF-8, not YAML, empty, or not a mapping at the top level. Duplicate
            keys and the like do not raise: they are in `problems`, to be reported with whatever else is wrong.
    """
    path = expanded_path(path)
    text = _read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise UserError(f"{path}: is empty; it must hold the keys of a configuration, such as run_mode: train")
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}:{_line(node)}: the top level must be keys with values, such as run_mode: train")
        builder = _Builder(loader, YamlFile(path))
        builder.file.value = builder.value(node, (), ())
    except yaml.MarkedYAMLError as error:
        where = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        context = f" {error.context}" if error.context else ""
        raise UserError(f"{path}{where}: is not valid YAML: {error.problem}{context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: is not valid YAML: character #x{error.character:04x} is not allowed") from None
    except RecursionError:
        raise UserError(f"{path}: is not a configuration: it is nested too deeply") from None
    return builder.file


def parse_value(text: str) -> Any:
    """A value as YAML reads it after a key: `8`, `True`, `[a, b]`. Raises `UserError` if it is not YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"{text!r} is not a valid YAML value; put it in quotes if it is meant as text") from None


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        looked = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{path}: there is no such file{looked}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


class _Builder:
    """Turns a tree of YAML nodes into values, noting lines and problems in `file`."""

    def __init__(self, loader: yaml.SafeLoader, file: YamlFile) -> None:
        self.loader = loader
        self.file = file
        self.nodes = 0
        self.flattened: set[int] = set()

    def value(self, node: yaml.Node, location: Location, above: tuple[yaml.Node, ...]) -> Any:
        """The value of `node`, which stands at `location` inside the nodes `above`."""
        self.nodes += 1
        if self.nodes > _MOST_NODES:
            raise UserError(f"{self.file.path}: stands for over {_MOST_NODES} values once its aliases are followed")
        if any(node is other for other in above):
            self.file.problems.append((_line(node), location, "contains itself through an alias"))
            return None
        above = (*above, node)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            self.file.problems.append((_line(node), location, f"is not plain YAML: the tag {node.tag} is not allowed"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, location, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.item(item, (*location, index), above) for index, item in enumerate(node.value)]
        return self.scalar(node, location)

    def item(self, node: yaml.Node, location: Location, above: tuple[yaml.Node, ...]) -> Any:
        self.file.lines[location] = _line(node)
        return self.value(node, location, above)

    def mapping(self, node: yaml.MappingNode, location: Location, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        if id(node) not in self.flattened:  # an aliased mapping comes here more than once
            self.flattened.add(id(node))
            self.report_twice_written(node, location)
            self.loader.flatten_mapping(node)  # puts what `<<` merges in before the mapping's own keys, which so win
        pairs = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:str":
                pairs[key] = key_node, value_node
            else:
                shown = repr(key) if isinstance(key, str) else "a list or mapping"
                message = f"has a key that is not text: {shown}; put it in quotes"
                self.file.problems.append((_line(key_node), location, message))
        for key, (key_node, _) in pairs.items():
            place = (*location, key)
            self.file.lines[place] = _line(key_node)
        return {key: self.value(value_node, (*location, key), above) for key, (_, value_node) in pairs.items()}

    def report_twice_written(self, node: yaml.MappingNode, location: Location) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = key_node.value, _line(key_node)
            if key in first:
                message = f"is written twice; the first time in line {first[key]}"
                self.file.problems.append((line, (*location, key), message))
            first.setdefault(key, line)

    def scalar(self, node: yaml.Node, location: Location) -> Any:
        try:
            return self.loader.construct_object(node)
        except yaml.constructor.ConstructorError as error:
            self.file.problems.append((_line(node), location, f"is not plain YAML: {error.problem}"))
        except ValueError as error:  # such as the date 2024-13-45
            self.file.problems.append((_line(node), location, f"cannot be read: {error}; put it in quotes"))
        return None
