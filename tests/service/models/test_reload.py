"""Reloading by pointer, SIGHUP or POST /admin/reload: a bad model is refused, and the old one stays in use."""

import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from contract.bundle import open_bundle
from service.models import store as stores
from service.vocabulary.publish import publish
from tests.support.app import a_request, problem
from tests.support.paths import ROOT
from tests.support.processes import (
    KEEPS_PRIORITY,
    Server,
    a_free_port,
    accepting_workers,
    another_bundle,
    children,
    client_for,
    eventually,
    get,
    metric,
    post,
    private_kib,
    served_version,
    serving,
    start,
    with_wrong_golden,
)
from tests.support.redis_server import RedisServer

KEY = "a-key-of-the-operator"


@pytest.fixture
def two_versions(bundle: Path, tmp_path: Path) -> Path:
    """A store with two versions. The small bundle is current."""
    folder = tmp_path / "store"
    assert stores.main(["add", str(folder), str(another_bundle(tmp_path / "another"))]) == 0
    assert stores.main(["add", str(folder), str(bundle), "--activate"]) == 0
    return folder


@pytest.fixture
def versions(bundle: Path, two_versions: Path, tmp_path: Path) -> tuple[str, str]:
    return open_bundle(bundle).manifest.version, open_bundle(tmp_path / "another").manifest.version


@contextmanager
def serving_store(
    store: Path, tmp_path: Path, program: Sequence[str] = KEEPS_PRIORITY, /, **settings: str
) -> Iterator[Server]:
    key = tmp_path / "admin-key"
    key.write_text(KEY + "\n")
    more = {"CTR_WORKERS": "2", "CTR_TIMEOUT_MS": "5000", "CTR_ADMIN_KEY_FILE": str(key), **settings}
    with serving("", program, CTR_STORE=str(store), **more) as server:
        eventually(lambda: accepting_workers(server) == int(more["CTR_WORKERS"]), "all workers accept connections")
        yield server


def reload(url: str, key: str = KEY) -> httpx.Response:
    return post(f"{url}/admin/reload", headers={"Authorization": f"Bearer {key}"})


def reloads(url: str) -> float:
    """Count both outcomes: if a worker is not ready yet, an unchanged version counts as loaded."""
    return sum(metric(url, f'ctr_reloads_total{{outcome="{outcome}"}}') for outcome in ("loaded", "unchanged"))


def all_serve(server: Server, version: str) -> bool:
    """Return whether several new connections, which very likely reach every worker, all get this version."""
    return all(served_version(server.url) == version for _ in range(12))


@contextmanager
def constant_load(url: str) -> Iterator[list[httpx.Response]]:
    """Send requests from two threads, one soon after another, and yield the responses."""
    stop, answers = Event(), []

    def ask() -> None:
        with client_for(url) as client:
            while not stop.is_set():
                answers.append(client.post("/v1/score", json=a_request(timeout_ms=5000)))
                time.sleep(0.002)  # Leaves CPU time to the workers that load the other model.

    threads = [Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.timing
def test_changed_pointer_replaces_the_model_under_load(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path
) -> None:
    small, another = versions
    with serving_store(two_versions, tmp_path) as server, constant_load(server.url) as answers:
        assert all_serve(server, small)
        eventually(lambda: any(answer.json()["version"] == small for answer in answers), "the load is answered")
        stores.main(["activate", str(two_versions), another])
        eventually(lambda: all_serve(server, another), "the other model is served")
        eventually(lambda: any(answer.json()["version"] == another for answer in answers), "the load is answered by it")
        stores.main(["rollback", str(two_versions)])
        eventually(lambda: all_serve(server, small), "the first model is served again")
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    right = {small: expected(server, answers, small), another: expected(server, answers, another)}
    assert right[small] != right[another]
    for answer in answers:
        assert [score["ctr"] for score in answer.json()["scores"]] == pytest.approx(right[answer.json()["version"]])


def expected(server: Server, answers: list[httpx.Response], version: str) -> list[float]:
    """Return the scores in a version's first response. Its later responses must have the same scores."""
    first = next(answer.json() for answer in answers if answer.json()["version"] == version)
    return [score["ctr"] for score in first["scores"]]


def test_sighup_loads_the_current_version(two_versions: Path, versions: tuple[str, str], tmp_path: Path) -> None:
    with serving_store(two_versions, tmp_path) as server:
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: reloads(server.url) == 1, "the same version is reloaded")
        stores.main(["activate", str(two_versions), versions[1]])
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: all_serve(server, versions[1]), "the other model is served")
        stores.main(["rollback", str(two_versions)])
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: all_serve(server, versions[0]), "the first model is served again")
        assert all_serve(server, versions[0])


