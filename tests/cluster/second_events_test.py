"""A job's watch where a second thing happens: who speaks when process 0 dies, and who may leave
before the others."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from bigmodel_jax.cluster import peers
from bigmodel_jax.cluster.connection import Peer

SECONDS = 10


def join(port: int, process_id: int, host: str) -> Peer:
    """A stand-in for another process of the job, as its connection shows it."""
    peer = Peer(socket.create_connection(("127.0.0.1", port), timeout=SECONDS))
    peer.send(token="secret", process_id=process_id, host=host, pid=1000 + process_id)
    return peer


def hear(peer: Peer, key: str) -> dict:
    while True:
        messages = peer.receive()
        assert messages is not None, f"the end, before {key!r}"
        for message in messages:
            if key in message:
                return message


@pytest.fixture
def job(monkeypatch):
    """job(hosts of processes 1, 2, ...) -> (process 0's watch, the others' connections)."""
    made = []

    def start(*hosts):
        listener = peers.listen()
        port = listener.getsockname()[1]
        others = [None] * len(hosts)

        def connect():
            for i in reversed(range(len(hosts))):  # they need not come in their order
                others[i] = join(port, i + 1, hosts[i])

        thread = threading.Thread(target=connect)
        thread.start()
        peers.lead(listener, "secret", len(hosts) + 1, SECONDS)
        thread.join()
        made.extend([listener, *(p.connection for p in others)])
        return peers._watch, others

    monkeypatch.setattr(peers, "_watch", None)
    yield start
    for peer in peers._watch.peers.values():
        peer.left = True  # for the watch, which goes on
    for connection in made:
        connection.close()


HERE = socket.gethostname()
DEPUTIES = {
    "all on one host": ((HERE, HERE, HERE), 1),
    "the last one elsewhere": ((HERE, HERE, "other"), 3),
    "two elsewhere": ((HERE, "other", "third"), 2),
    "all elsewhere": (("other", "other"), 1),
}


@pytest.mark.parametrize("case", DEPUTIES)
def test_the_deputy_is_the_first_on_another_host(case, job, monkeypatch):
    hosts, deputy = DEPUTIES[case]
    monkeypatch.setattr(peers.Leader, "end", lambda self, *said: None)
    _, others = job(*hosts)
    speaks = [hear(peer, "welcome")["speaks"] for peer in others]
    assert [i + 1 for i, one in enumerate(speaks) if one] == [deputy]


def test_one_that_said_goodbye_may_leave_first_and_one_that_did_not_has_died(job, monkeypatch):
    said, done = [], threading.Event()
    monkeypatch.setattr(peers.Leader, "end", lambda self, *words: (said.append(words), done.set()))
    watch, others = job(HERE, HERE)
    others[0].send(goodbye=True)
    others[0].connection.close()
    assert watch.wait_for(lambda: watch.peers[1].left, SECONDS)
    assert not done.wait(0.3)
    others[1].connection.close()
    assert done.wait(SECONDS)
    (text, code), *_ = said
    assert code == peers.LOST
    assert text.startswith(f"error: process 2 (pid 1002 on {HERE}) died")


def test_all_agree_only_when_all_have_said_the_same(job, monkeypatch):
    said = []
    monkeypatch.setattr(peers.Leader, "end", lambda self, *words: said.append(words))
    watch, others = job(HERE, HERE)
    others[0].send(facts={"jax": "0.12", "lr": "0.1"})
    others[1].send(facts={"jax": "0.12", "lr": "0.1"})
    peers.agree({"jax": "0.12", "lr": 0.1}, SECONDS)
    assert all(hear(peer, "agreed")["agreed"] for peer in others)
    assert said == []
    others[1].send(facts={"jax": "0.12", "lr": "0.2", "seed": "1"})
    assert watch.wait_for(lambda: said, SECONDS)
    text, code = said[0]
    assert code == 2
    differs = f"lr is 0.2 in process 2 (pid 1002 on {HERE}), 0.1 in process 0, and 1 more differ: seed"
    assert text == f"error: the processes of the job differ: {differs}"


def test_one_that_is_not_ready_is_named(job, monkeypatch):
    said = []
    monkeypatch.setattr(peers.Leader, "end", lambda self, *words: said.append(words))
    _, others = job(HERE, HERE)
    others[1].send(facts={"jax": "0.12"})
    peers.agree({"jax": "0.12"}, 0.5)
    assert said[0] == (f"error: not ready after 0 s: process 1 (pid 1001 on {HERE})", peers.LOST)


def test_a_message_may_come_in_pieces():
    with peers.listen() as listener:
        there = socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=SECONDS)
        peer = Peer(listener.accept()[0])
    line = json.dumps({"facts": {"a": 1}}).encode() + b"\n"
    for piece, heard in (
        (line[:5], []),
        (line[5:] + b'{"goodbye"', [{"facts": {"a": 1}}]),
        (b": 1}\n", [{"goodbye": 1}]),
    ):
        there.sendall(piece)
        assert peer.receive() == heard
    there.sendall(b"no json\n")
    assert peer.receive() is None
    there.close()
    assert peer.receive() is None


FOLLOWER = """
import sys, time
from bigmodel_jax.cluster import peers
peers.follow("127.0.0.1", int(sys.argv[1]), "secret", 1, 10)
print("here", flush=True)
time.sleep(20)
"""


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        ({"speaks": True}, 75, "error: process 0 (pid 7 on there) died; all other processes were ended"),
        ({"speaks": False}, 75, ""),
        ({"speaks": True, "end": 2}, 2, ""),
    ],
)
def test_a_follower_whose_leader_goes_ends_and_speaks_if_it_is_the_deputy(message, code, says):
    with peers.listen() as listener:
        command = [sys.executable, "-c", FOLLOWER, str(listener.getsockname()[1])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        leader = Peer(listener.accept()[0])
        assert hear(leader, "token")["process_id"] == 1
        leader.send(welcome="process 0 (pid 7 on there)", you="process 1", interval=1.0, speaks=message["speaks"])
        assert process.stdout.readline() == "here\n"
        if "end" in message:
            leader.send(end=message["end"])
        leader.connection.close()
        assert process.wait(SECONDS) == code
        assert process.stderr.read().startswith(says)
        assert bool(says) == (process.returncode == 75 and message["speaks"])
