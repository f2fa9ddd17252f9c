"""Uvicorn's server, as a worker runs it: on shared sockets, with limits for clients, and with notice before its end."""

import asyncio
import logging
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.server import HANDLED_SIGNALS

from service.app import Application, drain
from service.http.connection_counts import Place
from service.http.listener import Listener
from service.http.protocol import Limits, Protocol
from service.settings import Settings

log = logging.getLogger(__name__)

SWEEP_S = 0.25
BEAT_S = 0.01
TIMERS_S = 0.001  # which is how exact the event loop's timers are
PATIENCE_S = 1.0
TURN_S = 0.02


@dataclass(frozen=True)
class Door:
    """A listening socket, and the application behind it."""

    listening: socket.socket
    app: FastAPI


class Server(uvicorn.Server):
    """Takes signals from the start on, and says that it drains before it does."""

    def __init__(self, app: Application, settings: Settings, place: Place | None = None) -> None:
        super().__init__(_config(app, settings))
        self._app = app
        self._settings = settings
        self._place = place
        self._doors: list[Door] = []

    def take_signals(self) -> None:
        # Uvicorn raises the signal once more when it is done; the parts still have to be closed then.
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        drain(self._app)
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """As a signal does."""
        drain(self._app)
        self.should_exit = True

    def spread(self, workers: int) -> None:
        """Has as many connections end after their next answer as another of so many workers should have.

        Their clients connect again, and whoever has less to do takes them.
        """
        connections = [one for one in self.server_state.connections if isinstance(one, Protocol)]
        for connection in connections[: len(connections) // workers]:
            connection.is_last = True

    async def serve_on(self, doors: list[Door]) -> None:
        self._doors = doors
        watching = [asyncio.create_task(self._sweep()), asyncio.create_task(self._feel_the_lag())]
        try:
            await self.serve(sockets=[door.listening for door in doors])
        finally:
            for task in watching:
                task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        limits = Limits.of(self._settings)
        connections = self.server_state.connections
        self.servers = []
        for door in self._doors:
            config = self.config if door.app is self._app else _config(door.app, self._settings)
            if not config.loaded:
                config.load()
            score = self._app.score if door.app is self._app else None
            make = partial(Protocol, config, self.server_state, {}, limits=limits, parts=self._app.state, score=score)
            most, place = self._settings.max_connections, None if score is None else self._place
            self.servers.append(Listener(door.listening, make, connections, most, place))  # type: ignore[arg-type]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """For a notice all goes on, and answers say `Connection: close`; then the port is closed and the rest finished.

        A connection that is used gets a last answer; only one that has been idle for a while is closed.
        """
        await asyncio.sleep(self._settings.drain_notice_ms / 1e3)
        for server in self.servers:
            server.close()
            await server.wait_closed()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_ms / 1e3):
                await self._connections_end()
        for task in list(self.server_state.tasks):
            log.warning("a request was not finished within CTR_DRAIN_MS, and is cut off")
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _connections_end(self) -> None:
        while self.server_state.connections:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Protocol)
                connection.leave(now, PATIENCE_S)
            await asyncio.sleep(TURN_S)

    async def _feel_the_lag(self) -> None:
        """What is read after a turn of the event loop that took long may have come at its beginning."""
        admission = self._app.state.admission
        while True:
            due_s = time.perf_counter() + BEAT_S
            await asyncio.sleep(BEAT_S)
            admission.lag_s = max(0.0, time.perf_counter() - due_s - TIMERS_S)

    async def _sweep(self) -> None:
        """Closes the connections of clients that keep them and say nothing."""
        metrics, admission = self._app.state.metrics, self._app.state.admission
        while True:
            await asyncio.sleep(SWEEP_S)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.sweep(now)
            for listener in self.servers:
                assert isinstance(listener, Listener)
                listener.tell()
            metrics.in_flight.set(admission.in_flight)
            metrics.limit.set(admission.limit)
            metrics.connections.set(len(self.server_state.connections))


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody here asks for the client's address
        server_header=False,
        timeout_keep_alive=settings.keep_alive_ms / 1e3,  # type: ignore[arg-type]  # any number of seconds
        timeout_graceful_shutdown=settings.drain_ms / 1e3,  # type: ignore[arg-type]
    )
