"""Processes that end, with all their children, when the benchmark that started them ends, however it ends.

Each child leads a process group of its own, with a guard process in it. The guard reads from a pipe whose other end
only the benchmark holds open. When that end closes, because the benchmark closed it or died (even of SIGKILL), the
guard kills the group.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

GUARD = """
import os, signal, sys
lifeline = int(sys.argv[1])
if os.fork():
    os.close(lifeline)
    os.execvp(sys.argv[2], sys.argv[2:])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
for descriptor in (0, 1, 2):
    os.close(descriptor)
os.read(lifeline, 1)
os.killpg(0, signal.SIGKILL)
"""


class Child(subprocess.Popen):
    """A running command. `end`, or the end of this process, kills it and all its children."""

    def __init__(self, command: list[str], **options):
        lifeline, self._lifeline = os.pipe()
        try:
            super().__init__([sys.executable, "-I", "-S", "-c", GUARD, str(lifeline), *command],
                             pass_fds=(lifeline,), start_new_session=True, **options)
        finally:
            os.close(lifeline)

    def end(self) -> None:
        """Safe to call twice."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self.wait()


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    """subprocess.run of a Child, without its `check` and `timeout`. The options are those of Popen."""
    child = Child(command, **options)
    try:
        output, errors = child.communicate()
    finally:
        child.end()
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


class WorkerProcess:
    """A process that answers one JSON line on stdout for each JSON line on stdin; its first line says that it is ready.

    It runs in `folder`, or in `working_folder` if one is given. Its stderr goes to a file in `folder`, which is quoted
    if it dies.
    """

    def __init__(self, command: list[str], folder: pathlib.Path, name: str, working_folder: pathlib.Path | None = None):
        self.name = name
        self.log = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with self.log.open("w") as log:
            self.process = Child(command, cwd=working_folder or folder, env=environment, text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **order) -> dict:
        """Sends one order and waits for its answer."""
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows in its missing answer
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise ValueError(f"the {self.name} process ended with status {code}:\n{self.log.read_text()[-4000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.end()


def stop_on_signals(program: str) -> None:
    """SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt: temporary folders are then removed."""

    def stop(number: int, _) -> None:
        print(f"{program}: stopped by {signal.Signals(number).name}", file=sys.stderr)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, stop)
