"""Which model answers, and how another one takes its place without anybody noticing."""

import asyncio
import gc
import logging
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

from contract.bundle import BundleError
from service.errors import Problem
from service.models.loaded import Model, Shared, open_model
from service.runtime.engine import nothing
from service.runtime.onnx_session import EngineMissing
from service.settings import SettingsError

log = logging.getLogger(__name__)

VOCABULARY_S = 60.0
PACE_S = 0.005  # between requests that warm a new model: those that somebody waits for go first


class Serving:
    """`model` is the one that answers now. Lives in one event loop."""

    def __init__(self, model: Model, shared: Shared) -> None:
        self.model = model
        self._shared = shared
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._testing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Tests the first model; /readyz says when that is done."""
        self._serves(self.model)
        self._testing = self._start(self._test())

    async def load(self, folder: Path) -> str | None:
        """Serves that bundle, which another process has verified. Answers why not, where the old one has to go on."""
        async with self._loading:
            old = self.model
            try:
                new = await open_model(folder, self._shared, verified=True)
            except (BundleError, EngineMissing, SettingsError) as error:
                return str(error)
            problem = await self._is_not_ready(new)
            if problem is not None:
                await new.close()
                return problem
            self.model = new
            self._serves(new)
            if old.version != new.version:
                self._shared.metrics.serves(old.bundle.manifest.name, old.version, 0)
            self._start(old.close())
            log.info("serves %s %s now, before %s", new.bundle.manifest.name, new.version, old.version)
            return None

    async def _is_not_ready(self, new: Model) -> str | None:
        """Another process has seen the model answer as it should. Here it must run, and find its vocabulary."""
        try:
            await asyncio.to_thread(new.engine.run, [nothing(new.bundle)])
            await self._warm(new)
        except Exception as error:  # no memory, on a GPU above all
            log.exception("the new model cannot run")
            return f"it cannot run in this process: {type(error).__name__}"
        if self._shared.settings.vocabulary == "bundle":
            new.readiness.set_result(None)
            return None
        with suppress(TimeoutError):
            await asyncio.wait_for(new.test(), VOCABULARY_S)
        return new.readiness.problem

    async def close(self) -> None:
        if self._testing is not None:
            self._testing.cancel()  # it may wait for a vocabulary that nobody will publish
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.model.close()

    async def _test(self) -> None:
        await self.model.test()
        # The collector stops all threads: spare it what lives as long as the process.
        gc.collect()
        gc.freeze()

    async def _warm(self, new: Model) -> None:
        """With requests that the old one has answered: the first one after the change must not pay for it."""
        for body in list(new.scorer.recent):
            with suppress(Problem):  # the new model may read other fields
                await new.scorer.warm_up(body)
            await asyncio.sleep(PACE_S)

    def _serves(self, model: Model) -> None:
        manifest = model.bundle.manifest
        self._shared.metrics.serves(manifest.name, manifest.version)

    def _start(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
