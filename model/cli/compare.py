"""ctr-compare: test whether experiment A is better than B, or compare every model of a data set with STEC.

To compare two sets of seeds, it runs Welch's t-test, the unpaired test that the paper uses, on test AUC and logloss.
A and B are then reports (.json) or, with --runs, names or digests in a runs.jsonl. To compare two run folders, it runs
a paired bootstrap over the units of the test set, over its requests if the log has no units, or else over its rows.
With --all FOLDER (for example experiments/frappe), it writes a table and two pictures of all reports in that folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from model.data.data_folder import add_data_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ctr-compare", description=__doc__)
    parser.add_argument("a", nargs="?", help="a report (.json), a run folder, or a name or digest in --runs")
    parser.add_argument("b", nargs="?", help="the same, for the experiment to compare A with")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="compare all reports of a folder in models.md")
    parser.add_argument("--runs", type=Path, help="look up A and B in this runs.jsonl by name or digest")
    add_data_argument(parser)
    options = parser.parse_args(arguments)
    if len([name for name in (options.a, options.b) if name]) != (0 if options.all else 2):
        parser.error("specify either A and B, or --all FOLDER")

    limit_threads()

    from model.experiments.compare import compare
    from model.experiments.leaderboard import write_leaderboard

    try:
        if options.all:
            print(f"report: {write_leaderboard(options.all)}")
        else:
            print(compare(options.a, options.b, options.runs, options.data))
    except (OSError, ValueError) as error:
        print(f"ctr-compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
