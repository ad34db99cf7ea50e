"""`mindgpt completion`: a static script for bash or zsh, made of the parsers of all subcommands."""

import shlex
from collections.abc import Iterator, Sequence

from mindgpt.cli.subcommands import GROUPS, SUBCOMMANDS
from mindgpt.config.errors import UserError

_HELP_FLAGS = ("--help", "--help-all")

_BASH = """\
# Completion of mindgpt in bash; made by: mindgpt completion bash
_mindgpt() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} name=${{COMP_WORDS[1]}} words=
    case "$name" in {groups}) [ "$COMP_CWORD" -gt 2 ] && name="$name ${{COMP_WORDS[2]}}";; esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={names}
    else
        case "$name:$before" in
{values}
        esac
        if [ -z "$words" ]; then
            case "$name" in
{flags}
            esac
            case "$word" in -*) ;; *) [ "$COMP_CWORD" -eq 2 ] && [ -n "$words" ] && case "$name" in
                {groups}) ;; *) words=;; esac || words=;; esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ -n "$words" ] || compopt -o default 2>/dev/null
}}
complete -o bashdefault -o default -F _mindgpt mindgpt
"""

_ZSH = """\
#compdef mindgpt
# Completion of mindgpt in zsh; made by: mindgpt completion zsh
_mindgpt() {{
    local name=$words[2] before=$words[CURRENT-1]
    local -a found
    if (( CURRENT == 2 )); then
        compadd -- {names}
        return
    fi
    case $name in ({groups}) (( CURRENT > 3 )) && name="$name $words[3]";; esac
    case "$name:$before" in
{values}
    esac
    if (( ! $#found )); then
        case $name in
{flags}
        esac
        if (( CURRENT == 3 )) && [[ $name == ({groups}) ]]; then compadd -a found; return; fi
        if [[ $PREFIX != -* ]]; then _files; return; fi
    fi
    compadd -a found
}}
if [[ $funcstack[1] == _mindgpt ]]; then _mindgpt "$@"; else compdef _mindgpt mindgpt; fi
"""


def main(words: Sequence[str]) -> None:
    """Print the script.

    Raises:
        UserError: another word than the name of a shell.
    """
    if list(words) not in (["bash"], ["zsh"]):
        raise UserError("completion: name the shell: mindgpt completion bash, or mindgpt completion zsh")
    print(script(words[0]), end="")


def script(shell: str) -> str:
    """The script for "bash" or "zsh"."""
    first = list(dict.fromkeys(name.split()[0] for name in SUBCOMMANDS))
    flags, values = [], []
    for name, words, choices in _flags():
        flags.append(_case(shell, shlex.quote(name), words))
        for flag, allowed in choices.items():
            values.append(_case(shell, f"{shlex.quote(name)}:{flag}", allowed))
    names = shlex.quote(" ".join(first)) if shell == "bash" else " ".join(first)
    text = _BASH if shell == "bash" else _ZSH
    return text.format(names=names, groups="|".join(GROUPS), flags="\n".join(flags), values="\n".join(values))


def _case(shell: str, pattern: str, words: Sequence[str]) -> str:
    if shell == "bash":
        return f"            {pattern}) words={shlex.quote(' '.join(words))};;"
    return f"        {pattern}) found=({' '.join(map(shlex.quote, words))});;"


def _flags() -> Iterator[tuple[str, list[str], dict[str, list[str]]]]:
    """For each subcommand and group: its name, the words that may follow, and the values of flags that have a few."""
    for group in GROUPS:
        yield group, [name.split()[1] for name in SUBCOMMANDS if name.startswith(f"{group} ")], {}
    for name, subcommand in SUBCOMMANDS.items():
        if not subcommand.parser:
            yield name, [*_HELP_FLAGS], {}
            continue
        found = subcommand.load(subcommand.parser)()._actions if name != "completion" else []
        words = [flag for action in found if action.help != "==SUPPRESS==" for flag in action.option_strings]
        choices = {
            flag: list(map(str, action.choices)) for action in found if action.choices for flag in action.option_strings
        }
        truths = {
            flag: ["True", "False"]
            for action in found
            if action.metavar == "True|False"
            for flag in action.option_strings
        }
        extra = ["bash", "zsh"] if name == "completion" else []
        yield name, [*(word for word in words if word.startswith("--")), "--help-all", *extra], choices | truths
