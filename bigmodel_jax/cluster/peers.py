"""The processes of a job watch over each other, so that all end within seconds of one, with one line that says why.

Process 0 holds a TCP connection to every other. A process that dies closes it at once, whatever killed it, since its
kernel does; a host that dies is missed by TCP's keepalive within 10 s. JAX alone would notice after 100 s. A process
that hangs keeps its connection: process 0 asks each one every second where it stands, and judges (hung.py). The same
connections carry what is to be said once: a process with an error tells process 0, which says the first one and ends
all. Exit codes: 0 done, or saved on request; 2 a mistake of the user's; 1 a bug; 75 the job was lost: start it again.

This file knows nothing of JAX.
"""

import dataclasses
import os
import socket
import time
from typing import Any

from bigmodel_jax.cluster import hung
from bigmodel_jax.cluster.connection import Peer
from bigmodel_jax.cluster.leader import Leader
from bigmodel_jax.cluster.watch import LOST, RESUMES, Watch, end_here, given_up
from bigmodel_jax.core import pulse


class JobLost(Exception):
    """The job did not come together, or fell apart: nobody's mistake, and the same command may work."""


class Follower(Watch):
    """Any other process."""

    def __init__(self, leader: Peer):
        super().__init__()
        self.leader, self.speaks, self.welcome, self.agreed = leader, False, False, False
        self.name, self.interval = "", 1.0  # process 0 says them
        self.read(leader.connection, self._hear)
        self.start()

    def _hear(self) -> None:
        messages = self.leader.receive()
        if messages is None:
            self.forget(self.leader)
            if not self.leader.left:
                text = f"error: {self.leader} died; all other processes were ended; the same command resumes the run"
                end_here(text if self.speaks else "", LOST)
        for message in messages or ():
            if "end" in message:
                end_here("", message["end"])
            elif "welcome" in message:
                self.leader.name, self.speaks = message["welcome"], message["speaks"]
                self.name, self.interval = message["you"], message["interval"]
                self.leader.heard, self.welcome = time.monotonic(), True
            elif "agreed" in message:
                self.agreed = True
            elif "where" in message:
                self.leader.heard = time.monotonic()
                self.leader.send(beat=dataclasses.asdict(pulse.read()))
            elif "dump" in message:
                self.leader.send(stacks=pulse.stacks(self.name))
            elif "given_up" in message:
                end_here(message["given_up"], LOST)
            elif "goodbye" in message:
                self.leader.left = True

    def forgive(self, seconds: float) -> None:
        super().forgive(seconds)
        self.leader.heard = time.monotonic()

    def look(self) -> None:
        """Whether process 0 is silent, which nobody else can tell. Each of the others then ends by itself."""
        self.next_look = time.monotonic() + 1.0
        if not self.welcome or self.leader.left or self.leader.closed:
            return
        mine, silence = pulse.read(), time.monotonic() - self.leader.heard
        leader = hung.Member(self.leader.name, None, silence)
        verdict = hung.judge([hung.Member(self.name, mine), leader], self.interval)
        if verdict is not None:
            text = f"error: {verdict.text}; {pulse.stacks_text()}all processes were ended; {RESUMES}"
            pulse.write_stacks((text + "\n") * self.speaks + pulse.stacks(self.name))
            self.leader.send(given_up=given_up(self.leader.name))
            end_here(text if self.speaks else "", LOST)

    def agree(self, facts: dict, seconds: float) -> None:
        self.leader.send(facts=facts)
        if not self.wait_for(lambda: self.agreed, seconds + 10):
            self.end(f"error: {self.leader} was not ready after {seconds:.0f} s", LOST)

    def end(self, text: str, code: int) -> None:
        self.leader.send(fail=text, code=code)
        time.sleep(15)  # in which process 0 ends this one
        end_here(text, code)

    def send(self, **message: Any) -> None:
        self.leader.send(**message)


# ------------------------------------------------------------------------------------------------ the process's own watch

_watch: Leader | Follower | None = None


def active() -> bool:
    return _watch is not None


def speaks() -> bool:
    """Whether this process is the one that prints: the only one, or process 0 of a job."""
    return not isinstance(_watch, Follower)


def listen() -> socket.socket:
    """A listening socket on a free port, of both IP versions where there are both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def lead(listener: socket.socket, token: str, num_processes: int, seconds: float) -> None:
    """Starts the watch in process 0, and waits for all others; JobLost names those that do not come."""
    global _watch
    leader = Leader(listener, token, num_processes)
    if not leader.wait_for(lambda: len(leader.peers) == num_processes - 1, seconds):
        missing = ", ".join(str(i) for i in range(1, num_processes) if i not in leader.peers)
        raise JobLost(f"cluster: process {missing} did not connect in {seconds:.0f} s")
    host = socket.gethostname()
    elsewhere = [i for i, peer in sorted(leader.peers.items()) if peer.host != host]
    deputy = elsewhere[0] if elsewhere else 1  # who speaks if process 0 dies, perhaps with its host
    for i, peer in leader.peers.items():
        peer.heard = time.monotonic()
        peer.send(welcome=leader.name, you=peer.name, interval=leader.interval, speaks=i == deputy)
    _watch = leader


def follow(host: str, port: int, token: str, process_id: int, seconds: float) -> None:
    """Starts the watch in any other process; JobLost where process 0 does not answer."""
    global _watch
    try:
        leader = Peer(socket.create_connection((host, port), timeout=seconds), "process 0")
    except OSError as error:
        raise JobLost(f"cluster: process 0 does not answer at {host}:{port}: {error.strerror or error}") from error
    leader.connection.settimeout(None)
    follower = Follower(leader)
    leader.send(token=token, process_id=process_id, host=socket.gethostname(), pid=os.getpid())
    if not follower.wait_for(lambda: follower.welcome, seconds):
        raise JobLost(f"cluster: process 0 at {host}:{port} did not answer in {seconds:.0f} s")
    _watch = follower


def agree(facts: dict, seconds: float) -> None:
    """Returns when every process has said the same facts; otherwise all end, and the line names what differs."""
    if _watch is not None:
        _watch.agree({name: str(value) for name, value in facts.items()}, seconds)


def end(text: str, code: int) -> None:
    """Ends every process of the job with this exit code, and returns only outside a job. Of all that call it, one is
    heard: `text` is printed once."""
    if isinstance(_watch, Leader):
        _watch.fail(text, code)
        time.sleep(60)  # the watch ends this process
    elif _watch is not None:
        _watch.end(text, code)


def say_goodbye() -> None:
    """From here on the end of a connection is no death."""
    if _watch is not None:
        _watch.send(goodbye=True)
