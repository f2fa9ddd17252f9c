"""What a server counts, put through Prometheus's rules: planted drift is found in its field, and nowhere else."""

import math
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from contract.bundle import open_bundle
from contract.request_log import LoggedCandidate, LogLine
from export.bundle import export
from export.request_sample import sample_requests
from model.baselines.lr import LRConfig
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.data.readers.generated import CANDIDATE, CONTEXT, REQUEST
from model.data.synthetic import generate
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from service.app import create_app
from service.settings import Settings
from service.telemetry import drift
from tests.support.app import TIMEOUT_MS, client_of
from tests.support.paths import ROOT
from tests.support.runs import DATA

PROMETHEUS = ROOT / "deploy" / "prometheus"
FLOOR = 0.001
WARNING, CRITICAL = 0.1, 0.25
PREDICTED = ""  # stands for the probabilities among the names of fields
MINUTES = 240  # how long the simulated Prometheus scrapes

Row = dict[str, Any]
Change = Callable[[Row], Row]
Counts = dict[str, dict[str, tuple[float, float]]]  # field -> bin -> count, and share in the reference


def in_upper_case(row: Row) -> Row:
    return row | {"country": row["country"] and row["country"].upper()}


def with_prefix(row: Row) -> Row:
    return row | {"campaign": f"cmp:{row['campaign']}"}


def in_cents(row: Row) -> Row:
    return row | {"bid": row["bid"] and row["bid"] * 100}


def doubled(row: Row) -> Row:
    return row | {"bid": row["bid"] and row["bid"] * 2}