def test_admin_reload_loads_a_replaced_bundle(bundle: Path, tmp_path: Path) -> None:
    served, key = Path(shutil.copytree(bundle, tmp_path / "served")), tmp_path / "key"
    key.write_text(KEY)
    with serving(served, KEEPS_PRIORITY, CTR_ADMIN_KEY_FILE=str(key), CTR_WORKERS="1") as server:
        served.rename(tmp_path / "old")
        another = another_bundle(tmp_path / "served")
        assert reload(server.url).json() == {"version": open_bundle(another).manifest.version}


def corrupted(folder: Path) -> None:
    (folder / "model.onnx").unlink()  # Files in a store are read-only.
    (folder / "model.onnx").write_bytes(b"no model")


def without_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (corrupted, "model.onnx was changed after the export"),
        pytest.param(without_a_manifest, "manifest.json", marks=pytest.mark.full),
    ],
)
def test_bad_bundle_is_refused_and_the_old_one_stays_in_use(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    small, another = versions
    with serving_store(two_versions, tmp_path) as server:
        damage(two_versions / "versions" / another)
        point_to(two_versions, another)
        refused = problem(reload(server.url), 409, None, message, "The previous model stays in service")
        assert refused["type"] == "urn:problem-type:ctr:refused"
        assert str(tmp_path) not in refused["detail"]
        assert metric(server.url, 'ctr_reloads_total{outcome="refused"}') >= 1
        assert all_serve(server, small)
        assert reports(server.url, small, another)
        # A worker that replaces a killed one does not load the bad bundle either.
        killed = children(server.process.pid)[0]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: killed not in children(server.process.pid), "the worker has exited")
        eventually(lambda: accepting_workers(server) == 2, "the worker is replaced")
        assert all_serve(server, small)
        eventually(lambda: all(reports(server.url, small, another) for _ in range(20)), "all workers report it")


def reports(url: str, served: str, refused: str | None) -> bool:
    """Return whether the server says that it serves a version instead of the store's current one."""
    model = get(f"{url}/v1/model").json()
    readyz = get(f"{url}/readyz").text
    return (
        (model["version"], model.get("current_refused")) == (served, refused)
        and readyz.startswith(f"ready: {served}")
        and (f"current version {refused} was refused" in readyz) == bool(refused)
        and metric(url, "ctr_current_refused") == bool(refused)
    )


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def with_other_answers(folder: Path) -> None:
    """Replace the bundle with an intact one whose folder has the wrong name and whose golden answers are wrong."""
    shutil.copytree(folder, folder.with_name("whole"))
    shutil.rmtree(folder)
    with_wrong_golden(folder.with_name("whole"), folder)
    shutil.rmtree(folder.with_name("whole"))


