"""The `mindgpt` command: its subcommands, and the programs under `tools/`, which are doors to the same functions."""
