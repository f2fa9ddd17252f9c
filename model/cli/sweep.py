"""ctr-sweep: train one or several base experiments at many points and choose the best point on valid alone.

Finished runs are lines of results/runs.jsonl beside the base experiments. A second call trains only the missing runs,
and several processes share the work. The page is results/NAME.md beside NAME.toml.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.cli.arguments import INTERRUPTED, add_device_argument
from model.data.data_folder import add_data_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 2 if a base has no complete point."""
    parser = argparse.ArgumentParser(prog="ctr-sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a sweep's TOML file: base, seeds, [grid], [[point]]")
    add_data_argument(parser)
    add_device_argument(parser)
    options = parser.parse_args(arguments)

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
        print("ctr-sweep: interrupted; the same command continues after the last finished epoch", file=sys.stderr)
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
            print(f"ctr-sweep: {base}: no point has all its runs, so none is chosen. See the report.", file=sys.stderr)
            exit_code = 2
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
