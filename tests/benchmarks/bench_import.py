"""What `import speechlab` costs over Python's own start: pairs of fresh processes, in milliseconds.

    python tests/benchmarks/bench_import.py [--pairs 25]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=25)
    args = parser.parse_args()
    pairs = [(seconds("pass"), seconds("import speechlab")) for _ in range(args.pairs)]
    bare, both = (statistics.median(column) for column in zip(*pairs))
    more = statistics.median(b - a for a, b in pairs)
    print(f"python alone {1000 * bare:.1f} ms, with import speechlab {1000 * both:.1f} ms: "
          f"{1000 * more:.1f} ms more ({both / bare:.2f} x), medians of {args.pairs} pairs")


if __name__ == "__main__":
    main()
