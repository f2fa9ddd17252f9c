"""docs/operations.md covers all settings, metrics, log fields and outcomes."""

import inspect
import re

from service import errors
from service.errors import Problem
from service.processes import reload, supervisor
from service.settings import Settings
from service.telemetry import json_logging
from service.telemetry.metrics import Metrics
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_it_names_every_setting() -> None:
    for name in Settings.model_fields:
        assert f"`CTR_{name.upper()}`" in PAGE, name


def test_the_defaults_that_it_states_match_the_settings() -> None:
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `CTR_")]
    stated = 0
    for names, defaults, *_ in rows:
        fields = [name.lower() for name in re.findall(r"`CTR_(\w+)`", names)]
        for field, said in zip(fields, defaults.split(", "), strict=False):
            default = Settings.model_fields[field].default
            if re.fullmatch(r"[\d.]+|true|false", said.strip()):
                stated += 1
                assert str(default).lower() == said.strip() or float(default) == float(said), field
    assert stated > 20


def test_it_names_every_metric_and_no_other() -> None:
    names = {_exposed(family.name, family.type) for family in Metrics().registry.collect()}
    sources = inspect.getsource(supervisor) + inspect.getsource(reload)
    of_supervisor = re.findall(r'(Counter|Gauge)\(\s*"(ctr_\w+)"', sources)
    names |= {_exposed(name, kind.lower()) for kind, name in of_supervisor}
    assert len(names) > 20
    section = PAGE.split("## Metrics")[1].split("\n## ")[0]
    assert set(re.findall(r"`(ctr_[a-z_]+)", section)) == names


def _exposed(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def test_it_names_every_log_field() -> None:
    members = set(re.findall(r'^\s+"(\w+)": ', inspect.getsource(json_logging.JsonLines), re.MULTILINE))
    for member in (*members, "request_id", "path", "error", "frames", "exception", "body"):
        assert f"`{member}`" in PAGE.split("## Log")[1], member


def test_it_names_every_outcome_and_status() -> None:
    problems = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, Problem)]
    counted = PAGE.split("`ctr_request_seconds{outcome}`")[1].splitlines()[0]
    for one in problems:
        if one.outcome not in ("not_found", "refused"):  # not outcomes of scoring requests
            assert one.outcome in counted
        assert str(one.status) in PAGE or one.status in (400, 404, 499)
