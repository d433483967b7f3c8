"""What containers/cmd.sh costs a stage: a command through it against the engine called by hand, in milliseconds.

    eval "$(tests/containers/podman_up.sh)";    python tests/benchmarks/bench_cmd.py --engine podman
    eval "$(tests/containers/apptainer_up.sh)"; python tests/benchmarks/bench_cmd.py --engine apptainer
    python tests/benchmarks/bench_cmd.py --engine none

By hand means: the very line that --dry_run prints, started directly; for none the command itself. Rounds are
interleaved (A B, A B, ...), differences and ratios are taken round by round, and figures are medians over them with
their quartiles. The command is `true`, since a longer one would only hide the difference.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

CMD = Path(__file__).resolve().parents[2] / "containers" / "cmd.sh"


def seconds(command: list[str], cwd: str, env: dict[str, str]) -> float:
    """Wall time of one run, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def by_hand(cwd: str, env: dict[str, str], command: list[str]) -> list[str]:
    """The line that cmd.sh would run, without what names this one run."""
    shown = subprocess.run([CMD, "--dry_run", "--", *command], cwd=cwd, env=env, text=True, check=True,
                           stdout=subprocess.PIPE).stdout
    words = [word for word in shlex.split(shown) if word != "CUDA_VISIBLE_DEVICES="]
    if "--name" in words:
        at = words.index("--name")
        words[at:at + 4] = []
    return words


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:8.1f}  ({low:.1f} - {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=os.environ.get("SPEECHLAB_ENGINE", "none"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("command", nargs="*", default=["true"])
    args = parser.parse_args()
    env = {**os.environ, "SPEECHLAB_ENGINE": args.engine, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as cwd:
        hand = by_hand(cwd, env, args.command)
        ways = {"by hand": hand, "cmd.sh": [str(CMD), "--", *args.command]}
        for command in ways.values():  # caches, and cmd.sh's one look into the image
            seconds(command, cwd, env)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, command in ways.items():
                times[way].append(1000 * seconds(command, cwd, env))
    print(f"{args.engine}, {args.rounds} rounds of `{shlex.join(args.command)}`, ms: median (quartiles)")
    for way, values in times.items():
        print(f"  {way:12}{quartiles(values)}")
    pairs = list(zip(times["cmd.sh"], times["by hand"]))
    print(f"  {'difference':12}{quartiles([ours - theirs for ours, theirs in pairs])}")
    print(f"  {'ratio':12}{statistics.median(ours / theirs for ours, theirs in pairs):8.2f}")


if __name__ == "__main__":
    main()
