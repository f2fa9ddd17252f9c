"""The manifests are valid and consistent with the service's behavior."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fastapi import FastAPI

from service.app import create_app
from service.collect.app import create_app as create_collect_app
from service.collect.redis_stream import STOP_S
from service.collect.settings import CollectSettings, read_collect_settings
from service.processes.supervisor import KILL_S
from service.settings import Settings, read_settings
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "k8s"
NO_MANIFESTS = {"kustomization.yaml", "prometheus-adapter.yaml"}
SERVICE, REDIS, PUBLISH, COLLECT = "stec-ctr", "stec-ctr-redis", "stec-ctr-publish", "stec-ctr-collect"
USER = 10001
NAME_LABEL = "app.kubernetes.io/name"

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    files = sorted(path for path in FOLDER.glob("*.yaml") if path.name not in NO_MANIFESTS)
    return [one for path in files for one in yaml.safe_load_all(path.read_text())]


def the(kind: str, name: str) -> Manifest:
    (found,) = [one for one in manifests() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def kustomization() -> Manifest:
    found: Manifest = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    return found


def given(file: str = "settings.env") -> dict[str, str]:
    lines = (FOLDER / file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def settings() -> Settings:
    return read_settings(given())


def collect_settings() -> CollectSettings:
    return read_collect_settings(given("collect.env"))


def templates() -> Iterator[tuple[str, Manifest]]:
    for one in manifests():
        if "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]


def pod(name: str) -> Manifest:
    spec: Manifest = dict(templates())[name]["spec"]
    return spec


def container(name: str) -> Manifest:
    (only,) = pod(name)["containers"]
    found: Manifest = only
    return found


def megabytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([MG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "Gi" else 1)


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_valid(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_can_be_applied_in_any_namespace() -> None:
    assert set(kustomization()["resources"]) == {path.name for path in FOLDER.glob("*.yaml")} - NO_MANIFESTS
    assert "namespace" not in kustomization()
    assert not [one for one in manifests() if "namespace" in one["metadata"]]


def test_the_image_has_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert kustomization()["images"] == [{"name": project["name"], "newTag": project["version"]}]
    for name in (SERVICE, PUBLISH, COLLECT):
        assert container(name)["image"] == project["name"]


def test_the_settings_are_valid() -> None:
    assert settings().host == "0.0.0.0"  # noqa: S104
    assert settings().workers is None, "the service derives the number of workers from the CPU limit"
    generated = kustomization()["configMapGenerator"]
    assert generated == [{"name": SERVICE, "envs": ["settings.env"]}, {"name": COLLECT, "envs": ["collect.env"]}]
    for name, settings_of in ((SERVICE, SERVICE), (PUBLISH, SERVICE), (COLLECT, COLLECT)):
        assert container(name)["envFrom"] == [{"configMapRef": {"name": settings_of}}]


def test_the_settings_of_ctr_collect_are_valid_and_its_volume_has_room_for_the_folder() -> None:
    assert collect_settings().host == "0.0.0.0"  # noqa: S104
    (mount,) = [mount for mount in container(COLLECT)["volumeMounts"] if mount["name"] == "events"]
    assert Path(mount["mountPath"]) == collect_settings().folder
    (claim,) = the("StatefulSet", COLLECT)["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == mount["name"]
    assert collect_settings().max_bytes <= megabytes(claim["spec"]["resources"]["requests"]["storage"]) * 2**20 * 0.9


def test_events_survive_the_deletion_of_pods_and_of_the_stateful_set() -> None:
    policy = the("StatefulSet", COLLECT)["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert set(policy.values()) == {"Retain"}


@pytest.mark.parametrize(
    ("name", "kind", "settings_type", "prefix", "expected"),
    [
        (SERVICE, "Deployment", Settings, "CTR_", ("REDIS_URL", "API_KEYS_FILE", "PSEUDONYM_KEY_FILE")),
        (COLLECT, "StatefulSet", CollectSettings, "CTR_COLLECT_", ("REDIS_URL", "API_KEYS_FILE")),
    ],
)
def test_every_container_variable_is_a_setting(
    name: str,
    kind: str,
    settings_type: type[Settings | CollectSettings],
    prefix: str,
    expected: Sequence[str],
) -> None:
    components = [yaml.safe_load(path.read_text()) for path in (FOLDER / "components").glob("*/kustomization.yaml")]
    target = {"kind": kind, "name": f"^{name}$"}
    patches = [one for component in components for one in component["patches"] if one["target"] == target]
    patched = [yaml.safe_load(patch["patch"]) for patch in patches]
    assert {(one["kind"], one["metadata"]["name"]) for one in patched} == {(kind, name)}
    containers = [one for patch in patched for one in patch["spec"]["template"]["spec"]["containers"]]
    assert {one["name"] for one in containers} == {container(name)["name"]}
    variables = {variable["name"] for one in (container(name), *containers) for variable in one["env"]}
    known = {f"{prefix}{field.upper()}" for field in settings_type.model_fields}
    assert variables == {f"{prefix}{one}" for one in expected} <= known


def test_other_services_in_the_namespace_do_not_add_unknown_settings() -> None:
    for name, template in templates():
        assert template["spec"]["enableServiceLinks"] is False, name


def test_the_termination_grace_period_is_longer_than_draining_takes() -> None:
    takes_s = (settings().drain_notice_ms + settings().drain_ms) / 1e3 + KILL_S
    assert pod(SERVICE)["terminationGracePeriodSeconds"] > takes_s
    takes_s = (collect_settings().drain_notice_ms + collect_settings().drain_ms) / 1e3 + STOP_S
    assert pod(COLLECT)["terminationGracePeriodSeconds"] > takes_s


@pytest.mark.parametrize("name", [SERVICE, COLLECT])
def test_a_terminating_pod_accepts_requests_until_it_is_seen_as_not_ready(name: str) -> None:
    probe = container(name)["readinessProbe"]
    notice_ms = settings().drain_notice_ms if name == SERVICE else collect_settings().drain_notice_ms
    assert notice_ms / 1e3 > 2 * probe["periodSeconds"] * probe["failureThreshold"]
    assert "lifecycle" not in container(name), "a preStop hook would delay SIGTERM and the notice period"


@pytest.mark.parametrize("name", [SERVICE, COLLECT])
def test_the_probes_use_existing_routes_on_the_port_of_the_app(name: str, tmp_path: Path) -> None:
    app: FastAPI
    if name == SERVICE:
        app, port = create_app(Settings(bundle=ROOT / "deploy" / "demo")), settings().port
    else:
        app, port = create_collect_app(CollectSettings(folder=tmp_path)), collect_settings().port
    routes = {route.path for route in app.router.routes if hasattr(route, "path")}
    only = container(name)
    ports = {port["name"]: port["containerPort"] for port in only["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = only[probe]["httpGet"]
        assert asked["path"] in routes
        assert ports[asked["port"]] == port
    annotations = dict(templates())[name]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in routes
    assert int(annotations["prometheus.io/port"]) == port


@pytest.mark.parametrize("name", [SERVICE, COLLECT])
def test_a_pod_is_restarted_only_if_a_restart_can_help(name: str) -> None:
    only = container(name)
    assert only["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert only["livenessProbe"]["httpGet"]["path"] == only["startupProbe"]["httpGet"]["path"] == "/livez"


def test_selectors_match_the_labels_of_pods() -> None:
    labels = {name: template["metadata"]["labels"] for name, template in templates()}
    for name in (SERVICE, REDIS):
        assert the("Deployment", name)["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
        assert the("Service", name)["spec"]["selector"].items() <= labels[name].items()
    assert the("StatefulSet", COLLECT)["spec"]["selector"]["matchLabels"].items() <= labels[COLLECT].items()
    for name in (COLLECT, the("StatefulSet", COLLECT)["spec"]["serviceName"]):
        assert the("Service", name)["spec"]["selector"].items() <= labels[COLLECT].items()
    for name in (SERVICE, REDIS, PUBLISH, COLLECT):
        assert the("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= labels[name].items()
    for name in (SERVICE, COLLECT):
        budget = the("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]
        spread = [one["labelSelector"]["matchLabels"] for one in pod(name)["topologySpreadConstraints"]]
        for selector in (budget, *spread):
            assert selector.items() <= labels[name].items()
            assert not selector.items() <= labels[REDIS].items()


def test_services_target_ports_of_their_containers() -> None:
    pods_of_collect = the("StatefulSet", COLLECT)["spec"]["serviceName"]
    for name, target in ((SERVICE, SERVICE), (REDIS, REDIS), (COLLECT, COLLECT), (pods_of_collect, COLLECT)):
        (port,) = the("Service", name)["spec"]["ports"]
        assert port["targetPort"] in {one["name"] for one in container(target)["ports"]}
    headless = the("Service", pods_of_collect)["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["ports"][0]["port"] == collect_settings().port  # a headless Service does not translate ports
    assert f"//{REDIS}:6379/" in given()["CTR_REDIS_URL"]
    assert container(REDIS)["ports"][0]["containerPort"] == the("Service", REDIS)["spec"]["ports"][0]["port"] == 6379


@pytest.mark.parametrize("name", [SERVICE, REDIS, PUBLISH, COLLECT])
def test_a_pod_runs_without_root_or_privileges_on_a_read_only_file_system(name: str) -> None:
    of_pod, of_container = pod(name)["securityContext"], container(name)["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False
    assert the("ServiceAccount", pod(name)["serviceAccountName"])["automountServiceAccountToken"] is False


def test_a_pod_runs_as_the_images_user() -> None:
    assert f"--uid {USER} " in (ROOT / "Dockerfile").read_text()
    for name in (SERVICE, PUBLISH, COLLECT):
        assert pod(name)["securityContext"]["runAsUser"] == USER
    assert pod(COLLECT)["securityContext"]["fsGroup"] == USER, "otherwise the volume is not writable"


def test_the_service_can_write_metrics_to_shared_memory_and_temporary_files() -> None:
    volumes = {one["name"]: one["emptyDir"] for one in pod(SERVICE)["volumes"]}
    mounts = {one["mountPath"]: volumes[one["name"]] for one in container(SERVICE)["volumeMounts"]}
    assert set(mounts) == {"/tmp", "/dev/shm"}  # noqa: S108
    assert mounts["/dev/shm"]["medium"] == "Memory"  # noqa: S108
    shared = megabytes(mounts["/dev/shm"]["sizeLimit"])  # noqa: S108
    assert shared < megabytes(container(SERVICE)["resources"]["limits"]["memory"]) / 4


@pytest.mark.parametrize("name", [SERVICE, REDIS, PUBLISH, COLLECT])
def test_a_pod_has_whole_guaranteed_cpus(name: str) -> None:
    resources = container(name)["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"].isdecimal()


def test_redis_fits_into_its_container_and_evicts_nothing() -> None:
    arguments = container(REDIS)["args"]
    most = megabytes(arguments[arguments.index("--maxmemory") + 1].replace("mb", "Mi"))
    assert most <= megabytes(container(REDIS)["resources"]["limits"]["memory"]) * 0.7
    assert arguments[arguments.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_published_bundle_is_the_served_one() -> None:
    command, bundle, *keep = container(PUBLISH)["command"]
    assert command in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(bundle) == settings().bundle
    assert keep == ["--keep", "2"], "also keep the old pods' version while they are being replaced"


def test_the_autoscaler_has_a_target_and_only_it_sets_the_replicas() -> None:
    spec = the("HorizontalPodAutoscaler", SERVICE)["spec"]
    target = the(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    assert target["apiVersion"] == spec["scaleTargetRef"]["apiVersion"]
    assert "replicas" not in target["spec"]
    assert spec["minReplicas"] >= 2


def test_the_autoscaler_adds_pods_before_requests_are_refused() -> None:
    metrics = the("HorizontalPodAutoscaler", SERVICE)["spec"]["metrics"]
    (queue,) = [one["pods"] for one in metrics if one["type"] == "Pods"]
    assert "milliseconds" in queue["metric"]["name"]
    assert float(queue["target"]["averageValue"]) <= settings().queue_target_ms / 2


def test_rollouts_and_node_drains_replace_one_pod_at_a_time() -> None:
    rollout = the("Deployment", SERVICE)["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxUnavailable": 0, "maxSurge": 1}
    for name in (SERVICE, COLLECT):
        assert the("PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
    assert the("StatefulSet", COLLECT)["spec"]["replicas"] >= 2


def test_only_clients_and_monitoring_reach_the_service_which_reaches_only_redis_and_dns() -> None:
    policy = the("NetworkPolicy", SERVICE)["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (way_in,) = policy["ingress"]
    assert way_in["from"] == [
        {"podSelector": {"matchLabels": {"stec-ctr/client": "true"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]
    assert [port["port"] for port in way_in["ports"]] == [settings().port]
    to_redis, to_names = policy["egress"]
    assert to_redis["to"] == [{"podSelector": {"matchLabels": {NAME_LABEL: REDIS}}}]
    assert [port["port"] for port in to_redis["ports"]] == [6379]
    assert {port["port"] for port in to_names["ports"]} == {53}
    assert the("NetworkPolicy", PUBLISH)["spec"]["egress"] == policy["egress"]


def test_only_the_service_and_the_publisher_reach_redis_which_reaches_nothing() -> None:
    policy = the("NetworkPolicy", REDIS)["spec"]
    (way_in,) = policy["ingress"]
    assert [one["podSelector"]["matchLabels"][NAME_LABEL] for one in way_in["from"]] == [SERVICE, PUBLISH]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in policy


def test_only_clients_and_monitoring_reach_ctr_collect_which_reaches_nothing() -> None:
    policy = the("NetworkPolicy", COLLECT)["spec"]
    (way_in,) = policy["ingress"]
    assert way_in["from"] == the("NetworkPolicy", SERVICE)["spec"]["ingress"][0]["from"]
    assert [port["port"] for port in way_in["ports"]] == [collect_settings().port]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in policy
