"""Run a step of the day as a subprocess, with a log file."""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from export.cycle.state import DoneStep, State, digests, inputs_digest, is_complete, write_state

TAIL_LINES = 15
STOP_TIMEOUT_S = 60


class StepFailed(RuntimeError):
    """A step exited with an error. The message names its log and shows the end of it."""


@dataclass(frozen=True)
class Step:
    """One command of the day.

    Attributes:
        name: The name in the report, and of the log.
        module: The module that `python -m` runs.
        arguments: Its arguments.
        outputs: Returns the files and folders that it has written. It may raise an error if they are not complete.
        after: The steps whose outputs it reads.
        files: Other files that it reads.
        codes: The exit codes that are results. All others are errors.
        also: What else decides which outputs it has. The command does not get it.
    """

    name: str
    module: str
    arguments: Sequence[str]
    outputs: Callable[[], Sequence[Path]]
    after: Sequence[str] = ()
    files: Sequence[Path] = ()
    codes: Sequence[int] = (0,)
    also: Sequence[str] = ()

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", self.module, *self.arguments]


@dataclass(frozen=True)
class Runner:
    """Runs the steps of a day that are not complete.

    Attributes:
        state: Which steps are complete. It is updated after each step.
        path: The file with the state.
        log: Returns the path of a step's log.
        lock: The file descriptor of the lock. Each step holds the lock too, so that no second ctr-cycle starts while a
            step is running whose ctr-cycle was killed.
        on_step: Called with a line about each step.
        used: The steps of this day, in their order. The state may contain others from an earlier attempt.
    """

    state: State
    path: Path
    log: Callable[[str], Path]
    lock: int
    on_step: Callable[[str], None]
    used: dict[str, DoneStep] = field(default_factory=dict)

    def run(self, step: Step) -> DoneStep:
        """Run a step, unless it is complete, and return what is known about it.

        Raises:
            StepFailed: It failed.
            ValueError: Its outputs are not complete.
            OSError: Its log or the state cannot be written.
        """
        inputs = self.inputs(step)
        done = self.state.steps.get(step.name)
        if done is not None and is_complete(done, inputs):
            self.on_step(f"{step.name}: complete, not repeated")
            self.used[step.name] = done
            return done
        started_s = time.monotonic()
        code = run_command(step, self.log(step.name), self.lock)
        seconds = round(time.monotonic() - started_s, 2)
        done = self.record(step, inputs, seconds, code)
        self.on_step(f"{step.name}: {seconds:.1f} s")
        return done

    def inputs(self, step: Step) -> str:
        """Return the digest of what a step reads now."""
        earlier = [self.state.steps[name] for name in step.after]
        return inputs_digest([step.module, *step.arguments, *step.also], digests(step.files), earlier)

    def record(self, step: Step, inputs: str, seconds: float = 0.0, code: int = 0) -> DoneStep:
        """Record that a step is complete, and return what is known about it.

        Raises:
            ValueError: Its outputs are not complete.
            OSError: The state cannot be written.
        """
        outputs = digests(step.outputs())
        done = DoneStep(shlex.join(step.command), inputs, outputs, seconds, code)
        self.state.steps[step.name] = self.used[step.name] = done
        write_state(self.path, self.state)
        return done


def run_command(step: Step, log: Path, lock: int) -> int:
    """Run a step's command, write its output to its log, and return its exit code.

    Raises:
        StepFailed: It exited with an error.
    """
    tail: deque[bytes] = deque(maxlen=TAIL_LINES)
    problem: OSError | None = None
    # The output goes through this process, so that the message shows its end even if a full disk truncates the log.
    # Without a buffer, closing the log cannot fail.
    with log.open("wb", buffering=0) as file:
        write(file, f"$ {shlex.join(step.command)}\n".encode())
        with start(step, lock) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    tail.append(line)
                    try:
                        write(file, line)
                    except OSError as error:
                        problem = error
                code = process.wait()
            except BaseException:
                stop(process)
                raise
    if code not in step.codes:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        end = b"".join(tail).decode(errors="replace").rstrip()
        raise StepFailed(f"{step.name} {how}. The end of {log}:\n{end}{free_space(log.parent, end)}")
    if problem is not None:
        raise problem
    return code


def free_space(folder: Path, output: str) -> str:
    """Return a line with the free space on the disk of a folder, if a step says that a disk is full, otherwise ""."""
    if os.strerror(errno.ENOSPC) not in output:
        return ""
    return f"\nThe disk with {folder} has {shutil.disk_usage(folder).free / 2**20:,.0f} MiB free."


def write(file: FileIO, content: bytes) -> None:
    """Write to a log. If the disk is full, the error names the file."""
    try:
        file.write(content)
    except OSError as error:
        error.filename = file.name
        raise


def start(step: Step, lock: int) -> "subprocess.Popen[bytes]":
    """Start a step's command."""
    return subprocess.Popen(  # noqa: S603
        step.command,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to exit, and kill it if it does not."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
