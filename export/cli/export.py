"""ctr-export: write a run's bundle for ctr-serve, after checking it against torch."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.data.data_folder import add_data_argument
from model.experiments.run_check import check_run

if TYPE_CHECKING:
    from model.data.prepare.prepared import Prepared


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ctr-export", description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder that ctr-train wrote")
    parser.add_argument("bundle", type=Path, help="the bundle to write; an existing bundle there is replaced")
    add_data_argument(parser)
    options = parser.parse_args(arguments)

    try:
        check_run(options.run)
    except ValueError as error:
        print(f"ctr-export: {error}", file=sys.stderr)
        return 2
    limit_threads()

    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from contract.calibration import CALIBRATION, read_fitted
    from export.bundle import export, missing_parts
    from export.golden import REQUESTS
    from model.experiments.run_folder import open_run

    try:
        model, experiment, _, _ = open_run(options.run)
        prepared = log_of_run(options.run, options.data / experiment.data.prepared)
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
            progress.add_task("folding, exporting and checking against torch")
            manifest, difference = export(options.run, options.bundle, prepared)
    except (OSError, ValueError) as error:
        print(f"ctr-export: {describe(error)}", file=sys.stderr)
        return 2
    print(f"{options.bundle}: {manifest.name}, version {manifest.version[:12]}")
    if CALIBRATION in manifest.files:
        fitted = read_fitted(options.bundle / CALIBRATION)
        segments = f", {len(fitted.segments)} segments of {fitted.segment_field}" if fitted.segment_field else ""
        print(f"{CALIBRATION}: {fitted.method}, fitted on {fitted.clicks:,} clicks in {fitted.rows:,} rows{segments}")
    print(f"onnxruntime and torch differ by at most {difference:.1g} in probability, over {REQUESTS} golden requests")
    for warning in manifest.warnings or ():
        print(f"ctr-export: warning: {warning}", file=sys.stderr)
    for message in missing_parts(manifest, model, prepared):
        print(f"ctr-export: {message}", file=sys.stderr)
    for rule in manifest.cascade:
        share = f"recall {rule.recall:.4f}, scored in full {rule.scored:.1%}"
        print(f"cascade, best {rule.k} of {rule.candidates}: {share}")
    return 0


def log_of_run(run: Path, folder: Path) -> "Prepared | None":
    """Return the prepared log of a run, or None. Without it, a bundle works, but cannot have a cascade or a reference.

    If the log is unusable, the reason is printed on stderr.

    Args:
        run: The run folder.
        folder: The expected folder of the run's prepared log.
    """
    from contract.reference import REFERENCE
    from model.data.prepare.prepared import read_prepared
    from model.experiments.run_folder import check_log_of_run

    try:
        prepared = read_prepared(folder)
        check_log_of_run(run, prepared)
    except ValueError as error:
        print(f"ctr-export: no cascade and no {REFERENCE}: {error} (--data sets the data folder)", file=sys.stderr)
        return None
    return prepared


if __name__ == "__main__":
    sys.exit(main())
