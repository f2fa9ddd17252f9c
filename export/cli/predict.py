"""ctr-predict: score the rows of files with a run or a bundle as the server would."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED, add_pseudonym_key_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    limit_threads()
    options = parser().parse_args(arguments)

    from export.run_or_bundle import is_bundle

    try:
        is_bundle(options.folder)  # a wrong folder is reported before the slow imports
    except ValueError as error:
        print(f"ctr-predict: {error}", file=sys.stderr)
        return 2

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from contract.pseudonyms import check_pseudonym_key, open_pseudonymizer
    from export.predict.output import check_output
    from export.predict.predict import open_inputs, predict
    from export.predict.rows import count_rows
    from export.predict.scorer import open_scorer
    from model.data.readers.named import find_named_files
    from model.data_config import read_data

    try:
        sources = find_named_files(options.files).sources
        check_output(options.out, [source.path for source in sources])
        data = read_data(options.config) if options.config is not None else None
        pseudonyms = open_pseudonymizer(options.pseudonym_key)
        scorer = open_scorer(options.folder)
        check_pseudonym_key(scorer.schema, pseudonyms)
        frames = open_inputs(scorer, sources, options.keep, data)
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("rows", total=count_rows(frames))
            summary = predict(
                scorer,
                frames,
                options.out,
                options.keep,
                options.on_bad_row == "null",
                lambda rows: progress.advance(task, rows),
                pseudonyms,
            )
    except (OSError, ValueError) as error:
        print(f"ctr-predict: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-predict: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    if summary.bad:
        print(
            f"ctr-predict: {summary.bad:,} rows could not be encoded, and have no probability. {summary.first_bad}",
            file=sys.stderr,
        )
    print(f"wrote {options.out}: {summary.rows:,} rows")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="ctr-predict", description=__doc__)
    made.add_argument("folder", type=Path, help="a run folder (from ctr-train) or a bundle (from ctr-export)")
    made.add_argument(
        "files", nargs="+", metavar="FILE", help="files, folders or globs: .parquet, .csv, .tsv, .txt, also .gz or .zst"
    )
    made.add_argument("--out", type=Path, required=True, help="the file to write: .parquet, .csv or .tsv")
    made.add_argument("--keep", action="append", default=[], metavar="COLUMN", help="copy this column; may be repeated")
    made.add_argument(
        "--on-bad-row",
        choices=("error", "null"),
        default="error",
        help="for a row that cannot be encoded: stop with an error, or write null; default: error",
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="TOML",
        help="an experiment whose [data] section describes the files (delimiter, columns, rename); default: the run's",
    )
    add_pseudonym_key_argument(made)
    return made


if __name__ == "__main__":
    sys.exit(main())
