"""The settings of generation that a Hugging Face config.json gives for one task: `task_specific_params`."""

from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.generation.settings import GenerationSettings
from mindgpt.io.files import read_json


def settings_of_task(config_file: Path, task: str) -> tuple[dict[str, Any], list[str]]:
    """What `task_specific_params` of a config.json sets for a task, such as `do_sample: true, max_length: 320`.

    The pipelines of transformers 4 obey it, those of transformers 5 do not.

    Returns:
        The settings, and sentences for the user: what is used, and what is left out because mindgpt has no such setting
        or the value is not allowed.
    """
    content = read_json(config_file)
    tasks = content.get("task_specific_params") if isinstance(content, dict) else None
    given = tasks.get(task) if isinstance(tasks, dict) else None
    if not isinstance(given, dict):
        return {}, []
    place = f"{config_file}: task_specific_params.{task}"
    settings, notes = {}, []
    for name, value in given.items():
        if value is None or (name == "top_k" and value == 0):  # transformers' "all tokens"
            continue
        try:
            if name not in GenerationSettings.model_fields:
                raise UserError("mindgpt has no such setting")
            GenerationSettings(**settings | {name: value})
        except UserError as error:
            notes.append(f"{place}: {name} {shown(value)} is left out: {error}")
        else:
            settings[name] = value
    if settings:
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        notes.append(f"{place}: {listed} unless a call says otherwise")
    return settings, notes
