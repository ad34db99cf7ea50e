"""`mindgpt launch`: runs a subcommand in several processes that work together."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mindgpt.cli.subcommands import SUBCOMMANDS
from mindgpt.config.arguments import CheckedParser, file_argument
from mindgpt.config.errors import UserError
from mindgpt.runtime.launcher import DEFAULT_LOG_DIR, DEFAULT_PORT, DEFAULT_TIME_OUT, DEFAULT_WORKERS, Job, launch

_PARALLEL = ("train", "finetune", "eval", "predict")
_MAIN = Path(__file__).resolve().parents[1] / "__main__.py"


def build_parser() -> CheckedParser:
    """The parser of the flags before the subcommand."""
    parser = CheckedParser(
        usage="%(prog)s [flags] SUBCOMMAND [its flags]",
        description="Run train, finetune, eval or predict in several processes; --use_parallel True is added.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "-n",
        "--workers",
        type=int,
        default=DEFAULT_WORKERS,
        metavar="N",
        help="processes on all machines (%(default)s)",
    )
    add("--local_workers", type=int, metavar="N", help="those of this machine (all)")
    add("--master_addr", default="127.0.0.1", metavar="ADDR", help="the machine with --node_rank 0 (%(default)s)")
    add(
        "--master_port",
        type=int,
        metavar="PORT",
        help=f"a port of it (any free one; {DEFAULT_PORT} for several machines)",
    )
    add("--node_rank", type=int, default=0, metavar="R", help="number of this machine (%(default)s)")
    add("--log_dir", type=file_argument, default=Path(DEFAULT_LOG_DIR), metavar="DIR", help="logs (%(default)s)")
    add("--background", action="store_true", help="return at once")
    add("--time_out", type=int, default=DEFAULT_TIME_OUT, metavar="S", help="to connect within (%(default)s)")
    return parser


def main(words: Sequence[str]) -> None:
    """Run the job, and exit with its status.

    Raises:
        UserError: a flag is wrong, or what follows is no subcommand that runs in several processes.
    """
    words = list(words)
    place = next((index for index, word in enumerate(words) if word in SUBCOMMANDS), len(words))
    given, unknown = build_parser().parse_known_args(words[:place])
    rest = words[place:]
    if unknown or not rest or rest[0] not in _PARALLEL:
        named = next(iter([*unknown, *rest]), None)
        what = "name one" if named is None else f"{named!r} is none of them"
        raise UserError(
            f"launch runs {', '.join(_PARALLEL)}; {what}, such as: mindgpt launch -n 8 train --config X.yaml"
        )
    if "--use_parallel" not in rest and not any(word.startswith("--use_parallel=") for word in rest):
        rest[1:1] = ["--use_parallel", "True"]
    sys.exit(launch(_job(given, rest)))


def _job(given, rest: list[str]) -> Job:
    local = given.workers if given.local_workers is None else given.local_workers
    if given.workers < 1 or local < 1 or given.workers % local:
        raise UserError(f"--local_workers {local} must divide --workers {given.workers}, and both be at least 1")
    if not 0 <= given.node_rank < given.workers // local:
        raise UserError(
            f"--node_rank {given.node_rank}: there are {given.workers // local} machine(s), numbered from 0"
        )
    if given.master_port is not None and not 1 <= given.master_port <= 65535:
        raise UserError(f"--master_port must be from 1 to 65535, not {given.master_port}")
    return Job(
        _MAIN,
        rest,
        workers=given.workers,
        local_workers=local,
        address=given.master_addr,
        port=given.master_port or (0 if local == given.workers else DEFAULT_PORT),
        node=given.node_rank,
        log_dir=given.log_dir,
        join=not given.background,
        time_out=given.time_out,
    )