CHANGES: dict[str, tuple[Change, set[str]]] = {
    "no change": (lambda row: row, set()),
    "upper case": (in_upper_case, {"country"}),
    "prefix": (with_prefix, {"campaign"}),
    "cents": (in_cents, {"bid"}),
    "twice, within the training range": (doubled, {"bid"}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated log with more than 500 requests in each of its last two parts, a run, and its bundle."""
    root = tmp_path_factory.mktemp("drift")
    assert generate.main(["--data", str(root), "--requests", "6000"]) == 0
    prepare(root, DATA)
    training = Training(epochs=1, batch_size=1024, learning_rate=0.02)
    train(Experiment(name="small", data=DATA, model=LRConfig(), training=training), root, root / "run")
    export(root / "run", root / "bundle", read_prepared(root / DATA.prepared))
    return root


@pytest.fixture(scope="module")
def bundle(root: Path) -> Path:
    return root / "bundle"


@pytest.fixture(scope="module")
def rows(root: Path) -> list[list[Row]]:
    """The requests of the log's last part, each as the rows of its candidates. They follow the validation set."""
    log = pl.read_parquet(root / DATA.folder / "test.parquet")
    return [part.to_dicts() for part in log.partition_by(REQUEST, maintain_order=True)]


def bodies(requests: list[list[Row]], change: Change) -> Iterator[Row]:
    for candidates in requests:
        changed = [change(row) for row in candidates]
        yield {
            "context": {name: changed[0][name] for name in CONTEXT},
            "candidates": [
                {"id": number, "features": {name: row[name] for name in CANDIDATE}}
                for number, row in enumerate(changed)
            ],
        }


async def scraped_counts(
    bundle: Path, requests: Iterator[Row], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Counts:
    """Send requests to a server, and return what it counts, as /metrics reports it."""
    monkeypatch.setattr(drift, "ONE_IN", 1)  # The requests are too few to count a sample of them.
    app = create_app(Settings(bundle=bundle, timeout_ms=TIMEOUT_MS, **settings))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.serving.model.scorer.readiness.tested.wait()
        for body in requests:
            assert (await client.post("/v1/score", json=body)).status_code == 200
        text = (await client.get("/metrics")).text
    version = open_bundle(bundle).manifest.version
    found: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "bin" in sample.labels:
                assert sample.labels["version"] == version
                found[sample.name][sample.labels.get("field", PREDICTED), sample.labels["bin"]] = sample.value
    counts: Counts = defaultdict(dict)
    for metric, reference in (
        ("ctr_predicted_bins_total", "ctr_reference_predicted_share"),
        ("ctr_field_values_total", "ctr_reference_field_share"),
    ):
        assert found[metric].keys() == found[reference].keys()
        for (field, name), count in found[metric].items():
            counts[field][name] = count, found[reference][field, name]
    return counts


def psi(bins: dict[str, tuple[float, float]]) -> float:
    """Return the population stability index, with the formula of ctr:field_values:psi_1d."""
    total = sum(count for count, _ in bins.values())
    pairs = [(max(count / total, FLOOR), max(share, FLOOR)) for count, share in bins.values()]
    return math.fsum((live - reference) * math.log(live / reference) for live, reference in pairs)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_found_in_its_field_and_nowhere_else(
    name: str, bundle: Path, rows: list[list[Row]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change, changed = CHANGES[name]
    counts = await scraped_counts(bundle, bodies(rows, change), monkeypatch)
    found = {field: psi(bins) for field, bins in counts.items()}
    assert {field for field, value in found.items() if value > CRITICAL} - {PREDICTED} == changed
    assert {field for field, value in found.items() if value > WARNING} - {PREDICTED} == changed
    if not changed:
        assert found[PREDICTED] < WARNING
    if (promtool := shutil.which("promtool")) is not None:
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(promtool_test(counts, found)))
        done = subprocess.run([promtool, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("logged", [None, 3], ids=["all candidates", "the best and one of the others"])
async def test_a_reference_from_the_request_log_describes_all_candidates_and_not_only_those_shown(
    logged: int | None, root: Path, rows: list[list[Row]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each request has 10 candidates, of which the best 3 are shown. A joined log has only these."""
    tens = [first + second for first, second in pairwise(rows)]
    log = tmp_path / "log"
    settings = {"request_log": log, "request_log_sample": 1.0, "request_log_candidates": logged}
    await scraped_counts(root / "bundle", bodies(tens, lambda row: row), monkeypatch, **settings)
    schema = open_bundle(root / "bundle").schema
    from_log, from_shown = tmp_path / "from_log", tmp_path / "from_shown"
    export(root / "run", from_log, None, sample_requests([log], None, schema))
    sample = sample_requests([log], None, schema)
    sample.lines = [msgspec.structs.replace(line, candidates=shown(line)) for line in sample.lines]
    export(root / "run", from_shown, None, sample)
    found = {}
    for bundle in (from_log, from_shown):
        counts = await scraped_counts(bundle, bodies(tens, lambda row: row), monkeypatch)
        found[bundle.name] = {field: psi(bins) for field, bins in counts.items()}
    assert max(found["from_log"].values()) < WARNING
    assert found["from_shown"][PREDICTED] > CRITICAL


def shown(line: LogLine) -> list[LoggedCandidate]:
    best = sorted(line.candidates or [], key=lambda one: -(one.ctr or 0))[:3]
    return [msgspec.structs.replace(one, inclusion=1.0) for one in best]


def promtool_test(counts: Counts, expected: dict[str, float]) -> dict[str, Any]:
    """Return a test in which the counts grow evenly, and the rules give the expected PSI of each field."""
    steps = MINUTES // 2

    def series(name: str, values: str, **labels: str) -> dict[str, str]:
        selector = ",".join(f'{label}="{value}"' for label, value in ({"job": "ctr", "version": "1"} | labels).items())
        return {"series": f"{name}{{{selector}}}", "values": values}

    given = [
        series("ctr_model_info", f"1x{steps}", model="m"),
        series("ctr_predicted_requests_total", f"0+10x{steps}"),
    ]
    for field, bins in counts.items():
        kind = ("ctr_predicted_bins_total", "ctr_reference_predicted_share")
        if field != PREDICTED:
            kind = ("ctr_field_values_total", "ctr_reference_field_share")
        labels = {"field": field} if field else {}
        for name, (count, share) in bins.items():
            given.append(series(kind[0], f"0+{count:g}x{steps}", bin=name, **labels))
            given.append(series(kind[1], f"{share!r}x{steps}", bin=name, **labels))
    checks = []
    for field, value in expected.items():
        record = "ctr:predicted_bins:psi_1d" if field == PREDICTED else f'ctr:field_values:psi_1d{{field="{field}"}}'
        checks.append(
            {
                "expr": f"count(({record} > {value - 1e-6:.9f}) < {value + 1e-6:.9f})",
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
        )
    return {
        "rule_files": [str(PROMETHEUS / "rules.yml")],
        "evaluation_interval": "2m",
        "tests": [{"interval": "2m", "input_series": given, "promql_expr_test": checks}],
    }


def test_the_rules_have_the_formula_of_these_tests() -> None:
    """promtool compares the rules with psi() where it is installed. This finds a changed rule everywhere."""
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    rules = {rule["record"]: " ".join(rule["expr"].split()) for group in groups for rule in group["rules"]}
    for what, reference, by in (
        ("predicted_bins", "ctr:reference_predicted:share", "job, version"),
        ("field_values", "ctr:reference_field:share", "job, version, field"),
    ):
        live = f"ctr:{what}:share_1d"
        difference, ratio = f"({live} - {reference})", f"ln({live} / {reference})"
        assert rules[f"ctr:{what}:psi_1d"].startswith(f"sum by ({by}) ({difference} * {ratio}) and ")
        sums = f"sum_over_time(ctr:{what}:rate_2m[1d])"
        share = f"{sums} / on ({by}) group_left () sum by ({by}) ({sums})"
        assert rules[live] == f"clamp_min( {share}, {FLOOR} )"
        assert rules[reference].endswith(f", {FLOOR})")


def test_psi_of_equal_shares_is_0_and_every_difference_adds_to_it() -> None:
    assert psi({"a": (30, 0.3), "b": (70, 0.7)}) == pytest.approx(0)
    assert psi({"a": (70, 0.5), "b": (30, 0.5)}) == pytest.approx(0.1695, abs=1e-4)
    assert psi({"known": (90, 1.0), "unknown": (10, 0.0), "missing": (0, 0.0)}) == pytest.approx(0.4664, abs=1e-4)
