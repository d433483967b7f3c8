"""Locks: only one run at a time writes a folder. A lock is a folder ``.stages/lock`` with a file that names its owner.

The lock is made under another name, with its file in it, and then renamed. A rename onto a folder that is not empty
fails on every system, even on NFS; so nobody ever sees a lock without an owner. The owner is host, pid and the time
when the process began, because pids are used again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

from stagelib.plan import Stop
from stagelib.state import write
from stagelib.terminal import say

PATIENCE = 30.0  # seconds that a process of a killed run gets to save its work


def host() -> str:
    return os.uname().nodename


def began(pid: int) -> str:
    """When process ``pid`` began, as a text that one can compare; "" if it is gone (or a zombie)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return "" if fields[0] in "ZX" else f"{file.read().strip()} {fields[19]}"
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return ""
    ps = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]  # macOS
    state, _, start = subprocess.run(ps, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()


class Lock:
    """``with Lock(folders, what) as lock``. Stops with one line if another run writes one of the folders."""

    def __init__(self, folders: list[str], what: str):
        self.folders, self.held = folders, []
        self.owner = {"host": host(), "pid": os.getpid(), "began": began(os.getpid()), "what": what,
                      "since": time.strftime("%Y-%m-%d %H:%M:%S"), "child": 0, "child_began": ""}

    def __enter__(self) -> Lock:
        try:
            for folder in self.folders:
                self._acquire(folder)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self.held:
            place = self.held.pop()
            if _read(place).get("pid") == self.owner["pid"]:
                shutil.rmtree(place, ignore_errors=True)

    def child(self, pid: int) -> None:
        """Note in the lock which process group writes. If we are killed and it is not, the next run can end it."""
        self.owner.update(child=pid, child_began=began(pid))
        for place in self.held:
            if os.path.isdir(place):  # it may be gone: a fetch replaces its folder
                write(os.path.join(place, "owner.json"), json.dumps(self.owner))

    def _acquire(self, folder: str) -> None:
        place = os.path.join(folder, ".stages", "lock")
        aside = os.path.join(folder, ".stages", f".lock-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            write(os.path.join(aside, "owner.json"), json.dumps(self.owner))
            for _ in range(20):
                try:
                    os.rename(aside, place)
                except OSError:
                    if not os.path.isdir(place):
                        raise
                    self._remove_if_stale(place, folder)
                else:
                    self.held.append(place)
                    return
            raise Stop(f"{folder} is locked again and again by other runs: wait for them")
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _remove_if_stale(self, place: str, folder: str) -> None:
        owner = _read(place)
        if not owner and os.path.isdir(place) and time.time() - os.stat(place).st_mtime < 5:
            time.sleep(0.1)  # another run is just removing it
            return
        if owner:
            who = f"(pid {owner['pid']} on {owner['host']}, {owner['what']}, since {owner['since']})"
            if owner["host"] != host():
                raise Stop(f"another run is writing {folder} {who}: wait for it, or if it is gone: rm -r {place}")
            if began(owner["pid"]) == owner["began"] != "":
                raise Stop(f"another run is writing {folder} {who}: wait for it, or use --tag for an experiment of "
                           "its own")
            end_orphan(owner)
        grave = f"{place}-stale-{os.getpid()}"
        try:
            os.rename(place, grave)
        except OSError:
            return  # another run was faster
        if _read(grave) != owner:  # we took a new lock by mistake: put it back
            os.rename(grave, place)
        shutil.rmtree(grave, ignore_errors=True)


def _read(place: str) -> dict:
    try:
        with open(os.path.join(place, "owner.json"), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def end_orphan(owner: dict) -> None:
    """End the command that a killed run (kill -9) left behind: nobody would record its success or see its output.

    The command itself gets SIGTERM, so that a training can save. After PATIENCE seconds its whole group gets SIGKILL.
    """
    group = owner.get("child") or 0
    now = began(group) if group else ""
    if not group or (now and now != owner["child_began"]) or not _alive(group):
        return  # it is gone, and its pid may belong to another process now
    say(f"ending pid {group}, which a killed run left behind ({owner['what']})")
    try:
        os.kill(group, signal.SIGTERM)
    except ProcessLookupError:
        pass  # the leader is gone, but others of its group may not be
    until = time.monotonic() + PATIENCE
    while began(group) and time.monotonic() < until:
        time.sleep(0.05)
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
