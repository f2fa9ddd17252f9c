"""The command ctr-collect, also `python -m service.collect`: store the events that clients report."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.listening_socket import CannotListen, listen
from service.settings import COLLECT_PREFIX, SettingsError

if TYPE_CHECKING:
    from service.collect.settings import CollectSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, or 2 if the server cannot start. In that case, the reason is printed to stderr
        as one line.
    """
    parser = argparse.ArgumentParser(
        "ctr-collect",
        description="Store impressions, clicks and conversions that clients send over HTTP. All settings are "
        "CTR_COLLECT_* environment variables, listed in docs/collect.md.",
    )
    parser.parse_args(argv)
    # Imported here because --help does not need them.
    import uvloop

    from service.collect.settings import read_collect_settings
    from service.http.uvicorn_support import UnsupportedUvicorn
    from service.processes.limits import check_descriptors, raise_descriptor_limit
    from service.telemetry import json_logging

    json_logging.set_up()
    for number in (signal.SIGTERM, signal.SIGINT):  # until the server handles signals
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = read_collect_settings(os.environ)
        raise_descriptor_limit()
        check_descriptors(settings, COLLECT_PREFIX)
        with listen(settings.host, settings.port, COLLECT_PREFIX) as listening:
            uvloop.run(serve(settings, listening))
    except (SettingsError, CannotListen, UnsupportedUvicorn) as error:
        print(f"ctr-collect: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(settings: "CollectSettings", listening: socket.socket) -> None:
    """Serve on a socket until a signal stops the server.

    Raises:
        SettingsError: A setting is invalid, or the folder is not writable.
    """
    import logging

    from service.collect.app import create_app
    from service.collect.openapi import EVENTS_PATH
    from service.http.protocol import DirectRoute
    from service.processes.server import BoundApp, Server

    app = create_app(settings)
    server = Server(app, DirectRoute(EVENTS_PATH, app.answer), settings)
    server.handle_signals()
    async with app.router.lifespan_context(app):
        host, port = listening.getsockname()[:2]
        logging.getLogger("service.collect").info(
            "listening on %s:%d, storing events in %s", host, port, settings.folder
        )
        await server.serve_on([BoundApp(listening, app)])


if __name__ == "__main__":
    sys.exit(main())
