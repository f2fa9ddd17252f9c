"""A model that is being served: everything that belongs to one bundle, opened and closed together."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from contract.bundle import GOLDEN, Bundle, BundleError, OutOfResources, open_bundle, unreadable
from contract.cpu_quota import available_cpus
from contract.encode import Encoder, ModelInput
from contract.golden import TOLERATED, Difference, GoldenRequest, largest_difference, max_difference, read_golden
from contract.pseudonyms import Pseudonymizer, PseudonymKeyError, check_pseudonym_key
from service.api.auth import ApiKeys
from service.errors import NotFinite
from service.models.file_changes import Stamp, changed_files, stamps
from service.request_log.writer import RequestLog
from service.runtime.engine import Engine, empty_request, explained_difference, open_engine
from service.scoring.admission import Admission
from service.scoring.batching import Batcher
from service.scoring.explain import Explainer
from service.scoring.readiness import Readiness
from service.scoring.run_cost import RunCost, measure
from service.scoring.score import Scorer
from service.settings import Settings, SettingsError
from service.telemetry.drift import DriftCounter
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_folder import NoSpace
from service.vocabulary.cache import TokenCache
from service.vocabulary.redis_client import check_redis_url, connect
from service.vocabulary.tiered import (
    MAX_ROUND_TRIPS,
    SOCKET_TIMEOUT_S,
    WITHOUT_VOCABULARY,
    TieredVocabulary,
    vocabulary_digest,
)

log = logging.getLogger(__name__)

POLL_S = 0.05
GOLDEN_LOOKUP_S = 2.0  # timeout of the vocabulary lookup of one golden request
RETRY_S = 1.0
RECENT_REQUESTS = 64  # kept to warm up the next model
MAX_USE_S = 30.0  # A request's body may take ten seconds to arrive, and its response another ten.
NO_VOCABULARY = "Redis does not have this bundle's vocabulary, and the bundle does not contain it: run ctr-publish"


@dataclass
class Model:
    """The components that score and explain requests with one bundle.

    Attributes:
        golden: The golden requests of the self-test. Empty if another process has already verified the bundle.
        readiness: Whether the self-test has passed, and if not, why.
        opened: The state of the bundle's files when it was opened (see stamps()).
        damaged: Set when the bundle's files turn out to be overwritten, so that the process must be replaced.
    """

    bundle: Bundle
    engine: Engine
    scorer: Scorer
    explainer: Explainer
    golden: list[GoldenRequest]
    readiness: Readiness
    opened: dict[str, Stamp]
    damaged: asyncio.Event
    _users: int = 0
    _checking: "asyncio.Task[None] | None" = None

    @property
    def version(self) -> str:
        return self.bundle.manifest.version

    @contextmanager
    def in_use(self) -> Iterator["Model"]:
        """Keep the model open during the block. If the model's answer is not finite, check the bundle's files."""
        self._users += 1
        try:
            yield self
        except NotFinite:
            self.suspect_files()
            raise
        finally:
            self._users -= 1

    def suspect_files(self) -> None:
        """If files of the bundle were written to, score no more requests until their digests have been checked."""
        if self._checking is not None and not self._checking.done():
            return
        changed = changed_files(self.bundle, self.opened)
        if changed and not self.damaged.is_set():
            self.readiness.problem = (
                f"Files of the bundle were changed while the server used them: {', '.join(changed)}. "
                "The server is checking them."
            )
            self._checking = asyncio.create_task(self.check_files(changed))

    async def check_files(self, changed: list[str]) -> None:
        """Set `damaged` if the folder no longer contains this version. Otherwise, score requests again."""
        opened, names = stamps(self.bundle), ", ".join(changed)
        try:
            found = await asyncio.to_thread(open_bundle, self.bundle.folder, vocabulary=bool(self.bundle.vocabularies))
            # Another version may have been copied over this one, so that its files match its own manifest.
            if found.manifest.version != self.version:
                raise BundleError(f"bundle {self.bundle.folder} now contains the version {found.manifest.version}")
        except OutOfResources as error:
            log.error("the model's answer is not finite, and the bundle's files cannot be checked: %s", error)
        except BundleError as error:
            self.readiness.problem = (
                f"Files of the bundle were overwritten while the server used them: {names}. Restore them."
            )
            log.error(
                "%s. Never overwrite the files of a bundle that is served: use ctr-store, or rename folders.", error
            )
            self.damaged.set()
            return
        except Exception:  # The files may be intact, so requests must not be refused until the next restart.
            log.exception("the model's answer is not finite, and the bundle's files cannot be checked")
        else:
            log.warning("the model's answer is not finite. The files %s were written to, but have not changed.", names)
            self.opened = opened
        self.readiness.problem = None

    async def self_test(self) -> None:
        """Mark the model ready if, on this machine, its answers to the golden requests match the exporter's."""
        try:
            inputs = await self.encode_golden()
            difference = await asyncio.to_thread(self.golden_difference, inputs)
        except Exception as error:  # Whatever the error is, the model is not ready, and /readyz reports it.
            log.exception("the self-test failed")
            self.readiness.set_result(
                f"the self-test failed ({type(error).__name__}, see the log): export the run again"
            )
            return
        if not difference.is_tolerated:
            problem = (
                f"answers to the golden requests differ from the exporter's by {difference}, "
                f"more than {TOLERATED}: export the run again"
            )
            log.error("not ready: %s", problem)
            self.readiness.set_result(problem)
            return
        self.readiness.set_result(None)
        lanes = f" with {self.engine.kernel_lanes} lanes" if self.engine.kernel_lanes else ""
        log.info(
            "ready: %s %s, %s%s on %s",
            self.bundle.manifest.name,
            self.version,
            self.engine.graph,
            lanes,
            self.engine.device,
        )

    async def encode_golden(self) -> list[ModelInput]:
        """Return the golden requests, encoded with the ids that a client's request would get.

        If the bundle does not contain the vocabulary, this waits until it has been published to Redis.
        """
        encoder, inputs = Encoder(self.bundle.schema), []
        for golden in self.golden:
            tokens = encoder.tokens(golden.context, [candidate.features for candidate in golden.candidates])
            wanted = encoder.wanted(tokens)
            while True:
                found = await self.scorer.vocabulary.find(wanted, GOLDEN_LOOKUP_S)
                if WITHOUT_VOCABULARY not in found.degraded:
                    break
                self.readiness.problem = NO_VOCABULARY
                await asyncio.sleep(RETRY_S)
            inputs.append(encoder.ids(tokens, found.lookup)[0])
            await asyncio.sleep(0)  # Encoding hundreds of requests in one go would block the event loop.
        return inputs

    def golden_difference(self, inputs: list[ModelInput]) -> Difference:
        """Return the largest difference from the exporter's answers, in scores and in one explanation.

        Args:
            inputs: The golden requests, encoded.
        """
        answers = (self.engine.run([model_input])[0].tolist() for model_input in inputs)
        differences = [largest_difference(golden.ctr, ctr) for golden, ctr in zip(self.golden, answers, strict=True)]
        if self.engine.explains:
            differences.append(explained_difference(self.engine, inputs[0], self.golden[0].ctr))
        return max_difference(differences)

    async def close(self) -> None:
        """Close the model once no request uses it anymore."""
        for _ in range(round(MAX_USE_S / POLL_S)):
            if not self._users:
                break
            await asyncio.sleep(POLL_S)
        await self.scorer.batcher.close()
        self.scorer.drift.flush()
        await self.scorer.vocabulary.close()


