"""Instruction data: reads prompts and responses from records in several formats."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.config.section import nearest
from mindgpt.data.json_values import BadRecordHandler, raise_error
from mindgpt.data.records import BadRecords, Record, kind_by_name, listed, read_records, text_of
from mindgpt.io.files import PathLike, read_json


class Instruction(NamedTuple):
    """A prompt and the response to learn. With an empty prompt, the response is plain text."""

    prompt: str
    response: str


@dataclass(frozen=True)
class RecordFormat:
    """The keys of a record. `response_optional`: without a response, the prompt is trained on as plain text."""

    prompt: str
    response: str
    input: str | None = None
    response_optional: bool = False

    @property
    def keys(self) -> str:
        names = [self.prompt, *([f"{self.input} (optional)"] if self.input else []), self.response]
        return " + ".join(names) + (" (optional)" if self.response_optional else "")


FORMATS = {
    "alpaca": RecordFormat("instruction", "output", input="input"),
    "dolly": RecordFormat("instruction", "response", input="context"),
    "prompt_response": RecordFormat("prompt", "response"),
    "prompt_completion": RecordFormat("prompt", "completion"),
    "src_tgt": RecordFormat("src_txt", "tgt_txt", response_optional=True),  # ModelScope's
}
_INPUTS = {record_format.input for record_format in FORMATS.values() if record_format.input}


def format_with_keys(
    name: str | None, prompt: str | None = None, response: str | None = None, input: str | None = None
) -> RecordFormat | None:
    """The format of that name, with the given keys in place of its own; None if no argument is given.

    Without a name, `prompt` and `response` are required; with an `input`, prompts use the templates of alpaca.

    Raises:
        UserError: a key is missing, or two are the same.
    """
    keys = {"prompt": prompt, "response": response, "input": input}
    keys = {part: key for part, key in keys.items() if key is not None}
    if not keys:
        return FORMATS[name] if name else None
    if name is None and not {"prompt", "response"} <= set(keys):
        raise UserError(
            "--prompt_key and --response_key are both required, unless --format names the format whose "
            "keys they replace."
        )
    record_format = replace(FORMATS[name], **keys) if name else RecordFormat(**keys)
    used = [key for key in (record_format.prompt, record_format.response, record_format.input) if key is not None]
    if len(set(used)) < len(used):
        raise UserError(f"--prompt_key, --response_key and --input_key must differ; they are {listed(used)}.")
    return record_format


# ---- templates -------------------------------------------------------------------------------------------------------

_FIELD = re.compile(r"\{(\w+)\}")
_FIELDS = {  # the templates of a template file, and the fields that each must have
    "prompt_input": {"instruction", "input"},
    "prompt_no_input": {"instruction"},
    "prompt": {"prompt"},
}
_IGNORED_KEYS = {"description", "response_split"}  # in template files of Alpaca-LoRA

TEMPLATES = {
    "prompt_input": "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "prompt_no_input": "### Instruction:\n{instruction}\n\n### Response:\n",
    "prompt": "{prompt}",
}
"""The default templates of prompts; the response follows directly."""


def read_templates(path: PathLike) -> dict[str, str]:
    """The templates in a JSON file, as in Alpaca-LoRA: `prompt_input` and `prompt_no_input` with the fields
    {instruction} and {input}, or `prompt` with the field {prompt}.

    Raises:
        UserError: the file cannot be read, or a template is unknown or has other fields.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold a JSON object with {', '.join(_FIELDS)}.")
    templates = {key: value for key, value in content.items() if key not in _IGNORED_KEYS}
    for key, text in templates.items():
        if key not in _FIELDS:
            raise UserError(f"{path}: {key} is unknown; {nearest(key, _FIELDS)}")
        if not isinstance(text, str) or set(_FIELD.findall(text)) != _FIELDS[key]:
            fields = " and ".join(f"{{{field}}}" for field in sorted(_FIELDS[key]))
            raise UserError(f"{path}: {key} must be a text with {fields} in it, and no other {{field}}.")
    return templates


def _fill(template: str, fields: dict[str, str]) -> str:
    return _FIELD.sub(lambda field: fields[field[1]], template)


# ---- examples --------------------------------------------------------------------------------------------------------


