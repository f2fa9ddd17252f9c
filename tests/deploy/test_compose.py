"""Checks of compose.yaml and the Dockerfile that need no Docker engine. `make compose-test` starts the containers."""

import re
from typing import Any

import pytest
import yaml

from service.collect.redis_stream import STOP_S
from service.collect.settings import CollectSettings, read_collect_settings
from service.processes.supervisor import KILL_S
from service.settings import Settings, read_settings
from tests.support.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LASTING = sorted(set(SERVICES) - {"publish"})


@pytest.mark.parametrize("name", LASTING)
def test_a_long_running_service_has_a_health_check_limits_and_a_restart_policy(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert "healthcheck" in service or "HEALTHCHECK" in DOCKERFILE


def test_ports_are_published_only_on_localhost() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_start_after_their_dependencies_are_healthy() -> None:
    needs = {
        name: {on: how["condition"] for on, how in s.get("depends_on", {}).items()} for name, s in SERVICES.items()
    }
    assert needs == {
        "redis": {},
        "publish": {"redis": "service_healthy"},
        "service": {"redis": "service_healthy", "publish": "service_completed_successfully"},
        "collect": {"publish": "service_completed_successfully"},
        "prometheus": {"service": "service_healthy"},
        "grafana": {"prometheus": "service_healthy"},
    }


def test_every_mounted_folder_exists_and_is_read_only() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = tuple(f"{volume}:" for volume in COMPOSE["volumes"])
    folders = [mount.split(":") for mount in mounts if isinstance(mount, str) and not mount.startswith(named)]
    assert len(folders) == 3
    for source, _, mode in folders:
        assert source.startswith("./")  # Otherwise, Compose would read the source as the name of a volume.
        assert (ROOT / source).is_dir(), source
        assert mode == "ro"


@pytest.mark.parametrize("name", ["publish", "service"])
def test_the_bundle_may_be_a_relative_path(name: str) -> None:
    """In the short syntax, bundles/shop would be read as the name of a volume."""
    assert SERVICES[name]["volumes"][0] == {
        "type": "bind",
        "source": "${BUNDLE:-./deploy/demo}",
        "target": "/bundle",
        "read_only": True,
    }
    assert (ROOT / "deploy" / "demo").is_dir()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_has_no_capabilities_and_cannot_gain_any(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["service", "collect"])
def test_a_server_runs_without_root_on_a_read_only_file_system(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)


def test_the_stop_grace_period_is_longer_than_draining_takes() -> None:
    fields = Settings.model_fields
    needs_s = (fields["drain_notice_ms"].default + fields["drain_ms"].default) / 1e3 + KILL_S
    assert float(SERVICES["service"]["stop_grace_period"].removesuffix("s")) > needs_s
    of_collect = CollectSettings.model_fields
    needs_s = (of_collect["drain_notice_ms"].default + of_collect["drain_ms"].default) / 1e3 + STOP_S
    assert float(SERVICES["collect"]["stop_grace_period"].removesuffix("s")) > needs_s


def test_the_settings_of_both_servers_are_valid() -> None:
    image = dict(re.findall(r"^ +(CTR_\w+)=(\S+)", DOCKERFILE, re.MULTILINE))
    assert set(image) == {"CTR_BUNDLE", "CTR_HOST", "CTR_PORT"}
    assert read_settings({**image, **SERVICES["service"]["environment"]}).request_log_sample == 1
    settings = read_collect_settings({**image, **SERVICES["collect"]["environment"]})
    assert SERVICES["collect"]["ports"][0].endswith(f":{settings.port}")
    assert f":{settings.port}/readyz" in SERVICES["collect"]["healthcheck"]["test"][-1]


def test_the_logs_are_on_volumes_that_the_images_user_may_write_to() -> None:
    (made,) = re.findall(r"install -d -o ctr -m 0750 (.*)$", DOCKERFILE, re.MULTILINE)
    mounted = {
        "service": SERVICES["service"]["environment"]["CTR_REQUEST_LOG"],
        "collect": SERVICES["collect"]["environment"]["CTR_COLLECT_FOLDER"],
    }
    assert made.split() == list(mounted.values())
    for name, folder in mounted.items():
        volume, target = SERVICES[name]["volumes"][-1].split(":")
        assert target == folder
        assert volume in COMPOSE["volumes"]


def test_signals_reach_the_servers_and_not_a_shell() -> None:
    assert SERVICES["collect"]["command"] == ["python", "-m", "service.collect"]
    assert re.search(r'^CMD \["python", "-m", "service"\]$', DOCKERFILE, re.MULTILINE)
    assert "ENTRYPOINT" not in DOCKERFILE


def test_the_image_has_the_projects_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"ARG VERSION={version[1]}\n" in DOCKERFILE
