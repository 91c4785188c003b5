"""A frozen dataclass is the one declaration of a command's flags: name, type, default, range and help text.

    @dataclasses.dataclass(frozen=True)
    class EmbedConfig:
        model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers') or a hub id")
        batch_tokens: int = flag(8192, "tokens encoded at once", minimum=1)
        pooling: Literal["mean", "cls"] = flag("mean", "...")
        suite: tuple[str, ...] = flag((), "comma-separated names")
        grid: Repeated = flag((), "given once for each value, which may hold commas")

A command with many flags has groups, which are such dataclasses too. Flags keep their own names, and --help prints the
groups in their order. The defaults are those of the instance that a group's field has:

    @dataclasses.dataclass(frozen=True)
    class TrainConfig:
        data: DataSettings = DataSettings()
        batch: BatchSettings = BatchSettings()
"""

import dataclasses
import difflib
import math
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import app, flags

from sharding.host import quiet_libraries

Error = flags.Error  # a usage error
REQUIRED = "<required>"
Repeated = typing.NewType("Repeated", tuple)  # of str, one for each time that the flag is given
HELP_WIDTH = 110
flags.disclaim_key_flags()


class Range(NamedTuple):
    """Bounds of a number; None: no bound."""

    minimum: float | None
    maximum: float | None
    above: float | None  # exclusive
    below: float | None  # exclusive
    or_zero: bool = False  # 0 is allowed too, though it is outside the bounds

    def holds(self, value: float) -> bool:
        return (value == 0 and self.or_zero) or (
                math.isfinite(value)
                and (self.minimum is None or value >= self.minimum) and (self.above is None or value > self.above)
                and (self.maximum is None or value <= self.maximum) and (self.below is None or value < self.below))

    def __str__(self) -> str:
        parts = [f"{word} {bound:g}" for word, bound in (
            ("at least", self.minimum), ("above", self.above), ("at most", self.maximum), ("below", self.below),
        ) if bound is not None]
        return ("0 or " if self.or_zero else "") + (" and ".join(parts) or "a finite number")


def flag(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    or_zero: bool = False,
    count: int | None = None,
    fixed: bool = False,
) -> Any:
    """A dataclass field that `define_flags` turns into an absl flag.

    Args:
      minimum, maximum, above, below: the range of a number, or of each number of a list. Every number needs one.
      or_zero: 0 is allowed too, though it is outside that range.
      count: how many values a list must have, if it is given.
      fixed: the value must stay the same when a run is resumed.
    """
    return dataclasses.field(default=default, metadata={
        "help": help_text, "range": Range(minimum, maximum, above, below, or_zero), "count": count, "fixed": fixed})


class Setting(NamedTuple):
    """One flag, as the command's dataclass declares it."""

    group: str  # field of the group in the command's dataclass; "" where it has no groups
    name: str
    kind: Any  # its type
    default: Any
    help: str
    range: Range
    count: int | None
    fixed: bool

    @property
    def required(self) -> bool:
        return isinstance(self.default, str) and self.default == REQUIRED


def settings_of(config: Any) -> Iterator[Setting]:
    """The settings of a command's dataclass, in reading order; an instance's values are taken as the defaults."""
    config = config() if isinstance(config, type) else config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (setting._replace(group=field.name) for setting in settings_of(value))
        else:
            kind = typing.get_type_hints(type(config))[field.name]
            yield Setting("", field.name, kind, value, **field.metadata)


def values_of(config: Any) -> dict[str, Any]:
    """{flag: value} of an instance, its groups flattened."""
    return {setting.name: setting.default for setting in settings_of(config)}


def with_values(config: Any, **values: Any) -> Any:
    """The instance with other values, each in the group that declares its name."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            own = {each.name: values.pop(each.name) for each in dataclasses.fields(value) if each.name in values}
            changes[field.name] = dataclasses.replace(value, **own)
        elif field.name in values:
            changes[field.name] = values.pop(field.name)
    if values:
        raise TypeError(f"{type(config).__name__} has no setting {', '.join(values)}")
    return dataclasses.replace(config, **changes)


class _Number(flags.ArgumentParser):
    """Parses an int or float and checks its range."""

    def __init__(self, kind: type, bounds: Range):
        self._parser = flags.IntegerParser() if kind is int else flags.FloatParser()
        self._kind, self._bounds = kind, bounds
        self.syntactic_help = ""

    def parse(self, argument: Any) -> float:
        value = self._parser.parse(argument)
        if not self._bounds.holds(value):
            raise ValueError(f"it must be {self._bounds}")
        return value

    def flag_type(self) -> str:
        return self._kind.__name__


class _List(flags.ListParser):
    """Parses comma-separated values, each with a parser of its own, and checks how many there are."""

    def __init__(self, each: flags.ArgumentParser | None, count: int | None):
        super().__init__()
        self._each, self._count = each, count

    def parse(self, argument: Any) -> list:
        values = super().parse(argument)
        if values and self._count not in (None, len(values)):
            raise ValueError(f"it takes {self._count} comma-separated values")
        return values if self._each is None else [self._each.parse(value) for value in values]


def define_flags(config: Any, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for each setting of a command's dataclass."""
    for setting in settings_of(config):
        _, name, kind, default, help_text, bounds, count, _ = setting
        default = None if setting.required else default
        element = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if element in (int, float) and bounds == Range(None, None, None, None):
            raise TypeError(f"the flag --{name} is a number without a range")
        if typing.get_origin(kind) is typing.Literal:
            flags.DEFINE_enum(name, default, list(typing.get_args(kind)), help_text, flag_values)
        elif typing.get_origin(kind) is tuple:
            parser = _List(_Number(element, bounds) if element in (int, float) else None, count)
            flags.DEFINE(parser, name, list(default), help_text, flag_values, flags.ListSerializer(","))
        elif kind in (int, float):
            flags.DEFINE(_Number(kind, bounds), name, default, help_text, flag_values)
        else:
            define = {bool: flags.DEFINE_bool, str: flags.DEFINE_string, str | None: flags.DEFINE_string,
                      Repeated: flags.DEFINE_multi_string}[kind]
            define(name, default, help_text, flag_values=flag_values)


