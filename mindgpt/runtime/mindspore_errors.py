"""What MindSpore's exceptions mean. They are all RuntimeErrors, so only the text tells them apart, and only this module
reads it. The words are those of MindSpore 2.10.
"""

_READING = "dataset pipeline"
_LOOKUPS = ("LaunchEmbedding", "LaunchTargetLosses", "For 'Gather'", "For 'GatherD'")
"""The names of mindgpt's CPU kernels and MindSpore's operators that look up ids and labels in tables."""
_BEFORE_TRACE = "\n\n-----"


def is_reading_error(error: RuntimeError) -> bool:
    """Whether a data set could not be read."""
    return _READING in str(error)


def is_lookup_error(error: RuntimeError) -> bool:
    """Whether an id or a label is outside the table that it was looked up in."""
    return any(name in str(error) for name in _LOOKUPS)


def data_error_reason(error: BaseException) -> str:
    """The line of a data error that says what happened; the others are banners and places in MindSpore's C++ code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")]
    return (marked or lines or [type(error).__name__])[0]


def without_trace(error: BaseException) -> str:
    """What a compile error says, without the C++ call stack that follows."""
    return str(error).split(_BEFORE_TRACE)[0].strip()
