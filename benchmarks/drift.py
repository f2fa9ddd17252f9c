"""CPU time of counting probabilities and inputs for drift, per request with 100 candidates."""

import argparse
import asyncio
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request

from benchmarks import RESULTS
from contract.bundle import Bundle, open_bundle, write_manifest
from contract.reference import REFERENCE, Bins, CategoricalReference, NumericReference, Reference
from loadtest.report import Table, write_report
from service.app import Application, create_app
from service.settings import Settings
from service.telemetry.drift import ONE_IN, DriftCounter

DEMO = Path("deploy/demo")
CANDIDATES = 100
REQUESTS = 64


class Timed:
    """Counts with a DriftCounter, and measures how long this takes."""

    def __init__(self, counter: DriftCounter) -> None:
        self._counter = counter
        self.nanoseconds: list[int] = []

    def add(self, *arguments: Any) -> None:
        start_ns = time.perf_counter_ns()
        self._counter.add(*arguments)
        self.nanoseconds.append(time.perf_counter_ns() - start_ns)

    def flush(self) -> None:
        self._counter.flush()


class Off:
    """Counts nothing."""

    def add(self, *arguments: Any) -> None: ...

    def flush(self) -> None: ...


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args(argv).rounds
    with tempfile.TemporaryDirectory() as folder:
        cpu_us, inside_us = asyncio.run(measure(with_reference(Path(folder) / "bundle"), rounds))
    rows = [[name, f"{statistics.median(values):,.1f}"] for name, values in cpu_us.items()]
    differences = np.array(cpu_us["counting"]) - np.array(cpu_us["not counting"])
    error = 1.96 * differences.std() / len(differences) ** 0.5
    rows.append(["difference, mean over the pairs", f"{differences.mean():.1f} ± {error:.1f}"])
    rows.append(["inside DriftCounter.add(), mean without the slowest 0.5%", f"{inside_us:.1f}"])
    text = (
        f"The demo model with a reference, {CANDIDATES} candidates per request, {REQUESTS} requests in a round, "
        f"{rounds} rounds that alternate in one process. The time covers the application, without HTTP. "
        f"One request in {ONE_IN} is counted."
    )
    table = Table("", ["", "CPU µs per request"], rows)
    write_report(RESULTS / "drift.md", "Counting for drift", text, [table], ["numpy"], "python -m benchmarks.drift")
    return 0


def with_reference(folder: Path) -> Path:
    """Copy the demo bundle, and add a reference."""
    shutil.copytree(DEMO, folder)
    bundle = open_bundle(folder)
    tenths = (0.1,) * 10
    reference = Reference(
        rows=1000,
        predicted=Bins(tuple(np.geomspace(0.001, 0.3, 9).tolist()), tenths),
        numeric={
            field.name: NumericReference(Bins(tuple(np.linspace(-2, 2, 9).tolist()), tenths), 0.0)
            for field in bundle.schema.select("numeric")
        },
        categorical={field.name: CategoricalReference(0.05, 0.01) for field in bundle.schema.select("categorical")},
    )
    (folder / REFERENCE).write_bytes(msgspec.json.encode(reference))
    manifest = bundle.manifest
    write_manifest(folder, manifest.name, manifest.parameters, manifest.metrics, manifest.calibration)
    return folder


async def measure(folder: Path, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the CPU time per request of each round, and the time inside add(), in µs."""
    app = create_app(Settings(bundle=folder, timeout_ms=5000))
    async with app.router.lifespan_context(app):
        scorer = app.state.serving.model.scorer
        await scorer.readiness.tested.wait()
        requests = bodies(open_bundle(folder))
        timed = Timed(scorer.drift)
        variants = {"not counting": Off(), "counting": scorer.drift, "timed": timed}
        cpu_us: dict[str, list[float]] = {name: [] for name in variants}
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for name in sorted(variants, reverse=number % 2 == 1):
                object.__setattr__(scorer, "drift", variants[name])
                start_s = time.process_time()
                for body in requests:
                    await score(app, body)
                cpu_us[name].append((time.process_time() - start_s) / len(requests) * 1e6)
        del cpu_us["timed"]
        inside = sorted(timed.nanoseconds)[: round(len(timed.nanoseconds) * 0.995)]
        return cpu_us, statistics.mean(inside) / 1e3


def bodies(bundle: Bundle) -> list[bytes]:
    """Return requests with known values."""
    random = np.random.default_rng(0)
    tokens = {name: [token for token, _ in vocabulary.items()] for name, vocabulary in bundle.vocabularies.items()}

    def features(side: str) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for field in bundle.schema.fields:
            if field.side == side and field.kind == "categorical":
                drawn[field.name] = tokens[field.name][int(random.integers(len(tokens[field.name])))]
            elif field.side == side:
                drawn[field.name] = round(float(random.lognormal()), 2)
        return drawn

    return [
        json.dumps(
            {
                "context": features("context"),
                "candidates": [{"id": number, "features": features("candidate")} for number in range(CANDIDATES)],
            }
        ).encode()
        for _ in range(REQUESTS)
    ]


async def score(app: Application, body: bytes) -> None:
    """Score a request in the application."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None: ...

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": headers}
    response = await app.score(Request(scope, receive, send))
    assert response.status_code == 200, response.body


if __name__ == "__main__":
    raise SystemExit(main())
