"""``python -m tests.simulation``: the regret of every policy, what clients see, and the figures to reach.

--quick       few seeds (a minute)
--ablation    what each part of the selector is worth
--volumes     which tables, in requests per minute (20 2 200)
--jobs        processes
--from        the first seed: 0 is what the selector was made with, 100 and on it has never seen
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.simulation import figures
from tests.simulation.figures import Lab, Line, Seeds


def show(title: str, rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}\n")
    for row in rows:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few seeds")
    parser.add_argument("--ablation", action="store_true", help="what each part of the selector is worth")
    parser.add_argument("--volumes", type=int, nargs="*", default=[20, 2, 200], help="tables, in requests per minute")
    parser.add_argument("--jobs", type=int, default=1, help="processes that simulate side by side")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    args = parser.parse_args()
    with Lab(args.jobs, progress) as lab:
        return report(lab, args)


def report(lab: Lab, args: argparse.Namespace) -> int:
    seeds = Seeds.since(args.first, 3, 6, 1) if args.quick else Seeds.since(args.first)
    if args.ablation:
        show(
            f"What each part is worth: regret at 20 requests/min, {len(seeds.at_20)} seeds, all scenarios",
            figures.ablation(lab, seeds.at_20),
        )
        return 0
    for per_minute, its in ((20, seeds.at_20), (2, seeds.at_2), (200, seeds.at_200)):
        if per_minute in args.volumes:
            show(
                f"Cost above the oracle in %, {per_minute} requests/min, balanced, seeds {its[0]} to {its[-1]}",
                figures.table(lab, per_minute, its),
            )
    show(f"What clients see, 20 requests/min, {len(seeds.at_20)} seeds", figures.service(lab, 20, seeds.at_20))
    lines: list[Line] = [
        *figures.volume_lines(lab, seeds),
        *figures.moment_lines(lab, seeds),
        *figures.replica_lines(lab, seeds),
        figures.burst_line(),
        figures.outlier_line(),
        figures.decision_line(),
        figures.replay_line(),
    ]
    progress("")
    show(
        "Figures",
        [
            ["check", "asked", "reached", ""],
            *([li.check, li.asked, li.reached, "ok" if li.ok else "MISSED"] for li in lines),
        ],
    )
    missed = sum(not line.ok for line in lines)
    print(f"\n{len(lines) - missed} of {len(lines)} reached")
    return 0 if missed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
