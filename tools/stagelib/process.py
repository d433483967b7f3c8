"""Runs one command: copies its output to the terminal and the log, passes signals on, returns its exit status."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from typing import BinaryIO

from stagelib.terminal import forward

REQUEUE = 85  # exit status of a training that was told to end: it has saved, and shall be started again
GRACE = 10  # seconds from Ctrl-C to SIGKILL
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Log:
    """A log file in which each line is as it was at its end: of the many states of a progress bar, only the last one is
    kept."""

    def __init__(self, path: str, header: str):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.replace(path, path + ".1")
        self.file: BinaryIO = open(path, "wb", buffering=0)
        self.line = b""
        self._put(header.encode("utf-8", "surrogateescape"))

    def _put(self, text: bytes) -> None:
        """Write to the log. A full disk is no error here: the training may still find room for its checkpoints."""
        try:
            self.file.write(text)
        except OSError as error:
            forward(f"note: {self.file.name}: {error.strerror}: no more is logged\n".encode())
            self.file = open(os.devnull, "wb", buffering=0)

    def write(self, data: bytes) -> None:
        *whole, self.line = (self.line + data).split(b"\n")
        if whole:
            self._put(b"".join(_final(line) + b"\n" for line in whole))
        # A bar may run for hours without an end of line, so drop its old states. (The last "\r" stays: it may be half
        # of "\r\n".)
        if len(self.line) > 1 << 16:
            self.line = _final(self.line) + b"\r" * self.line.endswith(b"\r")

    def close(self) -> None:
        if _final(self.line):
            self._put(_final(self.line) + b"\n")
        self.file.close()


def _final(line: bytes) -> bytes:
    states = [state for state in _ESCAPES.sub(b"", line).split(b"\r") if state.strip()]
    return states[-1].rstrip() if states else b""


class Child:
    """Runs one command in a process group of its own, and passes signals on to it.

    Ctrl-C goes to the whole group. After GRACE seconds, or after a second Ctrl-C, SIGKILL follows. SIGTERM, SIGHUP (the
    terminal is gone; passed on as SIGTERM) and Slurm's SIGUSR1 go to the command alone, because it may need its helpers
    (data loaders) in order to save. For these there is no time limit.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.signal = 0  # the signal that shall end the run; 0: none came
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    def _received(self, number: int, frame: object) -> None:
        if self.process is None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            if number != signal.SIGALRM:
                raise SystemExit(128 + number)
            return
        if number == signal.SIGALRM or (number == signal.SIGINT and self.signal == signal.SIGINT):
            self._send(signal.SIGKILL, group=True)
        elif number == signal.SIGINT:
            self.signal = number
            self._send(number, group=True)
            signal.alarm(GRACE)
        elif number == signal.SIGUSR1:
            self._send(number, group=False)
        else:
            self.signal = self.signal or number
            self._send(signal.SIGTERM, group=False)

    def _send(self, number: int, group: bool) -> None:
        try:
            (os.killpg if group else os.kill)(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def run(self, command: list[str], env: dict[str, str], log: Log, started: Callable[[int], None]) -> int:
        """Run ``command`` to its end. Returns its exit status (128 + n for signal n). ``started`` is told its pid."""
        # Signals are blocked until the child is known; otherwise one that comes now would not be passed on to it.
        passed_on = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
        try:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                            stderr=subprocess.STDOUT, start_new_session=True,
                                            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, blocked))
        except OSError as error:
            raise OSError(error.errno, f"can't be run: {error.strerror}", command[0]) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            started(self.process.pid)
            self._forward(log)
            status = self.process.wait()
        finally:
            signal.alarm(0)
            self._send(signal.SIGKILL, group=True)  # ends helpers that are left (after an error here, the command too)
            self.process.wait()
            self.process = None
        return 128 - status if status < 0 else status

    def _forward(self, log: Log) -> None:
        """Copy the output until it ends. Don't wait for a helper that outlives the command and holds the pipe open."""
        pipe, ended = self.process.stdout.fileno(), 0.0
        while True:
            if not select.select([pipe], [], [], 0.2)[0]:
                if self.process.poll() is not None:
                    ended = ended or time.monotonic()
                    if time.monotonic() - ended > 1:
                        return
                continue
            data = os.read(pipe, 1 << 16)
            if not data:
                return
            forward(data)
            log.write(data)


def tail(path: str, lines: int = 20) -> str:
    """The last lines of a log, which are shown when a stage has failed."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 16)))
        text = file.read().decode("utf-8", "replace")
    return "".join(f"  | {line}\n" for line in text.splitlines()[-lines:] if not line.startswith("# "))


def shown(command: list[str], recipe: str, repo: str) -> str:
    """A command for copy and paste into a shell in the recipe's folder. Paths in the repository are made relative."""
    return shlex.join([os.path.relpath(word, recipe) if word.startswith(repo + "/") else word for word in command])
