"""The `mindgpt` command: finds the subcommand, prints help, and runs it. Imports nothing that takes time."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from mindgpt.cli.help_texts import HELP
from mindgpt.cli.subcommands import GROUPS, SUBCOMMANDS, Subcommand, find
from mindgpt.config.errors import UserError, whole_program

PROGRAM = "mindgpt"
_HELP = ("-h", "--help")
_FULL_HELP = ("--help-all", "--help_all")


def main() -> NoReturn:
    """The program `mindgpt`: run what the command line asks for, and exit."""
    import mindgpt.config.program_loading  # noqa: F401  (here, since it is for programs alone)

    with whole_program():
        run(sys.argv[1:])


def run(words: Sequence[str]) -> None:
    """Run the subcommand that words begin with. Words that begin with a flag are those of `run_mindformer.py`.

    Raises:
        UserError: there is no such subcommand, or it cannot do what is asked.
    """
    words = list(words)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in (*_HELP, *_FULL_HELP):
        print(overview())
    elif words[0] == "--version":
        from mindgpt.config.arguments import versions

        print(versions())
    elif words[0].startswith("-"):
        from mindgpt.runtime.interrupts import end_on_interrupt
        from mindgpt.tasks import main as modes

        end_on_interrupt()
        modes.run(words)
    elif words[0] in GROUPS and find(words) is None:
        _of_group(words[0], words[1:])
    elif (found := find(words)) is None:
        raise UserError(f"there is no subcommand {words[0]!r}; {_nearest(words[0], names())}")
    else:
        _run(*found)


def names() -> list[str]:
    """The first words of all subcommands, in order."""
    return list(dict.fromkeys(name.split()[0] for name in SUBCOMMANDS))


def _run(name: str, subcommand: Subcommand, rest: list[str]) -> None:
    before = rest[: rest.index("--")] if "--" in rest else rest
    if name == "launch":  # the flags of what is launched are its own
        before = before[:1]
    if any(word in _HELP for word in before):
        print(HELP[name])
        return
    sys.argv = [f"{PROGRAM} {name}", *rest]  # what parsers call the program in their messages
    if any(word in _FULL_HELP for word in before):
        if name == "serve":  # its parser is where its packages are
            subcommand.load()(["--help"])
            return
        print(full_help(name, subcommand))
        return
    if subcommand.computes:
        from mindgpt.runtime.interrupts import end_on_interrupt

        end_on_interrupt()
    subcommand.load()(rest)


def _of_group(group: str, rest: list[str]) -> None:
    """Raises UserError for a word that is no verb of the group; a group without a verb prints its help."""
    verbs = [name.split()[1] for name in SUBCOMMANDS if name.startswith(f"{group} ")]
    if not rest or rest[0] in (*_HELP, *_FULL_HELP):
        print(HELP[group])
        return
    raise UserError(f"{PROGRAM} {group}: there is no {rest[0]!r}; {_nearest(rest[0], verbs)}")


def _nearest(word: str, known: list[str]) -> str:
    from mindgpt.config.section import nearest

    return f"{nearest(word, known)}\n{PROGRAM} --help lists them"


def overview() -> str:
    """The help of the command: every subcommand in a line."""
    lines = [
        f"usage: {PROGRAM} SUBCOMMAND [flags]        {PROGRAM} SUBCOMMAND --help",
        "",
        "GPT-2 and GPT-3 on MindSpore: on Ascend and on CPU.",
        "",
    ]
    for name in names():
        summary = GROUPS[name] if name in GROUPS else SUBCOMMANDS[name].summary
        lines.append(f"  {name:<11}{summary}")
    lines += [
        "",
        f'  {PROGRAM} predict --model gpt2-hf/ "Once upon a time"',
        f"  {PROGRAM} finetune --model gpt2-hf/ --data my.txt --output out/",
        "",
        f"{PROGRAM} --version tells the versions. The flags of run_mindformer.py work without a subcommand, too:",
        f"{PROGRAM} --config FILE --run_mode MODE ... More: docs/command_line.md",
    ]
    return "\n".join(lines)


def full_help(name: str, subcommand: Subcommand) -> str:
    """Every flag of a subcommand, as its parser prints them. Examples have the name of the subcommand."""
    if not subcommand.parser:
        return HELP[name]
    text = subcommand.load(subcommand.parser)().format_help()
    return text.replace(f"python {subcommand.old_name}", f"{PROGRAM} {name}") if subcommand.old_name else text