def parse_flags(
    config: Any,
    arguments: Sequence[str],
    flag_values: flags.FlagValues = flags.FLAGS,
    *,
    takes_others: bool = False,
) -> tuple[Any, list[str]]:
    """(the command's configuration, the arguments that are no flags of its own) of sys.argv-like arguments.

    Raises flags.Error for a flag that does not exist (naming the nearest), a value that is wrong or out of range, and
    flags that are required and absent; and, unless takes_others is set, for arguments that are no flags.
    """
    try:
        remaining = flag_values(list(arguments), known_only=takes_others)[1:]
    except flags.UnrecognizedFlagError as error:
        near = nearest(error.flagname, [setting.name for setting in settings_of(config)])
        advice = f": did you mean --{near}?" if near else ""
        raise flags.Error(f"there is no flag --{error.flagname}{advice}") from None
    if remaining and not takes_others:
        raise flags.Error(f"not a flag: {remaining[0]!r}")
    missing = [f"--{each.name}" for each in settings_of(config) if each.required and not flag_values[each.name].value]
    if missing:
        raise flags.Error(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required")
    values = {setting.name: flag_values[setting.name].value for setting in settings_of(config)}
    instance = config() if isinstance(config, type) else config
    return with_values(instance, **{
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}), remaining


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that is most like `word`, or contains it; "" if none is near."""
    containing = [name for name in known if word in name]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return (containing or close or [""])[0]


def describe_flags(config: Any) -> str:
    """The text of --help: every flag with its default, range and meaning, group by group."""
    lines, group = [], ""
    for setting in settings_of(config):
        if setting.group != group:
            group = setting.group
            lines += ["", f"{group.replace('_', ' ').capitalize()}:"]
        lines += [f"  {_headline(setting)}", *textwrap.wrap(
            setting.help, HELP_WIDTH, initial_indent="      ", subsequent_indent="      ")]
    return "\n".join(lines)


def _headline(setting: Setting) -> str:
    """--name=default (range or choices)."""
    notes = []
    if setting.required:
        notes.append("required")
    if typing.get_origin(setting.kind) is typing.Literal:
        notes.append(" | ".join(choice or '""' for choice in typing.get_args(setting.kind)))
    elif setting.range != Range(None, None, None, None):
        notes.append(str(setting.range))
    if setting.kind is bool:
        shown = f"--{setting.name}={str(setting.default).lower()}"
    elif setting.required or setting.default in ("", (), None):
        shown = f"--{setting.name}="
    elif isinstance(setting.default, tuple):
        shown = f"--{setting.name}={','.join(map(str, setting.default))}"
    else:
        shown = f"--{setting.name}={setting.default}"
    return shown + (f"   ({'; '.join(notes)})" if notes else "")


def run_program(
    program: str,
    config: Any,
    function: Callable[..., int | None],
    arguments: Sequence[str],
    *,
    description: str = "",
    takes_others: bool = False,
) -> typing.NoReturn:
    """Parses the arguments (without the program's name), calls function(configuration) and exits.

    The exit status is what the function returns (None is 0); 2 for a usage error; 130 for Ctrl-C; 1 for ValueError,
    OSError and FloatingPointError, with the reason on the last line of stderr. --help prints the description and the
    flags. With takes_others the function also gets the arguments that are no flags of its own.
    """
    define_flags(config)
    parsed = []

    def parse(arguments: list[str]) -> list[str]:
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(arguments):
            print(f"{program} [--flag=value ...]\n\n{description.strip()}\n{describe_flags(config)}\n\n"
                  "--flagfile=FILE reads flags from a file, one a line; flags after it override its own.")
            sys.exit(0)
        try:
            parsed.extend(parse_flags(config, arguments, takes_others=takes_others))
        except flags.Error as error:
            _fail(program, error, 2)
        return arguments[:1]

    def run(_: list[str]) -> int:
        quiet_libraries()
        settings, others = parsed
        try:
            return (function(settings, others) if takes_others else function(settings)) or 0
        except flags.Error as error:
            _fail(program, error, 2)
        except (ValueError, OSError, FloatingPointError) as error:
            _fail(program, error, 1)
        except KeyboardInterrupt:
            _fail(program, "stopped by Ctrl-C", 130)

    app.run(run, argv=[program, *arguments], flags_parser=parse)


def _fail(program: str, reason: Any, status: int) -> typing.NoReturn:
    print(f"{program.removeprefix('python ')}: {reason}", file=sys.stderr)
    sys.exit(status)
