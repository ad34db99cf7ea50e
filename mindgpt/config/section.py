"""What every section of a configuration has in common: strict keys, old names, ignored keys, readable problems.

A `Section` is a frozen pydantic model in strict mode: no unknown key, no text where a number belongs, no True where a
count belongs. It also knows other spellings of its keys (MindFormers', Hugging Face's), the keys that it accepts
without obeying them, and the keys that have no effect in a given run. It words every problem for the user.
All problems of a section are reported together; `problems_of` takes them out of the `ValidationError`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from mindgpt.config.no_effect import NoEffect, Run, no_effect
from mindgpt.config.paths import expanded

AnySection = TypeVar("AnySection", bound="Section")

ANY_VALUE = object()
"""In `Section.ignored`: any value is accepted. It concerns speed or memory only, or something that mindgpt lacks."""


@dataclass(frozen=True)
class Only:
    """In `Section.ignored`: the values that have no effect anyway, and why no other is allowed.

    Attributes:
        values: the allowed values; the first is named in messages. null is always allowed.
        reason: why no other is, or what to do; the end of a sentence.
        allows: a test for further allowed values.
    """

    values: tuple[Any, ...]
    reason: str
    allows: Callable[[Any], bool] = lambda value: False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value is None or self.allows(value) or any(_equal(value, allowed) for allowed in self.values):
            return None
        allowed = f"only {self.values[0]!r} is allowed" if self.values else "it must be empty"
        return f"{allowed}, not {shown(value)}: {self.reason}"


def any_value(names: str) -> dict[str, Any]:
    """A table for `Section.ignored`: each of the names, separated by spaces, may have any value."""
    return dict.fromkeys(names.split(), ANY_VALUE)


def only(*values: Any, reason: str, allows: Callable[[Any], bool] = lambda value: False) -> Only:
    """An `Only`, in one line of a table."""
    return Only(values, reason, allows)


def _equal(value: Any, other: Any) -> bool:
    """Equality for which True is no 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


_PROBLEM = "config"  # the pydantic error type of a problem that is already in our words
_EXPONENT_WITHOUT_DOT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")

_HINTS_EVERYWHERE = {
    "auto_register": "mindgpt has no registry of outside classes; import mindgpt from your own program instead",
}

_WORDING = {
    "missing": "is missing",
    "int_type": "must be a whole number, not {value}",
    "int_from_float": "must be a whole number, not {value}",
    "float_type": "must be a number, not {value}",
    "finite_number": "must be a finite number, not {value}",
    "bool_type": "must be True or False, not {value}",
    "string_type": "must be text, not {value}",
    "list_type": "must be a list, not {value}",
    "dict_type": "must be a group of keys, not {value}",
    "model_type": "must be a group of keys, not {value}",
    "literal_error": "must be {expected}, not {value}",
    "greater_than": "must be greater than {gt}, not {value}",
    "greater_than_equal": "must be at least {ge}, not {value}",
    "less_than": "must be less than {lt}, not {value}",
    "less_than_equal": "must be at most {le}, not {value}",
}


