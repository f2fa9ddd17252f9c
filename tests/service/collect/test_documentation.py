"""docs/collect.md covers all metrics, statuses and members of events."""

import re

from contract.events import Event
from service.collect.metrics import CollectMetrics
from service.collect.openapi import EVENT_PROBLEMS
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "collect.md").read_text()


def test_it_names_every_metric_and_no_other() -> None:
    families = CollectMetrics().registry.collect()
    names = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    section = PAGE.split("## Metrics")[1].split("\n## ")[0]
    assert set(re.findall(r"`(ctr_[a-z_]+)", section)) == names


def test_it_names_every_member_of_an_event() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.split("## API")[1].split("\n## ")[0], re.MULTILINE)
    assert tuple(rows) == Event.__struct_fields__


def test_it_names_the_statuses_that_a_client_must_handle() -> None:
    section = PAGE.split("## API")[1].split("\n## ")[0]
    for status in {202, 400, *EVENT_PROBLEMS} - {408, 431, 500, 504}:  # the row "other" covers these
        assert re.search(rf"\b{status}\b", section), status
