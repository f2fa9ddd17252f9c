"""ctr-prepare: convert a raw log to the schema, vocabularies and columns that ctr-train reads."""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED, add_pseudonym_key_argument
from model.data.data_folder import add_data_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ctr-prepare", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("experiment", type=Path, nargs="?", help="an experiment's TOML file")
    source.add_argument("--config", type=Path, metavar="TOML", help="an experiment's file, or a file with only [data]")
    add_data_argument(parser)
    add_pseudonym_key_argument(parser)
    options = parser.parse_args(arguments)

    limit_threads()
    # Almost all that imports allocate lives until the process ends. Looking for garbage in it would take 0.3 s.
    gc.disable()

    from rich.console import Console

    from contract.pseudonyms import open_pseudonymizer
    from model.data.prepare.missing_files import check_files_exist
    from model.data.prepare.prepare import prepare
    from model.data.prepare.summary import split_lines, summary, warnings
    from model.data_config import read_data

    if options.config is None:
        # Checking the [model] section requires torch. --config checks only [data], so it works without torch.
        from model.experiment_config import read_experiment

    gc.freeze()  # No later collection looks at it either.
    gc.enable()
    try:
        data = read_data(options.config) if options.config else read_experiment(options.experiment).data
        check_files_exist(options.config or options.experiment, options.data, data)
        pseudonyms = open_pseudonymizer(options.pseudonym_key)
        if options.pseudonym_key is not None and not data.has_pseudonyms:
            raise ValueError('--pseudonym-key has no effect, because no field has pseudonym = "hmac". Remove it.')
        prepared = prepare(options.data, data, pseudonyms)
    except (OSError, ValueError) as error:
        print(f"ctr-prepare: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-prepare: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    console = Console()
    console.print(summary(prepared))
    for line in split_lines(prepared):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in warnings(prepared):
        console.print(f"warning: {line}", style="bold yellow", soft_wrap=True, markup=False)
    console.print(f"wrote {prepared.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
