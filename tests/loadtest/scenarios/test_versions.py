"""Two versions of one model, and a server that switches between them."""

from pathlib import Path

import numpy as np
import pytest

from contract.bundle import GOLDEN
from contract.golden import TOLERANCE, largest_difference, read_golden
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, begin
from loadtest.openloop.records import answered
from loadtest.scenarios.reload import timed_reload
from loadtest.scenarios.versions import TwoVersions, two_versions
from loadtest.servers import serving
from service.runtime.engine import golden_answers, open_engine
from tests.support.paths import DEMO


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> TwoVersions:
    return two_versions(DEMO, tmp_path_factory.mktemp("versions"))


def test_the_second_version_answers_its_own_golden_requests_and_differs_from_the_first(versions: TwoVersions) -> None:
    answer = golden_answers(open_engine(versions.second, threads=1), versions.second)
    for first, second in zip(
        read_golden(DEMO / GOLDEN), read_golden(versions.second.folder / GOLDEN)[:20], strict=False
    ):
        assert largest_difference(second.ctr, answer(second)).is_tolerated
        assert (np.asarray(second.ctr) - np.asarray(first.ctr) > TOLERANCE).all()


def test_a_prepared_request_has_the_probabilities_of_each_version(versions: TwoVersions) -> None:
    requests = prepare(versions.bundles, {1: 2, 5: 3}, timeout_ms=50)
    assert [len(request.ids) for request in requests] == [1, 1, 5, 5, 5]
    for request in requests:
        first, second = (request.expected[bundle.manifest.version] for bundle in versions.bundles)
        assert len(first) == len(request.ids)
        assert (np.asarray(second) > np.asarray(first)).all()


@pytest.mark.timing
def test_answers_during_a_reload_are_checked_against_both_versions(versions: TwoVersions, tmp_path: Path) -> None:
    requests = prepare(versions.bundles, {5: 10}, timeout_ms=5000)
    settings = {"CTR_STORE": str(versions.store), "CTR_TIMEOUT_MS": "5000"}
    with serving(tmp_path, 1, settings) as server:
        assert len(server.memory_mib()) == 1
        assert server.memory_mib()[0] > 10
        before = server.version()
        with begin(Load(server.url, 30, 4, timeout_ms=5000, check=1.0), requests) as running:
            assert timed_reload(server, versions) > 0
            outcome = running.wait()
        assert server.version() == versions.other(before)
        assert server.stop() == 0
    assert len(answered(outcome.records)) == len(outcome.records)
    assert not outcome.records["wrong"].any(), outcome.examples
