"""Serve one model at a time, and replace it without interrupting requests."""

import asyncio
import gc
import logging
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

from contract.bundle import BundleError
from service.errors import Problem
from service.models.loaded import Model, SharedParts, open_model
from service.runtime.engine import empty_request
from service.runtime.onnx_session import EngineMissing
from service.settings import SettingsError

log = logging.getLogger(__name__)

VOCABULARY_TIMEOUT_S = 60.0
WARM_UP_PAUSE_S = 0.005  # pause between two warm-up requests, so that clients' requests take precedence


class ModelManager:
    """Holds the current model, and loads new ones. Use it from one event loop only.

    Attributes:
        model: The model that currently answers requests.
    """

    def __init__(self, model: Model, shared: SharedParts) -> None:
        self.model = model
        self._shared = shared
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._testing: asyncio.Task[None] | None = None

    @property
    def damaged(self) -> asyncio.Event:
        """Set when the files of the model's bundle turn out to be overwritten."""
        return self._shared.damaged

    def start(self) -> None:
        """Start the self-test of the first model. /readyz reports its result."""
        self._shared.metrics.set_model(self.model.bundle.manifest.name, self.model.version)
        self._testing = self._create_task(self._test_first_model())

    async def load(self, folder: Path) -> str | None:
        """Replace the model with the one in a bundle that another process has verified.

        Returns:
            None if the new model is now served. Otherwise the reason why it is not, and the old model stays in use.
        """
        async with self._loading:
            old, metrics = self.model, self._shared.metrics
            try:
                new = await open_model(folder, self._shared, verified=True)
            except (BundleError, EngineMissing, SettingsError) as error:
                return str(error)
            problem = await self.make_ready(new)
            if problem is not None:
                await new.close()
                if old.version != new.version:
                    metrics.drift.discard(new.version)
                return problem
            self.model = new
            metrics.set_model(new.bundle.manifest.name, new.version)
            if old.version != new.version:
                metrics.set_model(old.bundle.manifest.name, old.version, is_served=False)
            self._create_task(old.close())
            log.info("now serving %s %s instead of %s", new.bundle.manifest.name, new.version, old.version)
            return None

    async def make_ready(self, new: Model) -> str | None:
        """Warm up a new model and mark it ready. Return why the model cannot be served, or None.

        Another process has already checked the model's answers. In this process, the model must still run and find its
        vocabulary.
        """
        try:
            await asyncio.to_thread(new.engine.run, [empty_request(new.bundle)])
            # Warm up the model with recent requests, so that the first requests after the replacement are not slow.
            for body in list(new.scorer.recent):
                with suppress(Problem):  # The new model may have other fields than the old one.
                    await new.scorer.warm_up(body)
                await asyncio.sleep(WARM_UP_PAUSE_S)
        except Exception as error:  # For example, the GPU is out of memory.
            log.exception("the new model cannot run")
            return f"it cannot run in this process: {type(error).__name__}"
        if self._shared.settings.vocabulary == "bundle":
            new.readiness.set_result(None)
            return None
        with suppress(TimeoutError):
            await asyncio.wait_for(new.self_test(), VOCABULARY_TIMEOUT_S)
        return new.readiness.problem

    async def close(self) -> None:
        """Wait for background work, then close the model."""
        if self._testing is not None:
            self._testing.cancel()  # The self-test may be waiting for a vocabulary that is never published.
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.model.close()

    async def _test_first_model(self) -> None:
        await self.model.self_test()
        # Garbage collection stops all threads. Freezing keeps it from traversing objects that live as long as the
        # process.
        gc.collect()
        gc.freeze()

    def _create_task(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        # The event loop keeps only weak references to tasks.
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
