"""``python -m speechlab.corpora NAME --to downloads`` fetches a corpus; ``--list`` shows which there are."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import UserError, cli
from . import NAMES, load


def table() -> str:
    """All corpora, a line each: name, what it is, licence."""
    rows = []
    for name in NAMES:
        try:
            module = load(name)
            rows.append((name, module.ABOUT, module.LICENSE))
        except UserError as error:  # a package that only this corpus needs
            rows.append((name, str(error), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:{widths[0]}}  {about:{widths[1]}}  {licence}".rstrip() for name, about, licence in rows)


@cli
def main(argv: list[str] | None = None) -> int:
    """Fetch one corpus and print the folder it is in."""
    parser = argparse.ArgumentParser(prog="python -m speechlab.corpora", description=__doc__)
    parser.add_argument("name", nargs="?", help="which corpus to fetch")
    parser.add_argument("--to", type=Path, default=Path(os.environ.get("SPEECHLAB_DOWNLOADS") or "downloads"),
                        help="the folder of all downloads ($SPEECHLAB_DOWNLOADS, else downloads)")
    parser.add_argument("--list", action="store_true", help="list the corpora")
    args = parser.parse_args(argv)
    if args.list:
        print(table())
        return 0
    if args.name is None:
        parser.error("which corpus? --list names them")
    corpus = load(args.name)
    try:
        args.to.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--to {args.to}: can't make this folder ({error.strerror})") from error
    print(corpus.fetch(args.to))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
