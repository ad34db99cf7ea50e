"""Where this person's machine keeps what mindgpt made once and can make again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`$MINDGPT_CACHE`, else `mindgpt` in the user's cache folder. It need not exist yet."""
    base = os.environ.get("MINDGPT_CACHE")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindgpt"
    return Path(base).expanduser().resolve()
