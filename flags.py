"""A frozen dataclass is the one declaration of a command's flags: name, type, default and help text.

    @dataclasses.dataclass(frozen=True)
    class EmbedConfig:
        model: str = flag(REQUIRED, "MODEL: a folder (ours, Hugging Face's, sentence-transformers') or a hub id")
        batch_tokens: int = flag(8192, "tokens encoded at once")
        pooling: Literal["mean", "cls"] = flag("mean", "...")
        suite: tuple[str, ...] = flag((), "comma-separated names")
        grid: Repeated = flag((), "given once for each value, which may hold commas")
"""

import dataclasses
import typing
from typing import Any

from absl import flags

REQUIRED = "<required>"
Repeated = typing.NewType("Repeated", tuple)  # of str, one for each time that the flag is given
flags.disclaim_key_flags()  # the flags belong to the module that calls define_flags: its --help lists them


def flag(default: Any, help_text: str) -> Any:
    """A dataclass field that `define_flags` turns into an absl flag."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def define_flags(config_type: type, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag for each field of the dataclass."""
    types = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        kind, help_text = types[field.name], field.metadata["help"]
        required = isinstance(field.default, str) and field.default == REQUIRED
        default = None if required else field.default
        if typing.get_origin(kind) is typing.Literal:
            flags.DEFINE_enum(field.name, default, list(typing.get_args(kind)), help_text, flag_values)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(field.name, list(default), help_text, flag_values)
        else:
            define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float,
                      str: flags.DEFINE_string, Repeated: flags.DEFINE_multi_string}[kind]
            define(field.name, default, help_text, flag_values=flag_values)
        if required:
            flags.mark_flag_as_required(field.name, flag_values)


def config_from_flags(config_type: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """The dataclass with the values that the parsed flags have."""
    values = {field.name: flag_values[field.name].value for field in dataclasses.fields(config_type)}
    return config_type(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
