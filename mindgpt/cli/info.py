"""`mindgpt info`: says what files and folders are."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError

_WIDTH = 18


def build_parser() -> CheckedParser:
    """The parser of the subcommand."""
    parser = CheckedParser(description="Say what files and folders are.", allow_abbrev=False)
    parser.add_argument("paths", type=path_argument, nargs="+", metavar="PATH", help="files, folders, names of sizes")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tensors", action="store_true", help="also every tensor's name, shape and dtype")
    return parser


def main(words: Sequence[str]) -> None:
    """Describe each path; exits with 2 if one is unknown or damaged, after the others are described."""
    given = build_parser().parse_args(list(words))
    from mindgpt.tasks.describe import describe, tensors_of

    failed = False
    for path in given.paths:
        try:
            facts = describe(path)
            if given.tensors:
                facts["tensors_stored"] = tensors_of(path)
        except UserError as error:
            failed = True
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        if given.json:
            print(json.dumps(facts, ensure_ascii=False, default=str))
        else:
            print("\n".join(lines(facts)))
    if failed:
        sys.exit(2)


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts, one a line, for a person."""
    rest = {key: value for key, value in facts.items() if key not in ("path", "kind", "tensors_stored")}
    found = [f"{facts['path']}: {facts['kind']}"]
    found += [f"  {key.replace('_', ' '):<{_WIDTH}}{_shown(key, value)}" for key, value in rest.items()]
    for tensor in facts.get("tensors_stored", ()):
        found.append(f"    {tensor['name']}  {tensor['shape']}  {tensor['dtype']}")
    return found


def _shown(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,} ({value / 2**20:,.1f} MiB)" if key == "bytes" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(name, item)}" for name, item in value.items())
    return str(value)
