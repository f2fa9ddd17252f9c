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

import msgspec
import uvicorn
import uvloop
from fastapi import FastAPI

from contract.bundle import BundleError
from contract.golden import GoldenRequest
from service.app import create_app
from service.engine import EngineMissing
from service.settings import Settings, SettingsError, read_settings

BACKLOG = 2048
DRAIN_S = 15
CURL_CANDIDATES = 3
CURL_TIMEOUT_MS = 1000  # a person waits, not an auction


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
        with _listen(settings.host, settings.port) as listener:
            uvloop.run(_serve(settings, listener, arguments.print_curl))
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


async def _serve(settings: Settings, listener: socket.socket, print_curl: bool) -> None:
    # Uvicorn raises the signal once more when it is done; the parts still have to be closed then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    app = create_app(settings)
    # Not Uvicorn's lifespan: it prints a traceback where we have a sentence.
    async with app.router.lifespan_context(app):
        server = uvicorn.Server(_config(app))
        async with asyncio.TaskGroup() as tasks:
            saying = tasks.create_task(_say(app, server, listener)) if print_curl else None
            await server.serve(sockets=[listener])
            if saying is not None:
                saying.cancel()


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


async def _say(app: FastAPI, server: uvicorn.Server, listener: socket.socket) -> None:
    readiness = app.state.scorer.readiness
    await readiness.tested.wait()
    while not server.started:
        await asyncio.sleep(0.01)
    if readiness.problem is None:
        host, port = listener.getsockname()[:2]
        with contextlib.suppress(BrokenPipeError):  # a reader that left must not end the service
            print(curl(host, port, app.state.golden), flush=True)


def curl(host: str, port: int, golden: Sequence[GoldenRequest]) -> str:
    """A shell command that scores a golden request's first candidates."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    authority = f"[{reachable}]" if ":" in reachable else reachable
    request = next((one for one in golden if len(one.candidates) > 1), golden[0])
    body = {
        "context": request.context,
        "candidates": request.candidates[:CURL_CANDIDATES],
        "timeout_ms": CURL_TIMEOUT_MS,
    }
    url = f"http://{authority}:{port}/v1/score"
    header = "Content-Type: application/json"
    return shlex.join(["curl", "-sS", url, "-H", header, "-d", msgspec.json.encode(body).decode()])


if __name__ == "__main__":
    sys.exit(main())
