"""A process's place in a job: of several slices and pods, by options, and by both."""

import os

import pytest

from bigmodel_jax.cluster import place
from bigmodel_jax.cluster.place import JOBSET, ClusterConfig, Place


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """Removes the variables of all engines."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "JOBSET", "JOB_COMPLETION", "TPU_", "JAX_COORDINATOR", "MEGASCALE")):
            monkeypatch.delenv(name)


@pytest.fixture
def jobset(monkeypatch):
    """jobset(jobs, job, pods, pod): the variables that a JobSet's manifest sets."""

    def enter(*numbers, host="train-0-0.run"):
        for name, value in zip(JOBSET, (host, *numbers), strict=True):
            monkeypatch.setenv(name, str(value))

    return enter


def test_a_process_without_a_job_is_alone():
    assert place.find(ClusterConfig()) is None


@pytest.mark.parametrize(
    ("numbers", "count", "process"), [((1, 0, 4, 3), 4, 3), ((3, 2, 4, 1), 12, 9), ((2, 1, 1, 0), 2, 1)]
)
def test_pods_count_on_from_job_to_job(jobset, numbers, count, process):
    jobset(*numbers)
    assert place.find(ClusterConfig()) == Place("train-0-0.run:8476", count, process, None, "JobSet")


def test_one_pod_of_one_job_is_alone(jobset):
    jobset(1, 0, 1, 0)
    assert place.find(ClusterConfig()) is None


def test_options_come_before_the_environment(jobset, monkeypatch):
    jobset(2, 1, 2, 0)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "999")
    assert place.find(ClusterConfig()) == Place("train-0-0.run:999", 4, 2, None, "JobSet")
    given = place.find(ClusterConfig(coordinator="here:1", process_id=0))
    assert (given.coordinator, given.num_processes, given.process_id) == ("here:1", 4, 0)


def test_options_alone_must_be_complete():
    assert place.find(ClusterConfig("here:1", 2, 0)) == Place("here:1", 2, 0)
    for options, name in [
        (ClusterConfig(num_processes=2, process_id=0), "coordinator"),
        (ClusterConfig("here:1", process_id=0), "num_processes"),
        (ClusterConfig("here:1", 2), "process_id"),
    ]:
        with pytest.raises(ValueError, match=rf"cluster\.{name} is missing"):
            place.find(options)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (("here", 2, 0), "coordinator = 'here' is not host:port"),
        ((":1", 2, 0), "is not host:port"),
        (("here:0", 2, 0), "is not host:port"),
        (("here:65536", 2, 0), "is not host:port"),
        (("here:1", 2, 2), "process_id = 2; with cluster.num_processes = 2 it is 0 to 1"),
    ],
)
def test_a_wrong_option_is_named(options, wrong):
    with pytest.raises(ValueError, match=wrong):
        place.find(ClusterConfig(*options))


def test_words_where_numbers_belong_are_shown(jobset):
    jobset(1, 0, "many", 0)
    with pytest.raises(ValueError, match="JOBSET_PODS_PER_JOB='many'.*: not whole numbers"):
        place.find(ClusterConfig())


@pytest.mark.parametrize(
    ("tasks", "alone"), [("1", True), ("1(x4)", True), ("2", False), ("1,2", False), ("", False), ("11", False)]
)
def test_one_task_on_each_node_has_all_of_its_devices(monkeypatch, tasks, alone):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    assert place._alone_on_host() == alone
