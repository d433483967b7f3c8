"""Runs a recipe for tools/recipe.sh: shows its help, or decides which stages must run, and runs them.

It needs only Python >= 3.8 and the standard library. So a host without packages can run a recipe in a container, and a
run with nothing to do ends at once. Its parts are in stagelib:

    plan.py         the stages as run.sh declares them; --help
    interpreter.py  which Python the stages run on; the resolved config and its cache
    state.py        the record of a stage, and what has changed since
    decide.py       whether a stage must run; the loop over the stages
    locks.py        only one run at a time writes a folder
    process.py      one command: its output, its log, its signals
    memory.py       whether a command was killed because memory ran out
    ending.py       what is shown at the end
    terminal.py     writing to stdout
"""

from __future__ import annotations

import os
import sys

from stagelib.plan import Plan, Stop, help_text, nearest


def main(argv: list[str]) -> int:
    what, *words = argv
    if what == "unknown":
        Plan.script, option, names = words
        hint = nearest(option, ["--" + name for name in names.split()])
        raise Stop(f"unknown option {option}{hint} (--help lists them)", 2)
    plan = Plan(words)
    if what == "resolve":
        from stagelib import interpreter

        interpreter.resolved_config(plan)
        return 0
    if plan.flag("help"):
        print(help_text(plan), end="")
        return 0
    if plan.values["sweep"]:
        from stagelib import interpreter

        return interpreter.sweep(plan)
    from stagelib import decide

    return decide.run(plan)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except Stop as stop:
        sys.stdout.flush()
        print(f"{Plan.script}: {stop}" if stop.status == 2 else f"error: {stop}", file=sys.stderr)
        status = stop.status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `./run.sh --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 0
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror}; what was done before is kept, and the same "
              "command goes on from there", file=sys.stderr)
        status = 1
    raise SystemExit(status)
