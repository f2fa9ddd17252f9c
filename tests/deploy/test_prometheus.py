"""The rules, alerts, dashboard and autoscaler query only metrics that exist."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from contract.events import EVENT_TYPES
from contract.reference import Bins, CategoricalReference, NumericReference, Reference
from contract.schema import FeatureSchema, Field
from model.loop.predicted_observed import Clicks, write_metrics
from service import errors
from service.collect.events import CheckedEvents
from service.collect.metrics import NOT_STORED, STORED, CollectMetrics
from service.errors import Problem
from service.telemetry.metrics import Metrics
from service.vocabulary.tiered import WITHOUT_REDIS, WITHOUT_VOCABULARY
from tests.support.paths import DEMO, ROOT
from tests.support.processes import a_free_port, eventually, get, without_settings

PROMETHEUS, GRAFANA, KUBERNETES = (ROOT / "deploy" / name for name in ("prometheus", "grafana", "k8s"))
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("operations", "collect")}
DASHBOARD = GRAFANA / "dashboards" / "ctr.json"

OF_PROMETHEUS = {"job", "instance", "namespace", "pod", "le", "alertstate"}
NAME = re.compile(r"\bctr[_:][\w:]+")
SELECTOR = re.compile(rf"({NAME.pattern}){{([^}}]*)}}")
MATCHER = re.compile(r'(\w+)(?:=~|!=|!~|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left)\s*\(([^)]*)\)")

Series = dict[str, dict[str, set[str]]]  # name of the series -> label -> values


@pytest.fixture(scope="module")
def series() -> Series:
    found: Series = defaultdict(lambda: defaultdict(set))
    apps = (all_that_an_app_can_count(), all_that_ctr_collect_can_count(), all_that_ctr_join_can_count())
    for text in (*apps, *of_a_running_service()):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = found[sample.name]
                for name, value in sample.labels.items():
                    labels[name].add(value)
    return found


def all_that_an_app_can_count() -> str:
    metrics = Metrics()
    problems = [one for one in vars(errors).values() if is_a_problem(one)]
    for error in (*problems, RuntimeError, asyncio.CancelledError, None):
        with suppress(Problem, RuntimeError, asyncio.CancelledError), metrics.request(key=lambda: "a key"):
            if error is not None:
                raise error("raised on purpose")
    with metrics.explanation():
        kinds = {kind: Counter(user=1) for kind in ("missing", "unknown", "outside")}
        metrics.count_tokens(kinds, Counter({"context": 1, "candidate": 1}))
    metrics.set_model("stec", "1")
    for reason in (WITHOUT_REDIS, WITHOUT_VOCABULARY):
        metrics.degraded.labels(reason).inc()
    for reason in ("queue", "write"):
        metrics.not_logged.labels(reason).inc()
    schema = FeatureSchema((Field("user", "context"), Field("ad", "candidate"), Field("bid", "candidate", "numeric")))
    categorical = dict.fromkeys(("user", "ad"), CategoricalReference(0.1, 0.1))
    bins = Bins((0.5,), (0.5, 0.5))
    numeric = {"bid": NumericReference(bins, 0.1)}
    metrics.drift.open("1", schema, Reference(rows=1, predicted=bins, numeric=numeric, categorical=categorical))
    return generate_latest(metrics.registry).decode()


def all_that_ctr_join_can_count() -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_metrics(path := Path(folder) / "ctr.prom", {"1": Clicks(1, 1, 0.5)}, 0.0)
        return path.read_text()


def all_that_ctr_collect_can_count() -> str:
    metrics = CollectMetrics()
    with metrics.request():
        for outcome in (STORED, NOT_STORED):
            metrics.count_events(CheckedEvents(b"", Counter(EVENT_TYPES), [], 1), outcome)
    return metrics.text().decode()


def is_a_problem(one: object) -> bool:
    return isinstance(one, type) and issubclass(one, Problem) and one is not Problem


def of_a_running_service() -> Iterator[str]:
    """Yield the metrics of a running service, which include those of its supervisor."""
    port = a_free_port()
    settings = {"CTR_BUNDLE": str(DEMO), "CTR_PORT": str(port), "CTR_WORKERS": "1", "CTR_DRAIN_NOTICE_MS": "0"}
    with subprocess.Popen([sys.executable, "-m", "service"], env=without_settings() | settings) as process:
        try:
            eventually(lambda: is_ready(port), "ready")
            yield get(f"http://127.0.0.1:{port}/metrics").text
        finally:
            process.terminate()


def is_ready(port: int) -> bool:
    with suppress(httpx.TransportError):
        return get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    return False


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in read(PROMETHEUS / file)["groups"] for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules("rules.yml")}
ALERTS = rules("alerts.yml")


def adapted() -> list[dict[str, Any]]:
    custom: list[dict[str, Any]] = read(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"]
    return custom


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [
        *RECORDED.values(),
        *(alert["expr"] for alert in ALERTS),
        *(target["expr"] for panel in panels() for target in panel.get("targets", [])),
        *(annotation["expr"] for annotation in dashboard["annotations"]["list"]),
        *(variable["definition"] for variable in dashboard["templating"]["list"]),
        *(rule["seriesQuery"] for rule in adapted()),
    ]


def test_every_queried_name_is_a_metric_of_the_service_or_a_recording_rule(series: Series) -> None:
    names = {name for query in queries() for name in NAME.findall(query)}
    assert len(names) > 40
    assert names - set(series) - set(RECORDED) == set()


def test_every_recording_rule_that_an_alert_names_exists() -> None:
    texts = [text for alert in ALERTS for text in alert["annotations"].values()]
    assert {name for text in texts for name in re.findall(r"\bctr:[\w:]*\w", text)} <= set(RECORDED)


def test_every_queried_label_value_exists(series: Series) -> None:
    of_all: dict[str, set[str]] = defaultdict(set)
    for labels in series.values():
        for label, values in labels.items():
            of_all[label] |= values
    asked = [(*one, query) for query in queries() for one in SELECTOR.findall(query)]
    for name, matchers, query in asked:
        known = series.get(name, of_all)
        for label, pattern in MATCHER.findall(matchers):
            if label not in OF_PROMETHEUS:
                assert set(pattern.split("|")) <= known[label], query
    assert len(asked) > 40


def test_every_grouping_label_comes_from_the_service_or_from_prometheus(series: Series) -> None:
    known = OF_PROMETHEUS.union(*series.values())
    groupings = [grouping for query in queries() for grouping in GROUPING.findall(query)]
    assert len(groupings) > 20
    for grouping in groupings:
        assert {label.strip() for label in grouping.split(",") if label.strip()} <= known


def test_every_query_has_balanced_brackets() -> None:
    closes = {")": "(", "]": "[", "}": "{"}
    for query in queries():
        opened: list[str] = []
        for character in re.sub(r'"[^"]*"', "", query):
            if character in closes.values():
                opened.append(character)
            if character in closes:
                assert opened, query
                assert opened.pop() == closes[character], query
        assert not opened, query


def test_every_outcome_counts_for_the_objective_or_is_caused_by_the_client(series: Series) -> None:
    of_the_client = {"bad_request", "too_large", "wrong_type", "unauthorized", "client_gone", "not_found", "refused"}
    counted = set(re.findall(r"\w+", RECORDED["ctr:requests:error_ratio_5m"].split("=~")[2].split('"')[1]))
    assert series["ctr_request_seconds_count"]["outcome"] == counted | of_the_client


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_a_summary_and_refers_to_the_documentation(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"]
    _, page, after = re.split(r"docs/(operations|collect)\.md", alert["annotations"]["description"])
    section = PAGES[page].split("## What goes wrong")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")]
    assert after.startswith(', "What goes wrong": ')
    named = [row for row in rows if f'"{row}"' in after]
    assert named
    for row in named:
        after = after.replace(f'"{row}"', "")
    assert '"' not in after.replace('"What goes wrong"', ""), "the alert refers to a row that does not exist"


def test_prometheus_loads_these_rules_and_scrapes_the_job_that_they_query() -> None:
    for file in ("prometheus.yml", "kubernetes.yml"):
        configuration = read(PROMETHEUS / file)
        assert configuration["rule_files"] == ["rules.yml", "alerts.yml"]
        assert [job["job_name"] for job in configuration["scrape_configs"]] == ["ctr", "ctr-collect"]


def test_names_of_rules_and_alerts_are_unique() -> None:
    assert len(RECORDED) == len(rules("rules.yml"))
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)


def test_every_panel_has_a_unique_id_and_uses_the_provisioned_data_source() -> None:
    sources = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    source = {"type": "prometheus", "uid": sources[0]["uid"]}
    assert len({panel["id"] for panel in panels()}) == len(panels()) > 20
    for panel in panels():
        for part in ([panel] if panel["type"] != "row" else []) + panel.get("targets", []):
            assert part["datasource"] == source, panel["title"]
    dashboard = json.loads(DASHBOARD.read_text())
    for one in (*dashboard["annotations"]["list"], *dashboard["templating"]["list"]):
        assert one["datasource"] == source
    assert dashboard["schemaVersion"] >= 38


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) is panel["title"]


def test_the_autoscaler_uses_the_metrics_that_the_adapter_makes_from_recording_rules() -> None:
    autoscaler = read(KUBERNETES / "autoscaler.yaml")
    asked = {one["pods"]["metric"]["name"] for one in autoscaler["spec"]["metrics"] if one["type"] == "Pods"}
    assert asked == {rule["name"]["as"] for rule in adapted()}
    for rule in adapted():
        recorded = rule["seriesQuery"].split("{")[0]
        assert re.fullmatch(rule["name"]["matches"], recorded)
        # The rule must keep the pods' names, because otherwise the metric would be the mean over all pods.
        assert " by " not in RECORDED[recorded]


def test_the_rules_pass_their_own_tests() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH")
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "tests.yml", "tests-drift.yml"]):
        done = subprocess.run([promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
