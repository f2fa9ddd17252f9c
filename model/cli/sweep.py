"""ctr-sweep: train one or more base experiments at many points, and choose the best point by validation metric alone.

Finished runs are recorded in results/runs.jsonl, next to the base experiments. If you run the command again, it trains
only the missing runs, and several processes can share the work. The report is written to results/NAME.md, next to
NAME.toml.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from model.cli.arguments import INTERRUPTED, add_device_argument
from model.data.data_folder import add_data_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, which is 2 if a base experiment has no complete point."""
    parser = argparse.ArgumentParser(prog="ctr-sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a sweep's TOML file: base, seeds, [grid], [[point]]")
    add_data_argument(parser)
    add_device_argument(parser)
    options = parser.parse_args(arguments)

    limit_threads()

    from model.experiments.run_registry import results_folder
    from model.experiments.sweep import sweep
    from model.training.device import keep_freed_memory

    keep_freed_memory()
    try:
        ranked = sweep(options.sweep, options.data, options.device)
    except (OSError, ValueError) as error:
        print(f"ctr-sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-sweep: interrupted; repeat the command to continue after the last finished epoch", file=sys.stderr)
        return INTERRUPTED
    print(f"report: {results_folder(options.sweep) / options.sweep.stem}.md")
    exit_code = 0
    for points in ranked:
        best = points[0]
        name = best.point.experiment.name
        if best.complete:
            print(f"best on valid: {name}")
        else:
            base = name.removesuffix(f": {best.point.label}")
            print(
                f"ctr-sweep: {base}: no point has completed all its runs, so none is chosen. See the report.",
                file=sys.stderr,
            )
            exit_code = 2
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
