"""`mindgpt plan`: the search for a layout, or with --dry_run the dry run of the configuration's own."""

from mindgpt.cli import compile_plan, plan_layout
from mindgpt.config.arguments import CheckedParser
from mindgpt.config.shipped import file_of_model

_DRY_RUN = ("--dry_run", "--dry-run")


def build_parser() -> CheckedParser:
    """The parser of the search, with the two flags that are this command's own."""
    parser = plan_layout.build_parser()
    parser.add_argument("--dry_run", action="store_true", help="compile the configuration's own layout, see below")
    parser.add_argument("--model", metavar="SIZE", help="the shipped configuration of a size, instead of --config")
    return parser


def main(words: list[str]) -> None:
    """Run one of the two; the flags are those of `tools/plan.py` and `tools/dry_run.py`."""
    tool = compile_plan if any(word in _DRY_RUN for word in words) else plan_layout
    words = [word for word in words if word not in _DRY_RUN]
    names = CheckedParser(add_help=False, allow_abbrev=False)
    names.add_argument("--model")
    given, rest = names.parse_known_args(words)
    tool.main([*rest, "--config", str(file_of_model(given.model))] if given.model else rest)
