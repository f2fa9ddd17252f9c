"""`python -m service` is ctr-serve: a supervisor and its workers. Settings are CTR_* variables, or flags."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from service.runtime.cpu_quota import available_cpus
from service.settings import Settings, SettingsError, read_settings
from service.telemetry import json_logging
from service.telemetry.metrics_folder import shared_folder

BACKLOG = 2048
FLAGS = ("bundle", "store", "workers")


class CannotListen(OSError):
    """Host and port cannot be had."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after SIGTERM or SIGINT, 2 when it cannot start: then one sentence says why."""
    arguments = _arguments(argv)
    # This imports numpy, which takes 0.1 s and which --help does not need.
    from service.models.store import StoreError

    json_logging.set_up()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)  # until the supervisor takes them
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until then: what is current is loaded anyway
    try:
        _take_flags(arguments)
        settings = read_settings(os.environ)
        with ExitStack() as stack:
            listeners = [stack.enter_context(_listen(settings.host, port)) for port in _ports(settings)]
            metrics = stack.enter_context(shared_folder())
            return asyncio.run(_supervise(settings, listeners, metrics, arguments.print_curl))
    except (SettingsError, StoreError, CannotListen) as error:
        print(f"ctr-serve: {error}", file=sys.stderr)
        return 2


def _end_at_once(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("ctr-serve", description="Serves a bundle. Settings are CTR_* variables.")
    parser.add_argument("--bundle", type=Path, help="CTR_BUNDLE")
    parser.add_argument("--store", type=Path, help="CTR_STORE: a folder of ctr-store, whose current bundle is served")
    parser.add_argument("--workers", type=int, help="CTR_WORKERS; default: one for each CPU of the quota")
    parser.add_argument("--print-curl", action="store_true", help="print a request that works, once ready")
    return parser.parse_args(argv)


def _take_flags(arguments: argparse.Namespace) -> None:
    """As variables, for the workers, too. One that names the model takes the place of either variable that does."""
    given = {name: str(value) for name in FLAGS if (value := getattr(arguments, name)) is not None}
    replaced = set(given) | ({"bundle", "store"} if {"bundle", "store"} & set(given) else set())
    for name in list(os.environ):
        if name.upper().removeprefix("CTR_").lower() in replaced:
            del os.environ[name]
    os.environ.update({f"CTR_{name.upper()}": value for name, value in given.items()})


async def _supervise(settings: Settings, listeners: Sequence[socket.socket], metrics: Path, print_curl: bool) -> int:
    # Now: prometheus_client looks at the variable when it is imported.
    from service.processes.supervisor import Supervisor

    workers = settings.workers or available_cpus()
    return await Supervisor(settings, workers, listeners, metrics, print_curl).run()


def _ports(settings: Settings) -> list[int]:
    return [settings.port, *([] if settings.admin_port is None else [settings.admin_port])]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port} ({error.strerror}): set CTR_HOST or CTR_PORT") from error


if __name__ == "__main__":
    sys.exit(main())
