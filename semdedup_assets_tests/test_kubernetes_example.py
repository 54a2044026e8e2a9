"""The example for Kubernetes, without a cluster: that its files are whole, fit each other, and load where Dagster reads them."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from semdedup_assets.compute import WorkerResources
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.dagster_process import ROOT, configured_instance
from semdedup_assets_tests.postgres import PostgresServer, uncommented

EXAMPLE = ROOT / "examples" / "many_machines" / "kubernetes"
PROJECT = EXAMPLE / "project"
DAGSTER_YAML = (EXAMPLE / "dagster.yaml").read_text()

API_VERSIONS = {
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "Deployment": "apps/v1",
    "Namespace": "v1",
    "RayCluster": "ray.io/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Secret": "v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "StatefulSet": "apps/v1",
}
# Of dagster-k8s and dagster-aws, which are not installed here: from their documented configuration.
K8S_RUN_LAUNCHER = {
    *("dagster_home", "instance_config_map", "postgres_password_secret", "job_image", "image_pull_policy"),
    *("image_pull_secrets", "service_account_name", "env_config_maps", "env_secrets", "env_vars", "volume_mounts"),
    *("volumes", "labels", "resources", "scheduler_name", "security_context", "run_k8s_config", "job_namespace"),
    *("load_incluster_config", "kubeconfig_file", "fail_pod_on_run_failure"),
}
S3_COMPUTE_LOG_MANAGER = {
    *("bucket", "local_dir", "prefix", "use_ssl", "verify", "verify_cert_path", "endpoint_url", "skip_empty_files"),
    *("upload_interval", "upload_extra_args", "show_url_only", "region"),
}
Document = dict[str, Any]


def documents(file: str) -> list[Document]:
    return [each for each in yaml.safe_load_all((EXAMPLE / file).read_text()) if each is not None]


KUSTOMIZATION = documents("kustomization.yaml")[0]
ALL = [each for file in [*KUSTOMIZATION["resources"], "run-launcher.yaml"] for each in documents(file)]


def named(kind: str) -> dict[str, Document]:
    return {each["metadata"]["name"]: each for each in ALL if each["kind"] == kind}


def found(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key, however deep."""
    children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    if isinstance(node, dict) and key in node:
        yield node[key]
    for child in children:
        yield from found(child, key)


def pods() -> dict[str, Document]:
    """The pod specification of all that starts pods, by name."""
    templates = {
        name: each["spec"]["template"] for kind in ("Deployment", "StatefulSet") for name, each in named(kind).items()
    }
    cluster = named("RayCluster")["semdedup"]["spec"]
    groups = {"head": cluster["headGroupSpec"]} | {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
    return templates | {f"ray-{name}": group["template"] for name, group in groups.items()}


def variables(pod: Document) -> set[str]:
    """The environment variables that a pod's first container is given."""
    (container,) = pod["spec"]["containers"]
    names = {each["name"] for each in container.get("env", [])}
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            names |= named("Secret")[source["secretRef"]["name"]]["stringData"].keys()
        else:
            names |= config_maps()[source["configMapRef"]["name"]].keys()
    return names


def config_maps() -> dict[str, dict[str, str]]:
    """What kustomize makes ConfigMaps of: names and values, or files."""
    maps = {}
    for each in KUSTOMIZATION["configMapGenerator"]:
        values = dict(literal.split("=", 1) for literal in each.get("literals", []))
        maps[each["name"]] = values | {file: (EXAMPLE / file).read_text() for file in each.get("files", [])}
    return maps


def test_each_document_is_of_a_known_kind_and_has_a_name_of_its_own() -> None:
    assert {(each["kind"], each["apiVersion"]) for each in ALL} <= set(API_VERSIONS.items())
    names = [(each["kind"], each["metadata"]["name"]) for each in ALL]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for _, name in names)
    listed = {*KUSTOMIZATION["resources"], "kustomization.yaml", "run-launcher.yaml", "dagster.yaml", "workspace.yaml"}
    assert listed == {path.name for path in EXAMPLE.glob("*.yaml")}