@dataclass(frozen=True)
class SharedParts:
    """The components that all models of a process share. They outlive each model.

    Attributes:
        keys: The clients' API keys. None if no key is required.
        log: The request log. None if it is off.
        pseudonyms: The key of CTR_PSEUDONYM_KEY_FILE. None if it is not set.
        recent: Bodies of recent requests, used to warm up a new model.
        damaged: Set when the files of the bundle that is served turn out to be overwritten.
        caches: The token caches of open models, by the digest of their vocabulary. During a reload, the new model
            continues to use the cache of the old one if both have the same vocabulary.
    """

    settings: Settings
    metrics: Metrics
    admission: Admission
    keys: ApiKeys | None
    log: RequestLog | None
    pseudonyms: Pseudonymizer | None = None
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=RECENT_REQUESTS))
    damaged: asyncio.Event = field(default_factory=asyncio.Event)
    caches: WeakValueDictionary[str, TokenCache] = field(default_factory=WeakValueDictionary)


async def open_model(folder: Path, shared: SharedParts, verified: bool = False) -> Model:
    """Open a bundle and everything that serves it. Slow work runs outside the event loop.

    Args:
        folder: The bundle's folder.
        shared: The components that outlive the model.
        verified: Whether another process has just verified the files' digests and the golden requests.

    Raises:
        BundleError: See `open_bundle`, `open_engine` and `check_pseudonyms`.
        EngineMissing: See `open_engine`.
        SettingsError: CTR_REDIS_URL is not a valid Redis URL.
    """
    settings, metrics = shared.settings, shared.metrics
    bundle = await asyncio.to_thread(
        open_bundle, folder, vocabulary=settings.vocabulary == "bundle", verify=not verified
    )
    opened = stamps(bundle)
    check_pseudonyms(bundle, shared)
    if shared.log is not None:
        shared.log.check(bundle.schema)
    golden: list[GoldenRequest] = []
    # Parsing hundreds of golden requests in one go would delay client requests, so it is skipped if another process has
    # already checked the answers. Without a vocabulary in the bundle, the other process could not check them.
    if not (verified and bundle.vocabularies):
        try:
            golden = read_golden(bundle.folder / GOLDEN)
        except OSError as error:
            raise unreadable(bundle.folder / GOLDEN, error) from error
        except ValueError as error:
            raise BundleError(f"bundle {bundle.folder}: {error}") from error
    engine, cost = await asyncio.to_thread(open_and_measure, bundle, settings)
    batcher = Batcher(
        engine.score,
        metrics,
        slots=settings.slots,
        max_rows=settings.max_rows,
        max_queued_rows=settings.max_queued_rows,
        cost=cost,
        # Runs in several slots must overlap, and a GPU's runs must overlap with CPU work. Both need threads.
        inline_s=settings.inline_ms / 1e3 if engine.device == "cpu" and settings.slots == 1 else 0.0,
    )
    readiness = Readiness()
    scorer = Scorer(
        settings=settings,
        readiness=readiness,
        encoder=Encoder(
            bundle.schema, settings.strict, settings.max_token_chars, settings.max_fields, shared.pseudonyms
        ),
        vocabulary=open_tiered_vocabulary(bundle, shared),
        batcher=batcher,
        metrics=metrics,
        drift=open_drift(bundle, metrics),
        manifest=bundle.manifest,
        admission=shared.admission,
        keys=shared.keys,
        log=shared.log,
        recent=shared.recent,
    )
    explainer = Explainer(scorer, engine, bundle.schema)
    return Model(bundle, engine, scorer, explainer, golden, readiness, opened, shared.damaged)