def _exponent_to_float(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` (no dot) as text; take it for the number that was meant."""
    return float(value) if isinstance(value, str) and _EXPONENT_WITHOUT_DOT.fullmatch(value) else value


Number = Annotated[float, BeforeValidator(_exponent_to_float)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
DropoutRate = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
if TYPE_CHECKING:
    CompletedCount = int
else:
    CompletedCount = Count | None
"""A count that may be left out or null: `complete`, or the section above, then sets it. So no reader meets None."""
TO_BE_COMPLETED: Any = None
PathText = Annotated[str, AfterValidator(expanded)]
"""A path; `~` at its beginning is expanded."""


def shown(value: Any) -> str:
    """A value as an error message shows it: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """The end of a sentence about an unknown name: the nearest of the names `known` and `also`, or all of `known`."""
    known = list(known)
    by_lower_case = {candidate.lower(): candidate for candidate in [*also, *known]}
    match = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return f"did you mean {by_lower_case[match[0]]!r}?" if match else f"known are: {', '.join(known)}"


def one_of(names: Mapping[str, str]) -> BeforeValidator:
    """Accept any key of `names` in any case, and store the value it maps to.

    `names` maps every accepted spelling, old ones included, to our own; our own map to themselves.
    """
    by_lower_case = {spelling.lower(): own for spelling, own in names.items()}
    own_names = list(dict.fromkeys(names.values()))

    def own_name(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be one of {', '.join(own_names)}, not {shown(value)}")
        if value.lower() in by_lower_case:
            return by_lower_case[value.lower()]
        match = difflib.get_close_matches(value.lower(), by_lower_case, n=1)
        hint = f"; did you mean {by_lower_case[match[0]]!r}?" if match else ""
        raise ValueError(f"must be one of {', '.join(own_names)}, not {shown(value)}{hint}")

    return BeforeValidator(own_name)


class Section(BaseModel):
    """A group of keys of the configuration. Subclasses declare fields, other names and ignored keys.

    A key whose value is null counts as not given, so a field that may be None has None as its default.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    other_names: ClassVar[Mapping[str, str]] = {}
    """Other accepted spellings of a key, each with our own. Two spellings may both be given if they agree."""

    ignored: ClassVar[Mapping[str, Any]] = {}
    """Accepted keys without effect here, each with `ANY_VALUE`, an `Only`, or the class of a section of such keys."""

    no_effect: ClassVar[tuple[NoEffect, ...]] = ()
    """Keys that some runs do not obey."""

    hints: ClassVar[Mapping[str, str]] = {}
    """Keys that other programs have and that are refused here, each with the reason or what to use instead."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that the section accepts, in our own spelling."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A hook for subclasses: old forms of values into today's, before names are translated and values checked."""
        return data

    def complete(self) -> None:
        """A hook for subclasses, called when all values are checked one by one: checks what spans several keys and
        raises problems with `refuse`; gives fields the values that follow from others with `fill`.
        """

    def fill(self, **values: Any) -> None:
        """Set fields. For `complete` only, before anybody has the section."""
        self.__dict__.update(values)

    def replaced(self: AnySection, changes: Mapping[str, Any]) -> AnySection:
        """A copy with other values, by the dotted names of fields. They are not validated."""
        result = self
        for path, value in changes.items():
            name, _, rest = path.partition(".")
            assert name in type(self).model_fields, f"{type(self).__name__} has no field {name}"
            value = getattr(result, name).replaced({rest: value}) if rest else value
            result = result.model_copy(update={name: value})
        return result

    def unused_keys(self, run: Run) -> dict[str, list[str]]:
        """The keys that are set and have no effect in a run, by reason."""
        found: dict[str, list[str]] = {}
        for rule in self.no_effect:
            if (reason := rule.why(run)) and rule.is_set(self):
                value = attrgetter(rule.key)(self)
                found.setdefault(reason, []).append(f"{rule.key}: {value}" if isinstance(value, bool) else rule.key)
        return found

    def notes_without_effect(self, run: Run, above: str = "") -> Iterator[str]:
        """Lines that name the keys of this section and those below it that have no effect in a run.

        Args:
            run: the run.
            above: what precedes the section's keys in messages, such as "train_dataset.".
        """
        for reason, keys in self.unused_keys(run).items():
            yield no_effect([above + keys[0], *keys[1:]], reason)
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            below = f"{above}{field.alias or name}."
            if isinstance(value, Section):
                yield from value.notes_without_effect(run, below)
            elif isinstance(value, (list, tuple)):
                for number, item in enumerate(value):
                    if isinstance(item, Section):
                        yield from item.notes_without_effect(run, f"{below}{number}.")

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler) -> "Section":
        if not isinstance(data, Mapping):
            return handler(data)  # a section that exists already, or a problem to be worded by the section above
        problems: list[InitErrorDetails] = []
        written_as: dict[str, str] = {}
        data = cls.translated(cls._without_ignored(data, problems))
        data = cls._in_own_names(data, written_as, problems)
        try:
            section = handler(data)
            section.complete()
        except ValidationError as error:
            for details in error.errors(include_url=False):
                first, *rest = details["loc"]
                location = (written_as.get(str(first), first), *rest)
                problems.append(_problem(location, _worded(cls, details), details["input"]))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return section

    @classmethod
    def _without_ignored(cls, data: Mapping[str, Any], problems: list[InitErrorDetails]) -> dict[str, Any]:
        kept = {}
        for key, value in data.items():
            rule = cls.ignored.get(key)
            if rule is None:
                kept[key] = value
            elif isinstance(rule, Only):
                if message := rule.problem(value):
                    problems.append(_problem((key,), message, value))
            elif rule is ANY_VALUE or value is None:
                continue
            elif not isinstance(value, Mapping):
                problems.append(_problem((key,), _WORDING["dict_type"].format(value=shown(value)), value))
            else:
                try:
                    rule.model_validate(value)
                except ValidationError as error:
                    problems += [_problem((key, *where), what, value) for where, what in problems_of(error)]
        return kept

    @classmethod
    def _in_own_names(
        cls, data: dict[str, Any], written_as: dict[str, str], problems: list[InitErrorDetails]
    ) -> dict[str, Any]:
        own: dict[str, Any] = {}
        for key, value in data.items():
            name = cls.other_names.get(key, key)
            if value is None and name in cls.known_keys():
                continue
            if name in own and own[name] != value:
                first = written_as.get(name, name)
                message = f"means the same as {first!r}, which is {shown(own[name])}; keep one of the two"
                problems.append(_problem((key,), message, value))
                continue
            own[name] = value
            written_as[name] = key
        return own


def _problem(location: tuple[int | str, ...], message: str, value: Any) -> InitErrorDetails:
    error = PydanticCustomError(_PROBLEM, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=location, input=value)


def _worded(cls: type[Section], details: Mapping[str, Any]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == _PROBLEM:
        return details["msg"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        name = str(details["loc"][-1])
        hint = cls.hints.get(name) or _HINTS_EVERYWHERE.get(name)
        return f"unknown key; {hint or nearest(name, cls.known_keys() or cls.ignored, cls.ignored)}"
    if kind in _WORDING:
        return _WORDING[kind].format(value=shown(details["input"]), **context)
    return f"{details['msg']}, not {shown(details['input'])}"


def refuse(problems: Iterable[tuple[str, str]]) -> None:
    """Raise the problems that a check across several keys has found, each as (the key to blame, what is wrong).

    The key is one of the section that is being checked, or a dotted path of keys below it.
    """
    errors = [_problem(tuple(key.split(".")), message, None) for key, message in problems]
    if errors:
        raise ValidationError.from_exception_data("section", errors)


def problems_of(error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    """Every problem in a section's `ValidationError`: where (a path of keys and list indexes), and what is wrong."""
    return [(details["loc"], details["msg"]) for details in error.errors(include_url=False, include_input=False)]


def dotted(location: Iterable[int | str]) -> str:
    """A path of keys and list indexes as one word, such as `callbacks.1.prefix`."""
    return ".".join(str(part) for part in location)
