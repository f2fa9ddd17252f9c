"""Uvicorn's server, adapted for workers: shared sockets, client timeouts, and a notice period before it stops."""

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

from service.http.connection_counts import WorkerSlot
from service.http.listener import Listener
from service.http.protocol import DirectRoute, Limits, Protocol
from service.http.uvicorn_support import check_uvicorn
from service.settings import HttpSettings

log = logging.getLogger(__name__)

CHECK_S = 0.25  # Time between two checks of the clients' timeouts.
LAG_INTERVAL_S = 0.01
TIMER_RESOLUTION_S = 0.001  # Resolution of the event loop's timers.
MIN_IDLE_S = 1.0  # Connections that were used more recently are closed only after one more response.
POLL_S = 0.02


@dataclass(frozen=True)
class BoundApp:
    """An application and the socket that it listens on."""

    listening: socket.socket
    app: FastAPI


class Server(uvicorn.Server):
    """A uvicorn server that handles signals from startup, and reports that it is draining before it stops.

    Args:
        app: The application. Its state has `draining`, `admission` and `metrics`.
        direct: The application's direct route.
        settings: The server's settings.
        slot: Slot in which this worker publishes its connection count for the other workers. None: there are none.

    Raises:
        UnsupportedUvicorn: The installed uvicorn would bypass admission control.
    """

    def __init__(
        self, app: FastAPI, direct: DirectRoute, settings: HttpSettings, slot: WorkerSlot | None = None
    ) -> None:
        check_uvicorn()
        super().__init__(uvicorn_config(app, settings))
        self._app = app
        self._direct = direct
        self._settings = settings
        self._slot = slot
        self._bound_apps: list[BoundApp] = []

    def handle_signals(self) -> None:
        """Until the process exits, make SIGTERM and SIGINT stop the server.

        Uvicorn raises the signal again after it has stopped. The process must survive that to close the model.
        """
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.draining = True  # From now on, /readyz answers 503.
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Stop the server, as a signal does."""
        self._app.state.draining = True
        self.should_exit = True

    def rebalance(self, workers: int) -> None:
        """Close the new worker's share of this worker's connections, each after its next response.

        The clients connect again, and the worker with the fewest connections accepts them.

        Args:
            workers: The number of workers, including the one that has joined.
        """
        connections = [connection for connection in self.server_state.connections if isinstance(connection, Protocol)]
        for connection in connections[: len(connections) // workers]:
            connection.close_after_response = True

    async def serve_on(self, bound_apps: list[BoundApp]) -> None:
        """Serve until the server is stopped."""
        self._bound_apps = bound_apps
        background = [asyncio.create_task(self.check_connections()), asyncio.create_task(self.measure_lag())]
        try:
            await self.serve(sockets=[bound.listening for bound in bound_apps])
        finally:
            for task in background:
                task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        limits = Limits.of(self._settings)
        connections = self.server_state.connections
        self.servers = []
        for bound in self._bound_apps:
            config = self.config if bound.app is self._app else uvicorn_config(bound.app, self._settings)
            if not config.loaded:
                config.load()
            direct = self._direct if bound.app is self._app else None
            make = partial(Protocol, config, self.server_state, {}, limits=limits, parts=self._app.state, direct=direct)
            slot = None if direct is None else self._slot
            listener = Listener(bound.listening, make, connections, self._settings.max_connections, slot)
            self.servers.append(listener)  # type: ignore[arg-type]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve for the notice period, close the sockets, then finish the requests in flight.

        Responses in the notice period have the header `Connection: close`. After that period, a connection in use gets
        one more response, and a connection that has been idle for a while is closed.
        """
        await asyncio.sleep(self._settings.drain_notice_ms / 1e3)
        for server in self.servers:
            server.close()
            await server.wait_closed()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_ms / 1e3):
                while self.server_state.connections:
                    now = asyncio.get_running_loop().time()
                    for connection in list(self.server_state.connections):
                        assert isinstance(connection, Protocol)
                        connection.finish(now, MIN_IDLE_S)
                    await asyncio.sleep(POLL_S)
        for task in list(self.server_state.tasks):
            log.warning("A request was canceled: it did not finish within CTR_DRAIN_MS")
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def measure_lag(self) -> None:
        """Keep `admission.lag_s` up to date: how long the event loop's last iteration delayed its timers.

        A request that is read after a long iteration may have arrived when that iteration began.
        """
        admission = self._app.state.admission
        while True:
            due_s = time.perf_counter() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            admission.lag_s = max(0.0, time.perf_counter() - due_s - TIMER_RESOLUTION_S)

    async def check_connections(self) -> None:
        """Enforce the clients' timeouts, and update this worker's connection count and gauges."""
        metrics, admission = self._app.state.metrics, self._app.state.admission
        while True:
            await asyncio.sleep(CHECK_S)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.check_timeouts(now)
            for listener in self.servers:
                assert isinstance(listener, Listener)
                listener.publish_count()  # A connection that was being set up may have been counted twice.
            metrics.in_flight.set(admission.in_flight)
            metrics.limit.set(admission.limit)
            metrics.connections.set(len(self.server_state.connections))


def uvicorn_config(app: FastAPI, settings: HttpSettings) -> uvicorn.Config:
    """Return uvicorn's configuration for an application."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # The service does not use the client's address.
        server_header=False,
        timeout_keep_alive=settings.keep_alive_ms / 1e3,  # type: ignore[arg-type]  # Fractions of a second work.
        timeout_graceful_shutdown=settings.drain_ms / 1e3,  # type: ignore[arg-type]
    )
