"""What tools/recipe.sh hands a recipe to: shows its help, or decides which stages are to be done and does them.

Runs on any Python >= 3.8 with nothing but the standard library, so that a host without packages can run a recipe in a
container, and a run with nothing to do ends at once. The rules are in stagelib:

    plan.py         the stages as run.sh declares them; --help
    interpreter.py  which Python the stages run on; the resolved config and its cache
    state.py        what is recorded of a stage, and what has changed since
    decide.py       whether a stage is done, stale, interrupted...; the loop over the stages
    locks.py        one writer for a folder
    process.py      one command: its output, its log, its signals
    memory.py       was a killed command killed for memory?
    ending.py       the answer, which is the last that is said
    terminal.py     what is said on stdout
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