@pytest.mark.parametrize(
    "damage",
    [
        corrupted,
        with_other_answers,
        *(pytest.param(damage, marks=pytest.mark.full) for damage in (without_a_manifest, removed)),
    ],
)
def test_start_up_falls_back_to_the_last_good_version(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    small, another = versions
    stores.activate(two_versions, another)
    damage(two_versions / "versions" / another)
    with serving_store(two_versions, tmp_path) as server:
        eventually(lambda: all(reports(server.url, small, another) for _ in range(20)), "all workers report it")
        assert metric(server.url, 'ctr_reloads_total{outcome="refused"}') == 1
        assert stores.main(["rollback", str(two_versions)]) == 0
        eventually(lambda: all(reports(server.url, small, None) for _ in range(20)), "the current version is served")
        server.process.send_signal(signal.SIGTERM)
        _, log = server.process.communicate(timeout=60)
    assert f"The store's current version {another} " in log
    assert f"Falling back to {small}" in log


def test_a_version_that_was_refused_is_served_once_it_has_been_repaired(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path
) -> None:
    stores.activate(two_versions, versions[1])
    with serving_store(two_versions, tmp_path, CTR_WORKERS="1") as server:
        corrupted(two_versions / "versions" / versions[1])
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        eventually(lambda: served_version(server.url) == versions[0], "the server has fallen back")
        assert stores.main(["add", str(two_versions), str(tmp_path / "another"), "--activate"]) == 0
        eventually(lambda: served_version(server.url) == versions[1], "the repaired version is served")


def test_if_no_version_can_be_served_the_current_one_is_tried_again(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path
) -> None:
    stores.activate(two_versions, versions[1])
    with serving_store(two_versions, tmp_path, CTR_WORKERS="1") as server:
        for version in versions:
            corrupted(two_versions / "versions" / version)
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        assert server.process.stderr is not None
        log = iter(server.process.stderr)
        assert any(f"Falling back to {versions[0]}" in line for line in log)
        assert any("A new one starts in 1.0 s" in line for line in log)
        shutil.copy(tmp_path / "another" / "model.onnx", two_versions / "versions" / versions[1])
        eventually(lambda: served_version(server.url) == versions[1], "the restored version is served")
        assert metric(server.url, "ctr_current_refused") == 0


def test_start_up_fails_if_no_version_of_the_store_is_good(two_versions: Path, versions: tuple[str, str]) -> None:
    stores.activate(two_versions, versions[1])
    for version in versions:
        corrupted(two_versions / "versions" / version)
    with start(CTR_STORE=str(two_versions)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("model.onnx was changed after the export") == 2


def test_files_overwritten_in_place_are_reported_and_the_server_recovers(tmp_path: Path) -> None:
    served = Path(shutil.copytree(ROOT / "deploy" / "demo", tmp_path / "served"))
    weights = (served / "weights.bin").read_bytes()
    with serving(served, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000") as server:
        os.truncate(served / "weights.bin", 0)
        url, body = server.curl[2], server.curl[-1]
        headers = {"Content-Type": "application/json"}
        with pytest.raises(httpx.TransportError):
            post(url, content=body, headers=headers)
        (served / "weights.bin").write_bytes(weights)

        def is_served() -> bool:
            with suppress(httpx.TransportError):
                return post(url, content=body, headers=headers).status_code == 200
            return False

        eventually(is_served, "a new worker serves the restored bundle")
        os.truncate(served / "weights.bin", 0)
        with pytest.raises(httpx.TransportError):
            post(url, content=body, headers=headers)
        assert server.process.stderr is not None
        reasons = (line for line in server.process.stderr if "A memory-mapped file was truncated" in line)
        reason = next(line for line in reasons if "weights.bin was changed after the export" in line)
        assert "Never overwrite the files of a bundle that is served" in reason


def test_files_overwritten_with_the_same_size_are_named_once_and_the_server_recovers(tmp_path: Path) -> None:
    served = Path(shutil.copytree(ROOT / "deploy" / "demo", tmp_path / "served"))
    weights = (served / "weights.bin").read_bytes()
    with serving(served, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000", CTR_DRAIN_NOTICE_MS="0") as server:
        url, body = server.curl[2], server.curl[-1]
        statuses: list[int] = []

        def status() -> int:
            with suppress(httpx.TransportError):
                answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=3)
                statuses.append(answer.status_code)
                if answer.status_code == 500:
                    assert "files were overwritten while the server used them" in answer.json()["detail"]
                return answer.status_code
            return 0

        assert status() == 200
        overwrite(served / "weights.bin", b"\xff" * len(weights))  # Every number is NaN.
        eventually(lambda: status() == 0, "the worker has stopped")
        overwrite(served / "weights.bin", weights)
        eventually(lambda: status() == 200, "a new worker serves the restored bundle")
        server.process.send_signal(signal.SIGTERM)
        _, log = server.process.communicate(timeout=60)
    assert statuses.count(500) == 1
    assert {*statuses} <= {200, 500, 503}
    assert log.count("Never overwrite the files of a bundle that is served") == 1
    assert "weights.bin was changed after the export" in log


def overwrite(path: Path, content: bytes) -> None:
    """Write to a file in place, so that processes that have mapped it into memory see the new content."""
    with path.open("r+b") as file:
        file.write(content)


def test_concurrent_reload_requests_are_combined(two_versions: Path, versions: tuple[str, str], tmp_path: Path) -> None:
    with serving_store(two_versions, tmp_path, CTR_WORKERS="1") as server:
        corrupted(two_versions / "versions" / versions[1])
        point_to(two_versions, versions[1])
        for _ in range(50):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        problem(reload(server.url), 409, None, "The previous model stays in service")
        assert 1 <= metric(server.url, 'ctr_reloads_total{outcome="refused"}') < 10


def point_to(store: Path, version: str) -> None:
    """Change the pointer without using ctr-store."""
    text = (store / "current").read_text()
    small = next(name for name in text.split('"') if len(name) == 64)
    aside = store / "aside"
    aside.write_text(text.replace(small, version, 1))
    aside.rename(store / "current")


def test_model_with_wrong_answers_is_refused(bundle: Path, tmp_path: Path) -> None:
    served, key = Path(shutil.copytree(bundle, tmp_path / "served")), tmp_path / "key"
    key.write_text(KEY)
    with serving(served, KEEPS_PRIORITY, CTR_ADMIN_KEY_FILE=str(key), CTR_WORKERS="1") as server:
        served.rename(tmp_path / "old")
        with_wrong_golden(bundle, tmp_path / "served")
        problem(reload(server.url), 409, None, "more than 1e-05 (0.001 of the probability): export the run again")
        assert served_version(server.url) == open_bundle(bundle).manifest.version


def test_admin_routes_require_their_key(two_versions: Path, tmp_path: Path) -> None:
    with serving_store(two_versions, tmp_path) as server:
        for answer in (reload(server.url, "a-wrong-key-of-somebody"), post(f"{server.url}/admin/reload")):
            problem(answer, 401, None, "CTR_ADMIN_KEY_FILE")
        assert metric(server.url, 'ctr_reloads_total{outcome="loaded"}') == 0


def test_admin_routes_do_not_exist_without_a_key(bundle: Path) -> None:
    with serving(bundle, CTR_WORKERS="1") as server:
        assert reload(server.url).status_code == 404


def test_admin_port_serves_only_admin_probes_and_metrics(two_versions: Path, tmp_path: Path) -> None:
    port = a_free_port()
    with serving_store(two_versions, tmp_path, CTR_ADMIN_PORT=str(port)) as server:
        admin = f"http://127.0.0.1:{port}"
        assert reload(server.url).status_code == 404
        assert reload(admin).status_code == 200
        assert reloads(admin) == 1
        assert get(f"{server.url}/metrics").status_code == 404
        assert get(f"{admin}/readyz").status_code == 200
        nothing = post(f"{admin}/v1/score", json=a_request())
        problem(nothing, 404, None, "/v1/score does not exist")
        assert "/docs" not in nothing.text


def test_model_activated_while_no_worker_runs_is_served(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path
) -> None:
    with serving_store(two_versions, tmp_path, CTR_WORKERS="1") as server:
        (worker,) = children(server.process.pid)
        os.kill(worker, signal.SIGKILL)  # A worker that was started recently is replaced after a delay.
        eventually(lambda: worker not in children(server.process.pid), "the worker has exited")
        assert stores.main(["activate", str(two_versions), versions[1]]) == 0
        eventually(lambda: served_version(server.url) == versions[1], "the new model is served")


def test_store_without_a_current_version_cannot_be_served(tmp_path: Path) -> None:
    with start(CTR_STORE=str(tmp_path)) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("reloads", [4, pytest.param(10, marks=pytest.mark.full)])
def test_memory_of_old_models_is_freed(
    two_versions: Path, versions: tuple[str, str], tmp_path: Path, reloads: int
) -> None:
    with serving_store(two_versions, tmp_path, CTR_WORKERS="1") as server:
        (worker,) = children(server.process.pid)
        alternate(server, two_versions, versions, 3)
        time.sleep(1)  # Until the old models are closed. Without this, the limit would only be higher.
        before = private_kib(worker)
        alternate(server, two_versions, versions, reloads)
        eventually(lambda: private_kib(worker) - before < reloads * 1024, "the memory of the old models is freed")


def alternate(server: Server, store: Path, versions: tuple[str, str], times: int) -> None:
    for number in range(times):
        wanted = versions[(versions.index(served_version(server.url)) + 1) % 2]
        stores.main(["activate", str(store), wanted])
        assert reload(server.url).json() == {"version": wanted}, number


def test_bundle_without_a_vocabulary_is_reloaded_with_redis(
    bundle: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    served, key = Path(shutil.copytree(bundle, tmp_path / "served")), tmp_path / "key"
    key.write_text(KEY)
    another = another_bundle(tmp_path / "another")
    with redis_server.client() as client:
        for one in (bundle, another):
            publish(client, open_bundle(one))
    version = open_bundle(another).manifest.version
    for folder in (served, another):
        shutil.rmtree(folder / "vocabulary")
    settings = {"CTR_VOCABULARY": "redis", "CTR_REDIS_URL": redis_server.url, "CTR_REDIS_TIMEOUT_MS": "1000"}
    settings |= {"CTR_BUNDLE": str(served), "CTR_ADMIN_KEY_FILE": str(key), "CTR_WORKERS": "1"}
    with start(KEEPS_PRIORITY, **settings) as process:
        try:
            assert process.stdout is not None
            url = shlex.split(process.stdout.readline())[2].removesuffix("/v1/score")
            served.rename(tmp_path / "old")
            another.rename(served)
            assert reload(url).json() == {"version": version}
            answer = post(f"{url}/v1/score", json=a_request(timeout_ms=5000)).json()
            assert (answer["version"], answer["degraded"]) == (version, [])
        finally:
            process.terminate()
            process.wait(30)
