"""A bundle that is being served: everything that is of one version, opened together and closed together."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contract.bundle import GOLDEN, Bundle, BundleError, open_bundle
from contract.encode import Encoder, ModelInput
from contract.golden import TOLERANCE, GoldenRequest, largest_difference, read_golden
from service.api.auth import ApiKeys
from service.request_log.writer import RequestLog
from service.runtime.cpu_quota import available_cpus
from service.runtime.engine import Engine, explained_difference, nothing, open_engine
from service.scoring.admission import Admission
from service.scoring.batching import Batcher
from service.scoring.explain import Explainer
from service.scoring.readiness import Readiness
from service.scoring.run_cost import RunCost, measure
from service.scoring.score import Scorer
from service.settings import Settings, SettingsError
from service.telemetry.metrics import Metrics
from service.vocabulary.cache import TokenCache
from service.vocabulary.redis_client import check_redis_url, connect
from service.vocabulary.tiered import MAX_ROUND_TRIPS, SOCKET_TIMEOUT_S, WITHOUT_VOCABULARY, Tiers

log = logging.getLogger(__name__)

TURN_S = 0.05
GOLDEN_S = 2.0  # to find the ids of a golden request
AGAIN_S = 1.0
RECENT = 64  # requests, for a new model to be warm with
NO_VOCABULARY = "Redis does not answer with this bundle's vocabulary, which is nowhere else: run ctr-publish"
LONGEST_USE_S = 30.0  # a body may take ten seconds and an answer ten more


@dataclass
class Model:
    """What scores and explains, for one bundle. golden: none where it need not be tested."""

    bundle: Bundle
    engine: Engine
    scorer: Scorer
    explainer: Explainer
    golden: list[GoldenRequest]
    readiness: Readiness
    _users: int = 0

    @property
    def version(self) -> str:
        return self.bundle.manifest.version

    @contextmanager
    def in_use(self) -> Iterator["Model"]:
        """While a request has this model, it is not closed."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1

    async def test(self) -> None:
        """Ready only when this machine gives the exporter's answers."""
        try:
            inputs = await self._golden_inputs()
            difference = await asyncio.to_thread(self._difference, inputs)
        except Exception as error:  # whatever it is, it means: not ready, and say why
            log.exception("the self-test failed")
            self.readiness.set_result(
                f"the self-test failed ({type(error).__name__}, see the log): export the run again"
            )
            return
        if not difference <= TOLERANCE:
            problem = (
                f"the golden requests came out {difference:.3g} off, more than {TOLERANCE:g}: export the run again"
            )
            log.error("not ready: %s", problem)
            self.readiness.set_result(problem)
            return
        self.readiness.set_result(None)
        log.info(
            "ready: %s %s, %s on %s", self.bundle.manifest.name, self.version, self.engine.graph, self.engine.device
        )

    async def _golden_inputs(self) -> list[ModelInput]:
        """With the ids that a request would get. Waits for a vocabulary that nothing but Redis has."""
        encoder, inputs = Encoder(self.bundle.schema), []
        for one in self.golden:
            tokens = encoder.tokens(one.context, [candidate.features for candidate in one.candidates])
            wanted = encoder.wanted(tokens)
            while WITHOUT_VOCABULARY in (found := await self.scorer.vocabulary.find(wanted, GOLDEN_S)).degraded:
                self.readiness.problem = NO_VOCABULARY
                await asyncio.sleep(AGAIN_S)
            inputs.append(encoder.ids(tokens, found.lookup)[0])
            await asyncio.sleep(0)
        return inputs

    def _difference(self, inputs: list[ModelInput]) -> float:
        answers = (self.engine.run([one])[0].tolist() for one in inputs)
        difference = max(largest_difference(one.ctr, ctr) for one, ctr in zip(self.golden, answers, strict=True))
        if self.engine.explains:
            difference = max(difference, explained_difference(self.engine, inputs[0], self.golden[0].ctr))
        return difference

    async def close(self) -> None:
        """When nobody uses it any more."""
        for _ in range(round(LONGEST_USE_S / TURN_S)):
            if not self._users:
                break
            await asyncio.sleep(TURN_S)
        await self.scorer.batcher.close()
        await self.scorer.vocabulary.close()


@dataclass(frozen=True)
class Shared:
    """What lives longer than a model: as long as the process."""

    settings: Settings
    metrics: Metrics
    admission: Admission
    keys: ApiKeys | None
    log: RequestLog | None
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=RECENT))


async def open_model(folder: Path, shared: Shared, verified: bool = False) -> Model:
    """Opens all of it off the event loop. verified: another process has just checked the files' digests.

    Raises:
        BundleError, EngineMissing: as open_bundle() and open_engine().
        SettingsError: for a CTR_REDIS_URL that is no URL of a Redis.
    """
    settings, metrics = shared.settings, shared.metrics
    bundle = await asyncio.to_thread(
        open_bundle, folder, vocabulary=settings.vocabulary == "bundle", verify=not verified
    )
    if shared.log is not None:
        shared.log.check(bundle.schema)
    # Hundreds of requests, read in one go: requests would wait for it, and another process has answered them.
    golden = [] if verified and bundle.vocabularies else _golden(bundle)
    engine, cost = await asyncio.to_thread(_engine, bundle, settings)
    batcher = Batcher(
        engine.run,
        metrics,
        slots=settings.slots,
        max_rows=settings.max_rows,
        max_queued_rows=settings.max_queued_rows,
        cost=cost,
        # Runs of several slots are meant to be at the same time, and a GPU's while the CPU does something else.
        inline_s=settings.inline_ms / 1e3 if engine.device == "cpu" and settings.slots == 1 else 0.0,
    )
    readiness = Readiness()
    scorer = Scorer(
        settings=settings,
        readiness=readiness,
        encoder=Encoder(bundle.schema, settings.strict, settings.max_token_chars, settings.max_fields),
        vocabulary=_tiers(bundle, settings, metrics),
        batcher=batcher,
        metrics=metrics,
        manifest=bundle.manifest,
        admission=shared.admission,
        keys=shared.keys,
        log=shared.log,
        recent=shared.recent,
    )
    return Model(bundle, engine, scorer, Explainer(scorer, engine, bundle.schema), golden, readiness)


def _engine(bundle: Bundle, settings: Settings) -> tuple[Engine, RunCost]:
    threads = min(settings.threads, available_cpus())  # more would only wait for each other
    engine = open_engine(bundle, threads, settings.device, settings.device_strict, settings.max_rows)
    try:
        return engine, measure(engine.run, nothing(bundle), settings.max_rows)
    except Exception:  # the self-test will say that it cannot be served
        log.exception("the model cannot run")
        return engine, RunCost()


def _golden(bundle: Bundle) -> list[GoldenRequest]:
    try:
        return read_golden(bundle.folder / GOLDEN)
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle.folder}: {error}") from error


def _tiers(bundle: Bundle, settings: Settings, metrics: Metrics) -> Tiers:
    fields = [field.name for field in bundle.schema.select("categorical")]
    cache = TokenCache(fields, settings.cache_tokens, settings.cache_bytes, settings.cache_unknown_s)
    if settings.redis_url is None:
        return Tiers(bundle, cache, metrics)
    url = settings.redis_url.get_secret_value()
    try:
        check_redis_url(url)
    except ValueError as error:
        raise SettingsError(f"CTR_REDIS_URL: {error}") from None
    client = connect(url, SOCKET_TIMEOUT_S, MAX_ROUND_TRIPS)
    return Tiers(bundle, cache, metrics, client, settings.redis_timeout_ms / 1e3)
