"""`python -m service` is ctr-serve: one process, one worker, settings from CTR_* variables."""

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import msgspec
import uvicorn
import uvloop
from fastapi import FastAPI
from uvicorn.server import HANDLED_SIGNALS

from contract.bundle import BundleError
from service.app import create_app, drain
from service.example import example_request
from service.protocol import Protocol
from service.session import EngineMissing
from service.settings import Settings, SettingsError, read_settings

BACKLOG = 2048
DRAIN_S = 15
NOTICE_S = 0.5  # from "draining" to closing connections, for a balancer to hear it


class CannotListen(OSError):
    """Host and port cannot be had."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after SIGTERM or SIGINT, 2 when it cannot start: then one sentence says why."""
    parser = argparse.ArgumentParser("ctr-serve", description="Serves a bundle. Settings are CTR_* variables.")
    parser.add_argument("--print-curl", action="store_true", help="print a request that works, once ready")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_settings(os.environ)
        app = create_app(settings)
        server = Server(app)
        server.take_signals()
        with _listen(settings.host, settings.port) as listener:
            uvloop.run(_serve(app, server, listener, settings, arguments.print_curl))
    except (SettingsError, BundleError, EngineMissing, CannotListen) as error:
        print(f"ctr-serve: {error}", file=sys.stderr)
        return 2
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port} ({error.strerror}): set CTR_HOST or CTR_PORT") from error


class Server(uvicorn.Server):
    """Takes signals from the start on, and says that it drains before it does."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(_config(app))
        self._app = app

    def take_signals(self) -> None:
        # Uvicorn raises the signal once more when it is done; the parts still have to be closed then.
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        drain(self._app)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(NOTICE_S)
        await super().shutdown(sockets)


async def _serve(app: FastAPI, server: Server, listener: socket.socket, settings: Settings, print_curl: bool) -> None:
    # Not Uvicorn's lifespan: it prints a traceback where we have a sentence.
    async with app.router.lifespan_context(app):
        if server.should_exit:  # a signal came during the start
            return
        async with asyncio.TaskGroup() as tasks:
            saying = tasks.create_task(_say(app, server, listener, settings)) if print_curl else None
            await server.serve(sockets=[listener])
            if saying is not None:
                saying.cancel()


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


async def _say(app: FastAPI, server: Server, listener: socket.socket, settings: Settings) -> None:
    readiness = app.state.scorer.readiness
    await readiness.tested.wait()
    while not server.started:
        await asyncio.sleep(0.01)
    if readiness.problem is None:
        host, port = listener.getsockname()[:2]
        request = example_request(app.state.bundle, app.state.golden, settings.max_candidates)
        with contextlib.suppress(BrokenPipeError):  # a reader that left must not end the service
            print(curl(host, port, request), flush=True)


def curl(host: str, port: int, request: dict[str, Any]) -> str:
    """A shell command that sends the request."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    authority = f"[{reachable}]" if ":" in reachable else reachable
    url = f"http://{authority}:{port}/v1/score"
    header = "Content-Type: application/json"
    return shlex.join(["curl", "-sS", url, "-H", header, "-d", msgspec.json.encode(request).decode()])


if __name__ == "__main__":
    sys.exit(main())
