"""What `submit --serve` writes: read back, and held against the published models of Kubernetes."""

import json
from pathlib import Path

import pytest
import yaml

import runs
from bigmodel_jax import cli, config_file

IMAGE = ("--image", "repo/image:1")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run's folder, as far as `submit` reads it."""
    folder = tmp_path_factory.mktemp("served") / "My_run"
    folder.mkdir()
    config_file.save(config_file.load(runs.write(tmp_path_factory.mktemp("config"))), folder / "config.json")
    return folder


def written(run_dir: Path, capsys, *options: str) -> tuple[dict, dict]:
    """(Deployment, Service) of the file that `submit` has written."""
    cli.main(["submit", str(run_dir), "--engine", "kubernetes", "--serve", *IMAGE, *options])
    file = Path(capsys.readouterr().out.strip())
    assert file == run_dir / "deployment.yaml"
    deployment, service = yaml.safe_load_all(file.read_text())
    return deployment, service


def container(deployment: dict) -> dict:
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    return one


def test_the_servers_are_asked_on_the_paths_and_the_port_of_serve(run_dir, capsys):
    deployment, service = written(run_dir, capsys, "--replicas", "3", "--slots", "32", "--claim", "shared")
    serve = container(deployment)
    assert deployment["spec"]["replicas"] == 3
    assert serve["command"][:4] == ["python", "launch.py", "serve", "/app/runs/My_run"]
    words = dict(zip(serve["command"][4::2], serve["command"][5::2], strict=True))
    assert words == {"--host": "0.0.0.0", "--port": "8000", "--slots": "32", "--drain_seconds": "110"}
    (port,) = serve["ports"]
    assert port["containerPort"] == 8000
    assert serve["readinessProbe"]["httpGet"] == {"path": "/ready", "port": port["name"]}
    assert serve["livenessProbe"]["httpGet"] == {"path": "/health", "port": port["name"]}
    pod = deployment["spec"]["template"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 120
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ((), {"memory": "8Gi"}),
        (("--gpus", "1"), {"memory": "32Gi", "nvidia.com/gpu": 1}),
        (("--topology", "v5e:2x2", "--memory", "64Gi"), {"memory": "64Gi", "google.com/tpu": 4}),
    ],
)
def test_a_server_asks_for_what_its_machine_has(run_dir, capsys, options, limits):
    deployment, _ = written(run_dir, capsys, *options)
    assert container(deployment)["resources"]["limits"] == limits
    chosen = deployment["spec"]["template"]["spec"]["nodeSelector"]
    assert bool(chosen) == ("--topology" in options)


def test_a_key_comes_from_a_secret_and_stands_in_no_file(run_dir, capsys):
    deployment, _ = written(run_dir, capsys, "--key_secret", "keys")
    (variable,) = container(deployment)["env"]
    reference = {"secretKeyRef": {"name": "keys", "key": "key"}}
    assert variable == {"name": "BIGMODEL_SERVE_KEY", "valueFrom": reference}


@pytest.mark.slow  # the models take four seconds to import
@pytest.mark.parametrize(
    "options", [("--claim", "shared", "--gpus", "8"), ("--topology", "v5e:1x1", "--key_secret", "k")]
)
def test_every_field_is_one_of_the_published_models(run_dir, capsys, options):
    """The models are those of a pod's template and of a Service. They drop unknown fields, so that
    such a field shows as a difference."""
    from kubeflow_trainer_api.models.io_k8s_api_core_v1_pod_template_spec import IoK8sApiCoreV1PodTemplateSpec
    from kubeflow_trainer_api.models.io_k8s_api_core_v1_service import IoK8sApiCoreV1Service

    deployment, service = written(run_dir, capsys, *options)
    for model, part in (
        (IoK8sApiCoreV1PodTemplateSpec, deployment["spec"]["template"]),
        (IoK8sApiCoreV1Service, service),
    ):
        assert model.from_dict(part).to_dict() == part
    misspelt = json.loads(json.dumps(deployment["spec"]["template"]).replace("readinessProbe", "readynessProbe"))
    assert IoK8sApiCoreV1PodTemplateSpec.from_dict(misspelt).to_dict() != misspelt, "the check sees nothing"
    # The Deployment around them, for which there is no model: apps/v1, DeploymentSpec.
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert deployment["spec"].keys() == {"replicas", "selector", "strategy", "template"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "--image is missing"),
        ((*IMAGE, "--replicas", "0"), "replicas = 0; it must be 1 or more"),
        ((*IMAGE, "--slots", "0"), "slots = 0; it must be 1 or more"),
        ((*IMAGE, "--topology", "v5e:4x4"), "has 4 hosts; a server is one process"),
        ((*IMAGE, "--topology", "v5e:1x1", "--gpus", "1"), "names TPUs; leave --gpus out"),
        ((*IMAGE, "--memory", "lots"), "--memory 'lots' is not an amount"),
        ((*IMAGE, "--replica", "2"), "perhaps you meant '--replicas'"),
    ],
)
def test_a_mistake_is_one_line(run_dir, capsys, args, says):
    with pytest.raises(SystemExit) as stop:
        cli.main(["submit", str(run_dir), "--engine", "kubernetes", "--serve", *args])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("engine", "says"), [("slurm", "--engine slurm; --serve needs --engine kubernetes"), ("", "is missing")]
)
def test_servers_are_of_kubernetes_alone(run_dir, capsys, engine, says):
    with pytest.raises(SystemExit):
        cli.main(["submit", str(run_dir), *(("--engine", engine) if engine else ()), "--serve", *IMAGE])
    assert says in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["submit", str(tmp_path), "--engine", "kubernetes", "--serve", *IMAGE])
    assert "no such file" in capsys.readouterr().err