class ExampleReader:
    """The examples of files, in order.

    Args:
        files: .json, .jsonl, .ndjson, .csv, .tsv or .parquet.
        record_format: the keys of a record; None: one of `FORMATS`, by the keys of each file's first record.
        templates: as `TEMPLATES`.
        on_bad: gets the error of a bad record; raises it, or lets the record be skipped.
        all_alike: either all records have a response or none has; one that differs from those before it is bad.

    Attributes:
        unused: keys of records that had no effect, such as an id.
        empty: counts the records without a response, which are skipped.

    Raises (when iterated):
        UserError: a file cannot be read, its keys fit no format, its format has no template; or by `on_bad`.
    """

    def __init__(
        self,
        files: Iterable[Path],
        record_format: RecordFormat | None = None,
        templates: dict[str, str] = TEMPLATES,
        on_bad: BadRecordHandler = raise_error,
        all_alike: bool = False,
    ):
        self.files, self.record_format, self.templates, self.on_bad = list(files), record_format, templates, on_bad
        self.all_alike = all_alike
        self._records: Iterable[Mapping[str, Any]] | None = None
        self._first_has_response: bool | None = None
        self.unused: set[str] = set()
        self.empty = BadRecords()

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]], **options: Any) -> "ExampleReader":
        """The examples of records that a program has, such as {"src_txt": ..., "tgt_txt": ...}; `options` as above."""
        reader = cls([], **options)
        reader._records = records
        return reader

    def __iter__(self) -> Iterator[Instruction]:
        found = False
        for example in self._examples():
            found = True
            yield example
        if self.empty.count and not found:
            raise UserError(f"There is no example: {self.empty.count} record(s) have no response: {self.empty.first}")

    def _examples(self) -> Iterator[Instruction]:
        self._first_has_response = None
        for file, records in self._sources():
            record_format = self.record_format
            for record in records:
                if record_format is None:
                    record_format = FORMATS[format_of(record, file)]
                self._check_templates(record_format, file)
                self.unused |= set(record.fields) - {record_format.prompt, record_format.input, record_format.response}
                try:
                    example = self._example(record, record_format)
                    if self.all_alike:
                        self._check_alike(record, record_format, bool(example.prompt))
                except UserError as error:
                    self.on_bad(error)
                    continue
                if example.response.strip():
                    yield example
                else:  # 28 of the 52,002 in alpaca_data.json
                    self.empty(UserError(f"{record.place}: '{record_format.response}' is empty."))

    def _sources(self) -> Iterator[tuple[Path, Iterable[Record]]]:
        """A name and the records of each file, or of the program's own records."""
        for file in self.files:
            yield file, read_records(file, self.on_bad)
        if self._records is not None:
            yield Path("records"), self._given_records()

    def _given_records(self) -> Iterator[Record]:
        for number, fields in enumerate(self._records, start=1):
            if isinstance(fields, Mapping):
                yield Record(f"record {number}", dict(fields))
            else:
                self.on_bad(UserError(f"record {number}: should be a dict; it is a {type(fields).__name__}."))

    def _check_alike(self, record: Record, record_format: RecordFormat, has_response: bool) -> None:
        if self._first_has_response is None:
            self._first_has_response = has_response
        if has_response != self._first_has_response:
            differs = "has" if has_response else "has no"
            before = "have none" if has_response else "have one"
            raise UserError(
                f"{record.place}: {differs} '{record_format.response}', and the rows before {before}. All rows need "
                f"it, to learn '{record_format.response}' from '{record_format.prompt}', or none, to learn "
                f"'{record_format.prompt}' as a whole."
            )

    def _check_templates(self, record_format: RecordFormat, file: Path) -> None:
        needed = ("prompt_input", "prompt_no_input") if record_format.input else ("prompt",)
        missing = [key for key in needed if key not in self.templates]
        if missing:
            raise UserError(f"--template: {file} needs {' and '.join(missing)}; there is {', '.join(self.templates)}.")

    def _example(self, record: Record, record_format: RecordFormat) -> Instruction:
        prompt = _nonempty_text(record, record_format.prompt)
        if record_format.response_optional and record.fields.get(record_format.response) in (None, ""):
            return Instruction("", prompt)
        missing = record.fields.get(record_format.response, "") is None
        response = "" if missing else text_of(record, record_format.response)
        if record_format.input is None:
            return Instruction(_fill(self.templates["prompt"], {"prompt": prompt}), response)
        given = "" if record.fields.get(record_format.input) is None else text_of(record, record_format.input)
        template = self.templates["prompt_input" if given.strip() else "prompt_no_input"]
        return Instruction(_fill(template, {"instruction": prompt, "input": given}), response)


def _nonempty_text(record: Record, key: str) -> str:
    text = text_of(record, key)
    if not text.strip():
        raise UserError(f"{record.place}: '{key}' is empty.")
    return text


def format_of(record: Record, file: Path) -> str:
    """The name of the format that the keys of a file's first record fit.

    Raises:
        UserError: there is none, or more than one.
    """
    keys: dict[str, Any] = record.fields
    fitting = [name for name, record_format in FORMATS.items() if _fits(record_format, set(keys))]
    if len(fitting) == 1:
        return fitting[0]
    known = "; ".join(f"{name}: {record_format.keys}" for name, record_format in FORMATS.items())
    place = f"{file}:1" if kind_by_name(file) in ("csv", "tsv") else record.place
    found = listed(list(keys)) or "none"
    ways_out = "Name the keys with --prompt_key NAME --response_key NAME, and --input_key NAME if there is an input"
    problem = (
        f"fit {' and '.join(fitting)}; name one with --format" if fitting else f"fit no format ({known}). {ways_out}"
    )
    raise UserError(f"{place}: the keys {found} {problem}.")


def _fits(record_format: RecordFormat, keys: set[str]) -> bool:
    """Whether keys fit a format. If its own input key is missing and another format's is there, they do not, since that
    input would be dropped."""
    if record_format.input and record_format.input not in keys and keys & _INPUTS:
        return False
    return record_format.prompt in keys and (record_format.response in keys or record_format.response_optional)
