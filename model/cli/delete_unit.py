"""Delete a unit, such as a user, from request logs and joined logs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from contract.system_errors import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    limit_threads()
    parser = argparse.ArgumentParser(prog="python -m model.cli.delete_unit", description=__doc__)
    parser.add_argument("unit", help="the unit as it is in the logs: its pseudonym, if the server has a key")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="folders of request logs and of joined logs"
    )
    options = parser.parse_args(arguments)

    from model.loop.delete_unit import delete_unit

    try:
        log, rows = delete_unit(options.unit, options.folders)
    except (OSError, ValueError) as error:
        print(f"delete_unit: {describe(error)}", file=sys.stderr)
        return 2
    deleted = sum(log.deleted.values())
    print(f"deleted {deleted:,} lines of request logs and {rows:,} rows of joined logs")
    if not deleted and not rows and not log.left:
        print(
            f"warning: no line and no row has the unit {options.unit!r}. Check its spelling. If the servers have a key "
            "for pseudonyms, name the unit's pseudonym.",
            file=sys.stderr,
        )
    for warning in log.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    return int(log.left > 0)


if __name__ == "__main__":
    sys.exit(main())
