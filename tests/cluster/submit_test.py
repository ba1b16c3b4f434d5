"""What `submit` writes: read back, held against the engines' published schemas, and run by a shell
where it is one."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

import runs
from bigmodel_jax import cli
from bigmodel_jax.cluster import submit

# The arguments of ray.job_submission.JobSubmissionClient.submit_job in Ray 2.60.
RAY_SUBMIT = {
    "entrypoint", "runtime_env", "metadata", "submission_id", "entrypoint_num_cpus", "entrypoint_num_gpus",
    "entrypoint_memory", "entrypoint_resources", "entrypoint_label_selector",
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("submit"))


def written(path, tmp_path, capsys, engine: str, *options: str) -> Path:
    """The file that `submit` has written."""
    args = ["submit", "--engine", engine, path, "--run_dir", tmp_path / "My_run", "--train.steps", "50", *options]
    cli.main(list(map(str, args)))
    return Path(capsys.readouterr().out.strip())


GPUS = ("--image", "repo/image:1", "--nodes", "4", "--gpus_per_node", "8", "--claim", "shared")
TPUS = ("--image", "repo/image:1", "--topology", "v5e:4x4", "--nodes", "8")


@pytest.mark.slow  # the models take four seconds to import
@pytest.mark.parametrize("options", [GPUS, GPUS[:2], TPUS, (*TPUS, "--claim", "shared")])
def test_every_field_of_a_jobset_is_one_of_the_published_models(path, tmp_path, capsys, options):
    """kubeflow-trainer-api holds the OpenAPI models of JobSet v1alpha2 and of the Kubernetes Job
    and Pod inside it. They check types and drop unknown fields, so that such a field shows as a
    difference."""
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    manifest = yaml.safe_load(written(path, tmp_path, capsys, "kubernetes", *options).read_text())
    without_empty = json.loads(
        json.dumps(manifest), object_hook=lambda d: {k: v for k, v in d.items() if v is not None}
    )
    assert JobsetV1alpha2JobSet.from_dict(without_empty).to_dict() == without_empty
    misspelt = json.loads(json.dumps(without_empty).replace("backoffLimit", "backofLimit"))
    assert JobsetV1alpha2JobSet.from_dict(misspelt).to_dict() != misspelt, "the check sees nothing"


def test_a_jobset_of_gpus_tells_each_pod_its_place(path, tmp_path, capsys, monkeypatch):
    """The manifest's variables give a process its place in the job, once they have the values that
    the JobSet controller gives."""
    from bigmodel_jax.cluster import place

    manifest = yaml.safe_load(written(path, tmp_path, capsys, "kubernetes", *GPUS).read_text())
    assert manifest["metadata"]["name"] == "my-run"
    (job,) = manifest["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    annotations = {"coordinator": "my-run-train-0-0.my-run", "global-replicas": "1", "job-global-index": "0"}
    for variable in container["env"]:
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        name = re.fullmatch(r"metadata\.annotations\['jobset\.sigs\.k8s\.io/(.+)'\]", field)
        monkeypatch.setenv(variable["name"], annotations[name[1]] if name else variable["value"])
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert place.find(place.ClusterConfig()) == place.Place("my-run-train-0-0.my-run:8476", 4, 3, None, "JobSet")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert "python launch.py train" in container["args"][0]
    assert "--run_dir /runs/my-run --train.steps 50" in container["args"][0]


def test_a_jobset_of_tpus_has_the_hosts_and_slices_of_the_topology(path, tmp_path, capsys):
    (job,) = yaml.safe_load(written(path, tmp_path, capsys, "kubernetes", *TPUS).read_text())["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 4)
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    ("topology", "nodes", "slices", "accelerator"),
    [("v5e:16x16", 0, 1, "v5litepod-256"), ("v5p:4x4x8", 64, 2, "v5p-256"), ("v6e:1x1", 3, 3, "v6e-1")],
)
def test_topologies(topology, nodes, slices, accelerator):
    found = submit.slice_of(topology, nodes)
    assert (found["slices"], found["accelerator"]) == (slices, accelerator)


def test_ray_gets_what_its_client_takes(path, tmp_path, capsys):
    request = json.loads(written(path, tmp_path, capsys, "ray", "--nodes", "2").read_text())
    assert request.keys() <= RAY_SUBMIT
    words = shlex.split(request["entrypoint"])
    assert words[words.index("bigmodel_jax.cluster.ray_driver") + 1 :][:3] == ["2", "0", "100"]


@pytest.mark.parametrize(
    ("engine", "options", "says"),
    [
        ("slurm", ("--nodes", "2"), "#SBATCH --nodes=2"),
        ("gcloud", ("--topology", "v5e:4x4", "--project", "p", "--zone", "z"), "--accelerator-type v5litepod-16"),
        ("gcloud", ("--topology", "v5p:4x4x4", "--project", "p", "--zone", "z", "--nodes", "32"), "--node-count 2"),
        ("gcloud", ("--topology", "v6e:4x4", "--project", "p", "--zone", "z", "--gke_cluster", "c", "--image", "i"),
         "--tpu-type v6e-16"),
    ],
)  # fmt: skip
def test_scripts_are_shell(path, tmp_path, capsys, engine, options, says):
    file = written(path, tmp_path, capsys, engine, *options)
    text = file.read_text()
    assert says in text
    assert "{{" not in text
    checked = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("ends", "told", "code"),
    [(0, "", 0), (0, "later", 143), (0, "before it starts", 143), (75, "", 75), (2, "", 2)],
)
def test_a_pod_that_was_told_to_go_does_not_count_as_done(tmp_path, ends, told, code):
    """The pod's script runs with another command, which ends by itself or on SIGTERM."""
    command = f"exit {ends}" if not told else f"trap 'exit {ends}' TERM; echo up; while true; do sleep 0.05; done"
    first = "kill -TERM $$; sleep 0.2; " if told == "before it starts" else ""
    script = submit.fill("pod.sh", command=f"{first}bash -c {shlex.quote(command)}")
    process = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        if told == "later":
            assert process.stdout.readline() == "up\n"
            process.terminate()
        assert process.wait(20) == code
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--engine slrum", ("--engine slrum", "slurm, kubernetes, ray, gcloud", "'slurm'")),
        ("", ("--engine is missing", "slurm, kubernetes, ray, gcloud")),
        ("--engine slurm --node 2", ("--node 2", "'--nodes'")),
        ("--engine slurm --train.batch_siz 2", ("--train.batch_siz 2", "'--train.batch_size'")),
        ("--engine slurm --train.steps 0", ("train.steps = 0",)),
        ("--engine kubernetes", ("--image is missing",)),
        ("--engine kubernetes --image i --topology v5x:4x4", ("'v5x:4x4'", "v5e")),
        ("--engine kubernetes --image i --topology v5e:4", ("'v5e:4'", "4x4")),
        ("--engine kubernetes --image i --topology v5e:4x4 --nodes 6", ("--nodes 6", "4 hosts")),
        ("--engine gcloud --topology v5e:4x4", ("--project is missing",)),
        ("--engine ray --run", ("uv pip install 'ray[default]'",)),
    ],
)
def test_mistakes(path, tmp_path, capsys, args, says):
    with pytest.raises(SystemExit) as stop:
        cli.main(["submit", str(path), *args.split(), "--run_dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [part for part in says if part not in line] == [], line


CLOUD = ("--topology", "v5e:4x4", "--project", "p", "--zone", "z")


@pytest.mark.parametrize(
    ("engine", "options", "notes"),
    [
        ("slurm", (), ["asks for no GPU"]),
        ("slurm", ("--gpus_per_node", "8"), []),
        ("slurm", ("--sbatch=--gres=gpu:4",), []),
        ("kubernetes", ("--image", "i"), ["asks for no GPU", "lies inside the pod and is lost with it"]),
        ("kubernetes", ("--image", "i", "--gpus_per_node", "8"), ["--claim NAME mounts"]),
        ("kubernetes", ("--image", "i", "--topology", "v5e:4x4"), ["--claim NAME mounts"]),
        ("kubernetes", ("--image", "i", "--topology", "v5e:4x4", "--claim", "shared"), []),
        ("ray", ("--nodes", "2"), ["asks for no GPU"]),
        ("ray", ("--nodes", "2", "--gpus_per_node", "8"), []),
        ("gcloud", CLOUD, ["lies inside the TPU host"]),
        ("gcloud", (*CLOUD, "--runs", "/shared/runs"), []),
        ("gcloud", (*CLOUD, "--gke_cluster", "c", "--image", "i"), ["lies inside the container"]),
    ],
)
def test_what_a_job_does_not_ask_for_is_said(path, tmp_path, capsys, engine, options, notes):
    args = ["submit", "--engine", engine, path, "--run_dir", tmp_path / "run", *options]
    cli.main(list(map(str, args)))
    out, said = capsys.readouterr()
    assert Path(out.strip()).is_file(), "the file's path stands alone on stdout"
    lines = said.splitlines()
    assert len(lines) == len(notes)
    for line, note in zip(lines, notes, strict=True):
        assert line.startswith("note: ")
        assert note in line


@pytest.mark.parametrize(
    ("time", "fine"), [("90", True), ("24:00:00", True), ("2-12", True), ("soon", False), ("-1", False)]
)
def test_a_limit_that_slurm_would_not_take_is_refused(path, tmp_path, capsys, time, fine):
    with contextlib.nullcontext() if fine else pytest.raises(SystemExit):
        cli.main(["submit", "--engine", "slurm", str(path), f"--time={time}", "--output", str(tmp_path / "job")])
    assert ("is not a time limit that SLURM accepts" in capsys.readouterr().err) != fine


def test_what_a_resume_accepts_is_passed_on_and_checked_at_once(path, tmp_path, capsys):
    text = written(path, tmp_path, capsys, "slurm", "--nodes", "1", "--accept", "data,code").read_text()
    assert "--train.steps 50 --accept data,code" in text
    with pytest.raises(SystemExit):
        written(path, tmp_path, capsys, "slurm", "--nodes", "1", "--accept", "dta")
    assert "--accept dta: 'dta' is unknown; allowed: data, code" in capsys.readouterr().err
