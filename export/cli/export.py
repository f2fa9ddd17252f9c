"""ctr-export: write a run's bundle for ctr-serve, after checking it against torch.

With --requests, the reference for drift is measured on the newest 24 hours of the request log: all candidates that the
server scored. Without it, it is measured on the run's validation set. See docs/operations.md.
"""

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
    from contract.bundle import Manifest
    from contract.schema import FeatureSchema
    from export.request_sample import RequestSample
    from model.data.prepare.prepared import Prepared


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(arguments)

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
        model, experiment, schema, _ = open_run(options.run)
        sample = read_requests(options, schema)
        prepared = log_of_run(options.run, options.data / experiment.data.prepared, sample is not None)
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
            progress.add_task("folding, exporting and checking against torch")
            manifest, difference = export(options.run, options.bundle, prepared, sample)
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
    for message in missing_parts(manifest, model, prepared, sample):
        print(f"ctr-export: {message}", file=sys.stderr)
    print_reference(options.bundle, manifest, schema, sample)
    for rule in manifest.cascade:
        share = f"recall {rule.recall:.4f}, scored in full {rule.scored:.1%}"
        print(f"cascade, best {rule.k} of {rule.candidates}: {share}")
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's arguments. Exits with a message if one is wrong."""
    parser = argparse.ArgumentParser(prog="ctr-export", description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder that ctr-train wrote")
    parser.add_argument("bundle", type=Path, help="the bundle to write; an existing bundle there is replaced")
    add_data_argument(parser)
    parser.add_argument(
        "--requests",
        type=Path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="measure the reference on the finished files in these folders of the request log, instead of the "
        "validation set; use it if the run's log has only candidates that were shown, as a joined log",
    )
    parser.add_argument(
        "--requests-until",
        metavar="TIME",
        help="the first moment after the 24 hours of --requests; default: the end of the log",
    )
    options = parser.parse_args(arguments)
    if options.requests_until is not None and options.requests is None:
        parser.error("--requests-until needs --requests")
    return options


def read_requests(options: argparse.Namespace, schema: "FeatureSchema") -> "RequestSample | None":
    """Return the requests of --requests, or None. What could not be read is printed on stderr.

    Raises:
        ValueError: A path is not the request log, or --requests-until is not a time.
    """
    if options.requests is None:
        return None
    from export.request_sample import sample_requests
    from model.loop.lines import milliseconds

    until = options.requests_until
    try:
        until_ms = None if until is None else milliseconds(until)
    except ValueError as error:
        raise ValueError(f"--requests-until: {error}") from error
    sample = sample_requests(options.requests, until_ms, schema)
    skipped = sample.skipped
    for count, what in (
        (skipped.unreadable, "lines that are truncated, or not from a request log"),
        (skipped.newer, "lines in a newer format"),
        (skipped.files, "files that were deleted meanwhile"),
    ):
        if count:
            print(f"ctr-export: warning: {sample}: skipped {count:,} {what}", file=sys.stderr)
    return sample


def print_reference(
    bundle: Path, manifest: "Manifest", schema: "FeatureSchema", sample: "RequestSample | None"
) -> None:
    """Print what the reference was measured on, if the bundle has one."""
    from contract.reference import REFERENCE, read_reference

    if REFERENCE not in manifest.files:
        return
    rows = f"{REFERENCE}: measured on {read_reference(bundle, schema).rows:,}"
    if sample is None:
        print(f"{rows} rows of the validation set")
    else:
        requests = f"{len(sample.lines):,} of the {sample.total:,} scored requests"
        print(f"{rows} candidates in {requests} from {sample.period} in {sample}")


def log_of_run(run: Path, folder: Path, has_requests: bool = False) -> "Prepared | None":
    """Return the prepared log of a run, or None. Without it, a bundle works, but cannot have a cascade or a reference.

    If the log is unusable, the reason is printed on stderr.

    Args:
        run: The run folder.
        folder: The expected folder of the run's prepared log.
        has_requests: Whether the reference is measured on a request log instead.
    """
    from contract.reference import REFERENCE
    from model.data.prepare.prepared import read_prepared
    from model.experiments.run_folder import check_log_of_run

    try:
        prepared = read_prepared(folder)
        check_log_of_run(run, prepared)
    except ValueError as error:
        parts = "no cascade" if has_requests else f"no cascade and no {REFERENCE}"
        print(f"ctr-export: {parts}: {error} (--data sets the data folder)", file=sys.stderr)
        return None
    return prepared


if __name__ == "__main__":
    sys.exit(main())