def test_what_documents_name_is_there() -> None:
    for key, there in {
        "secretRef": named("Secret"),
        "secretKeyRef": named("Secret"),
        "configMapRef": config_maps(),
        "configMap": config_maps(),
        "serviceAccountName": named("ServiceAccount"),
        "roleRef": named("Role"),
    }.items():
        names = {each if isinstance(each, str) else each["name"] for each in found(ALL, key)}
        assert names <= there.keys(), key
    for reference in found(ALL, "secretKeyRef"):
        assert reference["key"] in named("Secret")[reference["name"]]["stringData"]
    for pod in pods().values():
        (container,) = pod["spec"]["containers"]
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        claimed = {each["metadata"]["name"] for claims in found(ALL, "volumeClaimTemplates") for each in claims}
        for mount in container.get("volumeMounts", []):
            assert mount["name"] in volumes.keys() | claimed
            if "subPath" in mount:
                assert mount["subPath"] in config_maps()[volumes[mount["name"]]["configMap"]["name"]]
    images = {pod["spec"]["containers"][0]["image"] for pod in pods().values()}
    assert images == {"semdedup", "postgres:17"}
    assert {each["name"] for each in KUSTOMIZATION["images"]} == {"semdedup"}


def test_services_lead_to_ports_of_pods() -> None:
    for name, service in named("Service").items():
        chosen = [pod for pod in pods().values() if service["spec"]["selector"].items() <= labels(pod).items()]
        assert len(chosen) == 1, name
        ports = {each["name"]: each["containerPort"] for each in chosen[0]["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], name
    for kind in ("Deployment", "StatefulSet"):
        for each in named(kind).values():
            assert each["spec"]["selector"]["matchLabels"] == labels(each["spec"]["template"])


def labels(pod: Document) -> dict[str, str]:
    return dict(pod.get("metadata", {}).get("labels", {}))


def test_dagster_finds_the_code_location_and_the_postgres_of_the_example() -> None:
    (location,) = (
        each["grpc_server"] for each in yaml.safe_load((EXAMPLE / "workspace.yaml").read_text())["load_from"]
    )
    assert location["port"] in [each["port"] for each in named("Service")[location["host"]]["spec"]["ports"]]
    command = pods()[location["host"]]["spec"]["containers"][0]["command"]
    assert command[command.index("-p") + 1] == str(location["port"])
    assert (PROJECT / command[command.index("-m") + 1].replace(".", "/")).with_suffix(".py").is_file()
    pyproject = (PROJECT / "pyproject.toml").read_text()
    assert f'code_location_name = "{location["location_name"]}"' in pyproject
    postgres = yaml.safe_load(DAGSTER_YAML)["storage"]["postgres"]["postgres_db"]
    host = named("Secret")["dagster-postgres"]["stringData"]["DAGSTER_PG_HOST"]
    assert postgres["port"] in [each["port"] for each in named("Service")[host]["spec"]["ports"]]


def test_pods_are_given_every_variable_that_their_settings_name() -> None:
    of_instance = set(found(yaml.safe_load(DAGSTER_YAML), "env"))
    of_pipeline = set(re.findall(r"{{ env\.(\w+) }}", defs_yaml_text()))
    assert of_instance
    assert of_pipeline
    for name, pod in pods().items():
        if name.startswith("dagster"):
            assert of_instance <= variables(pod), name
    assert of_pipeline <= variables(pods()["dagster-code"])
    # What the driver and the workers reach the store with.
    access = named("Secret")["object-store"]["stringData"].keys()
    for name in ("dagster-code", "ray-head", "ray-gpu", "ray-cpu"):
        assert access <= variables(pods()[name]), name


def defs_yaml_text() -> str:
    (file,) = PROJECT.rglob("defs.yaml")
    return file.read_text()


def pipeline() -> Pipeline:
    """The pipeline of the example, with the variables that the manifests set."""
    text = re.sub(r"{{ env\.(\w+) }}", lambda match: config_maps()["pipeline"][match[1]], defs_yaml_text())
    return Pipeline.model_validate(yaml.safe_load(text)["attributes"])


def test_each_stage_s_workers_fit_into_pods_of_the_cluster() -> None:
    compute = pipeline().compute
    assert compute.engine == "ray"
    assert compute.workers.keys() <= {stage.name for stage in GRAPH.stages}
    limits = [
        pod["spec"]["containers"][0]["resources"]["limits"]
        for name, pod in pods().items()
        if name in ("ray-gpu", "ray-cpu")
    ]
    for stage, wanted in compute.workers.items():
        assert any(fits(wanted, each) for each in limits), stage
    # KubeRay takes memory and GPUs from the limits alone, and Kubernetes wants both equal.
    for pod in pods().values():
        resources = pod["spec"]["containers"][0]["resources"]
        for name, limit in resources["limits"].items():
            assert resources["requests"][name] == limit
    # As many workers with a GPU as there are GPUs: their CPUs are enough.
    gpus, cpus = int(limits[0]["nvidia.com/gpu"]), float(limits[0]["cpu"])
    assert all((each.num_cpus or 0) * gpus <= cpus for each in compute.workers.values() if each.num_gpus == 1)


def fits(wanted: WorkerResources, limits: dict[str, Any]) -> bool:
    return (wanted.num_cpus or 1) <= float(limits["cpu"]) and wanted.num_gpus <= int(limits.get("nvidia.com/gpu", 0))


def test_runs_reach_the_head_of_the_cluster() -> None:
    (cluster,) = named("RayCluster").values()
    assert cluster["spec"]["rayVersion"] == version("ray")
    ports = {each["name"]: each["containerPort"] for each in pods()["ray-head"]["spec"]["containers"][0]["ports"]}
    assert pipeline().compute.address == f"ray://{cluster['metadata']['name']}-head-svc:{ports['client']}"
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_dagster_yaml_loads_as_an_instance(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in postgres.new_database().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML.replace("port: 5432", f"port: {postgres.port}"))
    with configured_instance(tmp_path) as instance:
        assert instance.get_runs() == []
        assert instance.event_log_storage.postgres_url.startswith("postgresql+psycopg2://")
        assert instance.run_retries_enabled


def test_the_project_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in config_maps()["pipeline"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(PROJECT))
    definitions = dg.load_from_defs_folder(path_within_project=PROJECT)
    assert dg.AssetKey(["laion", "vit-b-16", "manifests"]) in definitions.resolve_asset_graph().get_all_asset_keys()


def test_commented_settings_are_those_that_their_classes_have() -> None:
    launcher = yaml.safe_load(uncommented(DAGSTER_YAML, "run_launcher"))["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", "K8sRunLauncher")
    config = launcher["config"]
    assert config.keys() <= K8S_RUN_LAUNCHER
    assert config["instance_config_map"] in config_maps()
    assert set(config["env_secrets"]) <= named("Secret").keys()
    assert set(config["env_config_maps"]) <= config_maps().keys()
    assert config["service_account_name"] in named("ServiceAccount")
    assert config["job_namespace"] == KUSTOMIZATION["namespace"]
    assert config["dagster_home"] in (EXAMPLE / "Dockerfile").read_text()
    (image,) = KUSTOMIZATION["images"]
    assert config["job_image"] == f"{image['newName']}:{image['newTag']}"
    for text in (DAGSTER_YAML, (ROOT / "dagster.yaml").read_text()):
        logs = yaml.safe_load(uncommented(text, "compute_logs"))["compute_logs"]
        assert (logs["module"], logs["class"]) == ("dagster_aws.s3.compute_log_manager", "S3ComputeLogManager")
        assert logs["config"].keys() <= S3_COMPUTE_LOG_MANAGER


def test_the_image_copies_what_is_there() -> None:
    copied = re.findall(r"^COPY (\S+)", (EXAMPLE / "Dockerfile").read_text(), re.MULTILINE)
    assert copied == ["project"]
    assert PROJECT.is_dir()
