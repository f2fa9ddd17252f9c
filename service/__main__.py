"""The command ctr-serve, also `python -m service`: run a supervisor, which starts the workers."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from contract.cpu_quota import available_cpus, limit_threads
from contract.system_errors import HOW_TO_RAISE_LIMITS, OUT_OF_RESOURCES
from service.listening_socket import CannotListen, listen
from service.settings import Settings, SettingsError, read_settings
from service.telemetry import json_logging
from service.telemetry.metrics_folder import NoSpace, check_space, shared_folder

FLAGS = ("bundle", "store", "workers")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, or 2 if the server cannot start. In that case, the reason is printed to stderr
        as one line.
    """
    arguments = parse_arguments(argv)
    limit_threads()  # Must run before numpy is imported. The workers inherit the variables.
    # Imported here because the import takes 0.1 s (numpy), and --help does not need it.
    from contract.store import StoreError

    json_logging.set_up()
    # Until the supervisor handles signals, exit immediately on SIGTERM and SIGINT. Ignore SIGHUP, which requests a
    # reload, because startup loads the current bundle anyway.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        export_flags(arguments)
        settings = read_settings(os.environ)
        ports = [settings.port] if settings.admin_port is None else [settings.port, settings.admin_port]
        with ExitStack() as stack:
            listeners = [stack.enter_context(listen(settings.host, port)) for port in ports]
            metrics = stack.enter_context(shared_folder())
            workers = settings.workers or available_cpus()
            check_space(metrics, workers)
            return asyncio.run(supervise(settings, workers, listeners, metrics, arguments.print_curl))
    except (SettingsError, StoreError, CannotListen, NoSpace) as error:
        print(f"ctr-serve: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in OUT_OF_RESOURCES:
            raise
        print(f"ctr-serve: {error.strerror}. {HOW_TO_RAISE_LIMITS}", file=sys.stderr)
        return 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "ctr-serve",
        description="Serve a click-through-rate model over HTTP. All settings are CTR_* environment variables, listed "
        "in docs/configuration.md; the flags below override three of them.",
    )
    parser.add_argument("--bundle", type=Path, help="folder of the bundle to serve (CTR_BUNDLE)")
    parser.add_argument("--store", type=Path, help="folder of a store whose current bundle is served (CTR_STORE)")
    parser.add_argument("--workers", type=int, help="number of workers (CTR_WORKERS); default: one per available CPU")
    parser.add_argument("--print-curl", action="store_true", help="print an example request when the server is ready")
    return parser.parse_args(argv)


def export_flags(arguments: argparse.Namespace) -> None:
    """Set the environment variables that correspond to the flags, so that the workers inherit them.

    Both `--bundle` and `--store` override CTR_BUNDLE as well as CTR_STORE.
    """
    given = {name: str(value) for name in FLAGS if (value := getattr(arguments, name)) is not None}
    replaced = set(given) | ({"bundle", "store"} if {"bundle", "store"} & set(given) else set())
    for name in list(os.environ):
        if name.upper().removeprefix("CTR_").lower() in replaced:
            del os.environ[name]
    os.environ.update({f"CTR_{name.upper()}": value for name, value in given.items()})


async def supervise(
    settings: Settings, workers: int, listeners: Sequence[socket.socket], metrics: Path, print_curl: bool
) -> int:
    """Run the supervisor, and return the exit code."""
    # Imported here because prometheus_client reads an environment variable at import, and shared_folder() sets it.
    from service.processes.supervisor import Supervisor

    return await Supervisor(settings, workers, listeners, metrics, print_curl).run()


if __name__ == "__main__":
    sys.exit(main())
