"""ctr-inspect: look at a log, warn about its values, and write a first experiment for it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED
from model.data.data_folder import add_data_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    limit_threads()
    parser = argparse.ArgumentParser(prog="ctr-inspect", description=__doc__)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="files, folders or globs: .parquet, .csv, .tsv, .txt, also .gz or .zst"
    )
    parser.add_argument("--out", type=Path, metavar="TOML", help="write a first experiment to this file")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_data_argument(parser)
    options = parser.parse_args(arguments)

    from rich.console import Console

    from model.atomic_folder import write_whole
    from model.data.inspect.inspect import inspect_log
    from model.data.inspect.report import table

    out: Path | None = options.out
    try:
        if out is not None and out.exists() and not options.force:
            raise ValueError(f"{out} exists. Choose another name, or add --force to replace it.")
        name = out.stem if out is not None else "shop"
        inspected = inspect_log(options.files, options.data, name)
        console = Console()
        console.print(table(inspected.sample, inspected.found, inspected.total))
        for line in inspected.warnings:
            console.print(f"warning: {line}", style="bold yellow", soft_wrap=True, markup=False)
        if out is not None:
            write_whole(out, inspected.experiment().encode())
    except (OSError, ValueError) as error:
        print(f"ctr-inspect: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-inspect: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    if out is None:
        print("To write a first experiment, add --out shop.toml.")
    else:
        print(f"wrote {out}. Check it, and then run: ctr-prepare {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
