"""compose.yaml and the Dockerfile, as far as they can be read without an engine: make compose-test runs them."""

import re
from typing import Any

import pytest
import yaml

from service.processes.supervisor import KILL_S
from service.settings import Settings
from tests.support.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LASTING = sorted(set(SERVICES) - {"publish"})


@pytest.mark.parametrize("name", LASTING)
def test_what_goes_on_says_whether_it_is_well_has_limits_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert "healthcheck" in service or "HEALTHCHECK" in DOCKERFILE


def test_every_port_is_open_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_nothing_starts_before_what_it_needs_is_well() -> None:
    needs = {
        name: {on: how["condition"] for on, how in s.get("depends_on", {}).items()} for name, s in SERVICES.items()
    }
    assert needs == {
        "redis": {},
        "publish": {"redis": "service_healthy"},
        "service": {"redis": "service_healthy", "publish": "service_completed_successfully"},
        "prometheus": {"service": "service_healthy"},
        "grafana": {"prometheus": "service_healthy"},
    }


def test_every_file_that_is_mounted_is_there_and_cannot_be_written_to() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount) for mount in mounts if not mount.startswith("prometheus:")]
    assert len(files) == 5
    for mount in files:
        source, _, mode = mount.split(":")
        assert (ROOT / source).is_dir(), mount
        assert mode == "ro"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_container_has_a_capability_or_can_get_one(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_the_service_is_nobody_and_can_write_nowhere() -> None:
    service = SERVICES["service"]
    assert service["read_only"] is True
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)


def test_it_has_longer_to_end_than_it_takes() -> None:
    fields = Settings.model_fields
    needs_s = (fields["drain_notice_ms"].default + fields["drain_ms"].default) / 1e3 + KILL_S
    assert float(SERVICES["service"]["stop_grace_period"].removesuffix("s")) > needs_s


def test_signals_reach_the_supervisor_and_not_a_shell() -> None:
    assert re.search(r'^CMD \["python", "-m", "service"\]$', DOCKERFILE, re.MULTILINE)
    assert "ENTRYPOINT" not in DOCKERFILE


def test_the_image_states_the_version_that_it_has() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"ARG VERSION={version[1]}\n" in DOCKERFILE