def check_pseudonyms(bundle: Bundle, shared: SharedParts) -> None:
    """Check that the server has the key of the bundle's pseudonyms.

    Raises:
        BundleError: It has no key, or another one. It is not a SettingsError, so that a server with a store serves the
            version before, which may fit its key.
    """
    try:
        check_pseudonym_key(bundle.schema, shared.pseudonyms, required=True)
    except PseudonymKeyError as error:
        raise BundleError(f"bundle {bundle.folder}: {error}") from error
    if bundle.schema.pseudonym_key and shared.settings.log_values:
        log.warning("CTR_LOG_VALUES has no effect with this model, because requests contain values for pseudonyms")


def open_drift(bundle: Bundle, metrics: Metrics) -> DriftCounter:
    """Return the counter for drift. Raises OutOfResources if there is too little space for its file."""
    try:
        return metrics.drift.open(bundle.manifest.version, bundle.schema, bundle.reference)
    except NoSpace as error:
        raise OutOfResources(str(error)) from error


def open_and_measure(bundle: Bundle, settings: Settings) -> tuple[Engine, RunCost]:
    """Open the bundle's engine and measure how long a run takes."""
    threads = min(settings.threads, available_cpus())  # More threads than CPUs would only wait for each other.
    engine = open_engine(bundle, threads, settings.device, settings.device_strict, settings.max_rows)
    try:
        return engine, measure(engine.run, empty_request(bundle), settings.max_rows)
    except Exception:  # The self-test will fail as well, and report that the model cannot be served.
        log.exception("the model cannot run")
        return engine, RunCost()


def open_tiered_vocabulary(bundle: Bundle, shared: SharedParts) -> TieredVocabulary:
    """Return the vocabulary that the settings configure. Raises SettingsError for an invalid Redis URL."""
    settings, metrics, cache = shared.settings, shared.metrics, token_cache(bundle, shared)
    if settings.redis_url is None:
        return TieredVocabulary(bundle, cache, metrics)
    url = settings.redis_url.get_secret_value()
    try:
        check_redis_url(url)
    except ValueError as error:
        raise SettingsError(f"CTR_REDIS_URL: {error}") from None
    client = connect(url, SOCKET_TIMEOUT_S, MAX_ROUND_TRIPS)
    return TieredVocabulary(bundle, cache, metrics, client, settings.redis_timeout_ms / 1e3)


def token_cache(bundle: Bundle, shared: SharedParts) -> TokenCache:
    """Return a cache for a bundle's tokens: that of an open model with the same vocabulary, or a new one."""
    digest, settings = vocabulary_digest(bundle.manifest), shared.settings
    cache = shared.caches.get(digest)
    if cache is None:
        fields = [field.name for field in bundle.schema.select("categorical")]
        cache = TokenCache(fields, settings.cache_tokens, settings.cache_bytes, settings.cache_unknown_s)
        shared.caches[digest] = cache
    return cache
