"""A worker process: serves a model on sockets that it inherits from service/processes/supervisor.py."""

import argparse
import asyncio
import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from contract.bundle import BundleError, OutOfResources
from service.admin import add_admin, admin_app
from service.api.auth import read_admin_key
from service.api.example import example_request
from service.api.schemas import SCORE_PATH
from service.app import Application, create_app
from service.errors import NotReady, Refused
from service.http.connection_counts import ConnectionCounts, WorkerSlot
from service.http.protocol import DirectRoute
from service.http.uvicorn_support import UnsupportedUvicorn
from service.models.manager import ModelManager
from service.processes.ipc import (
    Channel,
    CurrentRefused,
    Drain,
    Load,
    Message,
    PeerClosed,
    Ready,
    Rebalance,
    Reload,
    Reply,
    Scrape,
)
from service.processes.limits import check_descriptors, raise_descriptor_limit
from service.processes.server import BoundApp, Server
from service.processes.worker_process import BAD_BUNDLE
from service.runtime.onnx_session import EngineMissing
from service.settings import Settings, SettingsError, read_settings
from service.telemetry import json_logging
from service.telemetry.metrics_folder import NoSpace, metrics_folder, reserve_counts, reserve_process_files

SCRAPE_TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 600.0  # Enough to check a large bundle and to load it into the workers one by one.
POLL_S = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until the supervisor or a signal stops it.

    Returns:
        The exit code: 0 after a stop, BAD_BUNDLE if the bundle cannot be served, or 2 if the worker cannot start for
        another reason. The reason is printed as one line.
    """
    parser = argparse.ArgumentParser("worker", description="Started by ctr-serve. Not meant to be run by hand.")
    parser.add_argument("--listener", type=int, required=True, help="file descriptor of the socket for requests")
    parser.add_argument("--admin-listener", type=int, help="file descriptor of the socket for /admin")
    parser.add_argument("--control", type=int, required=True, help="file descriptor of the socket to the supervisor")
    parser.add_argument("--slot", type=int, required=True, help="index of this worker's connection count")
    parser.add_argument(
        "--tested", action="store_true", help="do not accept connections until the self-test has passed"
    )
    parser.add_argument("--print-curl", action="store_true", help="print an example request when ready")
    arguments = parser.parse_args(argv)
    json_logging.set_up()
    folder = metrics_folder()
    assert folder is not None, "the supervisor creates the metrics folder"
    try:
        settings = read_settings(os.environ)
        raise_descriptor_limit()
        reserve_counts(folder, str(os.getpid()))
        app = create_app(settings)
        direct = DirectRoute(SCORE_PATH, app.score)
        server = Server(app, direct, settings, WorkerSlot(ConnectionCounts(folder), arguments.slot))
        server.handle_signals()
        uvloop.run(Worker(app, server, settings).run(arguments))
    except (SettingsError, BundleError, EngineMissing, UnsupportedUvicorn, NoSpace) as error:
        print(f"ctr-serve: {error}", file=sys.stderr)
        # If resources have run out, any other version would fail too, and this version may be fine.
        return BAD_BUNDLE if isinstance(error, BundleError) and not isinstance(error, OutOfResources) else 2
    return 0


class Worker:
    """Connects the application, the server and the supervisor."""

    def __init__(self, app: Application, server: Server, settings: Settings) -> None:
        self._app = app
        self._server = server
        self._settings = settings
        self._channel = Channel(self.handle)
        self._opened = asyncio.Event()

    async def run(self, arguments: argparse.Namespace) -> None:
        """Open the model and serve it until the server is stopped.

        Raises:
            BundleError: The bundle cannot be opened, fails the self-test that `--tested` waits for, or was overwritten.
        """
        listening = socket.socket(fileno=arguments.listener)
        bound_apps = [BoundApp(listening, self._app), *self.bind_admin(arguments.admin_listener)]
        self._app.state.scrape = self.scrape
        async with AsyncExitStack() as stack:
            following = asyncio.create_task(self.follow_supervisor(socket.socket(fileno=arguments.control)))
            stack.callback(following.cancel)
            # Uvicorn's lifespan would print a traceback where main prints one line.
            await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            self.check_limits()
            self._opened.set()
            if self._server.should_exit:  # Stopped during startup.
                return
            if arguments.tested and not await self.passes_self_test():
                return
            announcing = asyncio.create_task(self.announce(listening, arguments.print_curl))
            stack.callback(announcing.cancel)
            watching = asyncio.create_task(self.stop_if_damaged())
            stack.callback(watching.cancel)
            await self._server.serve_on(bound_apps)
            if self._serving.damaged.is_set():
                raise BundleError(f"bundle {self._serving.model.bundle.folder} was overwritten: see the log")

    async def stop_if_damaged(self) -> None:
        """Stop when files of the bundle were overwritten. The supervisor then opens it again, or falls back."""
        await self._serving.damaged.wait()
        self._server.stop()

    def check_limits(self) -> None:
        """Check the system's limits, now that the model is open and all metrics exist.

        Raises:
            SettingsError: The limit on open files is too low.
            NoSpace: The metrics files do not fit.
        """
        check_descriptors(self._settings)
        folder = metrics_folder()
        assert folder is not None, "main has checked this"
        reserve_process_files(folder)

    def bind_admin(self, descriptor: int | None) -> list[BoundApp]:
        """Add the admin routes, if there is an admin key.

        Returns:
            The admin application, if it has its own socket. Otherwise an empty list, because the scoring application
            serves the routes.
        """
        app = self._app if descriptor is None else admin_app(self._app)
        if self._settings.admin_key_file is not None:
            add_admin(app, read_admin_key(self._settings.admin_key_file), self.reload)
        return [] if descriptor is None else [BoundApp(socket.socket(fileno=descriptor), app)]

    async def follow_supervisor(self, control: socket.socket) -> None:
        """Handle the supervisor's messages. Stop when the supervisor exits, because nothing else stops this process."""
        try:
            await self._channel.run(control)
        finally:
            self._server.stop()

    async def handle(self, message: Message) -> Reply | None:
        """Handle a message from the supervisor."""
        match message:
            case Load():
                await self._opened.wait()
                problem = await self._serving.load(Path(message.folder))
                return Reply(self._serving.model.version, problem)
            case Drain():
                self._server.stop()
            case CurrentRefused():
                self._app.state.current_refused = message.version
            case Rebalance():
                self._server.rebalance(message.workers)
        return None

    async def passes_self_test(self) -> bool:
        """Wait until the self-test is done. Return False if the server is stopped before that.

        Raises:
            BundleError: The self-test failed.
        """
        readiness = self._serving.model.readiness
        while not readiness.tested.is_set():
            if self._server.should_exit:
                return False
            await asyncio.sleep(POLL_S)
        if readiness.problem is not None:
            raise BundleError(readiness.problem)
        return True

    async def announce(self, listening: socket.socket, print_curl: bool) -> None:
        """Tell the supervisor when this worker accepts requests. With `print_curl`, also print an example request."""
        await self._serving.model.readiness.tested.wait()
        while not self._server.started:
            await asyncio.sleep(POLL_S)
        model = self._serving.model
        self._channel.send(Ready(model.version, model.readiness.problem))
        if print_curl and model.readiness.problem is None:
            host, port = listening.getsockname()[:2]
            request = example_request(model.bundle, model.golden, self._settings.max_candidates)
            with contextlib.suppress(BrokenPipeError):  # The service continues if nothing reads its output.
                print(curl(host, port, request), flush=True)

    async def reload(self) -> str:
        """Make all workers serve the current bundle, and return its version.

        Raises:
            Refused: The bundle cannot be served. The workers continue to serve the previous one.
            NotReady: The supervisor did not reply.
        """
        reply = await self._ask_supervisor(Reload(), RELOAD_TIMEOUT_S)
        if reply.problem is not None:
            raise Refused(f"The previous model stays in service: {reply.problem}")
        return reply.text

    async def scrape(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format.

        Raises:
            NotReady: The supervisor did not reply, or cannot merge the metrics.
        """
        reply = await self._ask_supervisor(Scrape(), SCRAPE_TIMEOUT_S)
        if reply.problem is not None:
            raise NotReady(f"The metrics cannot be merged: {reply.problem}. See the supervisor's log.")
        return reply.text.encode()

    async def _ask_supervisor(self, message: Message, timeout_s: float) -> Reply:
        try:
            return await self._channel.request(message, timeout_s)
        except PeerClosed as error:
            raise NotReady(f"The supervisor did not reply: {error}. See its log.") from error

    @property
    def _serving(self) -> ModelManager:
        serving: ModelManager = self._app.state.serving
        return serving


def curl(host: str, port: int, request: dict[str, Any]) -> str:
    """Return a shell command that sends a request to a server on this machine.

    Args:
        host: The address that the server listens on.
        port: The port that the server listens on.
        request: The body.
    """
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    authority = f"[{reachable}]" if ":" in reachable else reachable
    url = f"http://{authority}:{port}/v1/score"
    header = "Content-Type: application/json"
    return shlex.join(["curl", "-sS", url, "-H", header, "-d", msgspec.json.encode(request).decode()])


if __name__ == "__main__":
    sys.exit(main())
