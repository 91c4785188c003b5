"""allpairs: train, use and evaluate sentence encoders.

    python main.py COMMAND [--flag=value ...]    runs a command
    python main.py COMMAND --help                describes a command and its flags

Each command is a function of one frozen dataclass, whose fields are the command's flags (see flags.py).
"""

import importlib
import sys

from flags import run_program
from sharding.host import keep_freed_memory

# command -> (module, config dataclass, function); the module is imported only when its command runs.
COMMANDS = {
    "mine": ("data.mine.mine", "MineConfig", "mine"),
    "filter": ("data.mine.filter.filter", "FilterConfig", "filter_files"),
    "prepare": ("data.prepare", "PrepareConfig", "prepare"),
    "inspect": ("evaluation.report.inspect", "InspectConfig", "inspect"),
    "teach": ("inference.teach", "TeachConfig", "teach"),
    "train": ("training.loop", "TrainConfig", "train"),
    "distill": ("training.distill", "DistillConfig", "distill"),
    "sweep": ("training.sweep", "SweepConfig", "sweep"),
    "evaluate": ("evaluation.evaluate", "EvaluateConfig", "evaluate"),
    "report": ("evaluation.report.report", "ReportConfig", "report"),
    "embed": ("inference.embed", "EmbedConfig", "embed"),
    "convert": ("model.files.convert", "ConvertConfig", "convert"),
    "export": ("model.files.export", "ExportConfig", "export"),
}
# Commands whose function also takes the arguments that are no flags of its own.
TAKES_OTHERS = ("prepare", "sweep", "report", "inspect")


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
    if command != "mine":
        keep_freed_memory()
    module_name, config_name, function_name = COMMANDS[command]
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        print(f"main.py {command}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    if command == "mine":  # its flags are those of the source that the next argument names
        return module.main(argv[2:])
    run_program(f"python main.py {command}", getattr(module, config_name), getattr(module, function_name), argv[2:],
                description=module.__doc__, takes_others=command in TAKES_OTHERS)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
