"""allpairs: absl flags -> one command.

    python main.py COMMAND [--flag=value ...]        python main.py COMMAND --help

Each command is a function of one frozen dataclass; its fields are the command's flags (see flags.py).
"""

import importlib
import sys

from absl import app, flags

from flags import config_from_flags, define_flags
from sharding.host import keep_freed_memory, quiet_libraries

# command -> (module, config dataclass, function); the module is imported only when its command runs.
COMMANDS = {
    "prepare": ("data.prepare", "PrepareConfig", "prepare"),
    "teach": ("training.teach", "TeachConfig", "teach"),
    "train": ("training.train", "TrainConfig", "train"),
    "distill": ("training.distill", "DistillConfig", "distill"),
    "sweep": ("training.sweep", "SweepConfig", "sweep"),
    "evaluate": ("evaluation.evaluate", "EvaluateConfig", "evaluate"),
    "report": ("evaluation.report", "ReportConfig", "report"),
    "embed": ("model.inference", "EmbedConfig", "embed"),
    "convert": ("model.convert", "ConvertConfig", "convert"),
    "export": ("model.export", "ExportConfig", "export"),
}
TAKES_OTHERS = ("sweep", "report")  # commands whose function also takes the arguments that are none of their own flags


def usage() -> str:
    lines = [__doc__.strip(), "", "Commands:"]
    for command, (module, _, _) in COMMANDS.items():
        lines.append(f"  {command:10s} {importlib.import_module(module).__doc__.splitlines()[0]}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    command = argv[1] if len(argv) > 1 else ""
    if command in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if command else 2
    if command not in COMMANDS:
        print(f"main.py: unknown command {command!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    keep_freed_memory()
    module_name, config_name, function_name = COMMANDS[command]
    module = importlib.import_module(module_name)
    config_type = getattr(module, config_name)
    define_flags(config_type)
    function, takes_others = getattr(module, function_name), command in TAKES_OTHERS

    if {"--help", "-h"} & set(argv):
        print(f"python main.py {command} [--flag=value ...]\n\n{module.__doc__}\n{flags.FLAGS.main_module_help()}")
        return 0

    def parse(arguments: list[str]) -> list[str]:
        try:
            remaining = flags.FLAGS(arguments, known_only=takes_others)
            if len(remaining) > 1 and not takes_others:
                raise flags.Error(f"not a flag: {remaining[1]!r}")
        except flags.Error as error:
            print(f"main.py {command}: {error}", file=sys.stderr)
            sys.exit(2)
        return remaining

    def run(remaining: list[str]) -> int:
        quiet_libraries()
        try:
            config = config_from_flags(config_type)
            return (function(config, remaining[1:]) if takes_others else function(config)) or 0
        except flags.Error as error:
            print(f"main.py {command}: {error}", file=sys.stderr)
            return 2
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"main.py {command}: {error}", file=sys.stderr)
            return 1

    return app.run(run, argv=[f"{argv[0]} {command}", *argv[2:]], flags_parser=parse)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
