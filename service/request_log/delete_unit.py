"""Delete a unit, such as a user, from request logs: `python -m service.request_log.delete_unit UNIT FOLDER...`

It needs no training library, so it runs in the server's image. `python -m model.cli.delete_unit` also deletes the unit
from joined logs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.request_log_deletion import delete_lines
from contract.system_errors import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if no line of the unit is left, 1 if some are in files that are being written, 2 after an error."""
    parser = argparse.ArgumentParser(
        "python -m service.request_log.delete_unit",
        description="Delete a unit, such as a user, from request logs, while servers may be writing to them.",
    )
    parser.add_argument("unit", help="the unit as it is in the log: its pseudonym, if the server has a key")
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folders of request logs (CTR_REQUEST_LOG) or of shipped files",
    )
    options = parser.parse_args(arguments)
    try:
        for folder in options.folders:
            if not folder.is_dir():
                raise NotADirectoryError(f"{folder} is not a folder. Pass the folder of a request log.")
        result = delete_lines(options.unit, options.folders)
    except OSError as error:
        print(f"delete_unit: {describe(error)}", file=sys.stderr)
        return 2
    for path, lines in sorted(result.deleted.items()):
        print(f"{path}: deleted {lines:,} lines")
    print(f"deleted {sum(result.deleted.values()):,} lines from {len(result.deleted):,} files")
    for warning in result.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    return int(result.left > 0)


if __name__ == "__main__":
    sys.exit(main())
