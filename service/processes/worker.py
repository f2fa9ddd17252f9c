"""One worker: a process that serves a model on sockets that it was given by service/processes/supervisor.py."""

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

from contract.bundle import BundleError
from service.admin import add_admin, admin_app
from service.api.auth import read_admin_key
from service.api.example import example_request
from service.app import Application, create_app
from service.errors import NotReady, Refused
from service.http.connection_counts import Board, Place
from service.models.manager import ModelManager
from service.processes.ipc import Channel, Done, Drain, Gone, Load, Message, Ready, Reload, Scrape, Spread
from service.processes.server import Door, Server
from service.runtime.onnx_session import EngineMissing
from service.settings import Settings, SettingsError, read_settings
from service.telemetry import json_logging
from service.telemetry.metrics_folder import metrics_folder

SCRAPE_S = 10.0
RELOAD_S = 600.0  # to check a large bundle, and to load it in every worker in turn
TURN_S = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when told to end, 2 when it cannot start: then one sentence says why."""
    parser = argparse.ArgumentParser("worker")
    parser.add_argument("--listener", type=int, required=True, help="file descriptor")
    parser.add_argument("--admin-listener", type=int, help="file descriptor")
    parser.add_argument("--control", type=int, required=True, help="file descriptor")
    parser.add_argument("--place", type=int, required=True, help="on the board")
    parser.add_argument("--tested", action="store_true", help="take connections only when ready: others take them")
    parser.add_argument("--print-curl", action="store_true")
    arguments = parser.parse_args(argv)
    json_logging.set_up()
    try:
        settings = read_settings(os.environ)
        app = create_app(settings)
        server = Server(app, settings, _place(arguments.place))
        server.take_signals()
        uvloop.run(_Worker(app, server, settings).run(arguments))
    except (SettingsError, BundleError, EngineMissing) as error:
        print(f"ctr-serve: {error}", file=sys.stderr)
        return 2
    return 0


def _place(number: int) -> Place:
    folder = metrics_folder()
    assert folder is not None, "the supervisor has made one"
    return Place(Board(folder), number)


class _Worker:
    def __init__(self, app: Application, server: Server, settings: Settings) -> None:
        self._app = app
        self._server = server
        self._settings = settings
        self._channel = Channel(self._answer)
        self._opened = asyncio.Event()

    async def run(self, arguments: argparse.Namespace) -> None:
        listening = socket.socket(fileno=arguments.listener)
        doors = [Door(listening, self._app), *self._admin(arguments.admin_listener)]
        self._app.state.scrape = self._scrape
        async with AsyncExitStack() as stack:
            hearing = asyncio.create_task(self._hear(socket.socket(fileno=arguments.control)))
            stack.callback(hearing.cancel)
            # Not Uvicorn's lifespan: it prints a traceback where we have a sentence.
            await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            self._opened.set()
            if self._server.should_exit:  # a signal came during the start
                return
            if arguments.tested and not await self._passes_the_test():
                return
            announcing = asyncio.create_task(self._announce(listening, arguments.print_curl))
            stack.callback(announcing.cancel)
            await self._server.serve_on(doors)

    async def _passes_the_test(self) -> bool:
        """False: it was told to end meanwhile. Raises BundleError when it does not pass."""
        readiness = self._serving.model.readiness
        while not readiness.tested.is_set():
            if self._server.should_exit:
                return False
            await asyncio.sleep(TURN_S)
        if readiness.problem is not None:
            raise BundleError(readiness.problem)
        return True

    def _admin(self, descriptor: int | None) -> list[Door]:
        """The admin routes, on a door of their own if there is one."""
        app = self._app if descriptor is None else admin_app(self._app)
        if self._settings.admin_key_file is not None:
            add_admin(app, read_admin_key(self._settings.admin_key_file), self._reload)
        return [] if descriptor is None else [Door(socket.socket(fileno=descriptor), app)]

    async def _hear(self, control: socket.socket) -> None:
        try:
            await self._channel.run(control)
        finally:
            self._server.end()  # without a supervisor nobody would end this process

    async def _answer(self, message: Message) -> Done | None:
        if isinstance(message, Load):
            await self._opened.wait()
            problem = await self._serving.load(Path(message.folder))
            return Done(self._serving.model.version, problem)
        if isinstance(message, Drain):
            self._server.end()
        if isinstance(message, Spread):
            self._server.spread(message.workers)
        return None

    async def _announce(self, listening: socket.socket, print_curl: bool) -> None:
        """Says that it serves: to the supervisor, and to whoever wants an example."""
        await self._serving.model.readiness.tested.wait()
        while not self._server.started:
            await asyncio.sleep(TURN_S)
        model = self._serving.model
        self._channel.tell(Ready(model.version, model.readiness.problem))
        if print_curl and model.readiness.problem is None:
            host, port = listening.getsockname()[:2]
            request = example_request(model.bundle, model.golden, self._settings.max_candidates)
            with contextlib.suppress(BrokenPipeError):  # a reader that left must not end the service
                print(curl(host, port, request), flush=True)

    async def _ask_supervisor(self, message: Message, timeout_s: float) -> Done:
        try:
            return await self._channel.ask(message, timeout_s)
        except Gone as error:
            raise NotReady(f"The supervisor did not answer ({error}): see its log") from error

    async def _reload(self) -> str:
        """Have all workers serve the current bundle, and return its version."""
        done = await self._ask_supervisor(Reload(), RELOAD_S)
        if done.problem is not None:
            raise Refused(f"{done.problem}; the model that was served before goes on")
        return done.text

    async def _scrape(self) -> bytes:
        done = await self._ask_supervisor(Scrape(), SCRAPE_S)
        if done.problem is not None:
            raise NotReady(f"The metrics cannot be merged ({done.problem}): see the supervisor's log")
        return done.text.encode()

    @property
    def _serving(self) -> ModelManager:
        serving: ModelManager = self._app.state.serving
        return serving


def curl(host: str, port: int, request: dict[str, Any]) -> str:
    """A shell command that sends the request."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    authority = f"[{reachable}]" if ":" in reachable else reachable
    url = f"http://{authority}:{port}/v1/score"
    header = "Content-Type: application/json"
    return shlex.join(["curl", "-sS", url, "-H", header, "-d", msgspec.json.encode(request).decode()])


if __name__ == "__main__":
    sys.exit(main())
