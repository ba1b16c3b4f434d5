"""The processes of a job watch each other: if one ends, all end within seconds, and one line says
why.

Process 0 holds a TCP connection to every other process. If a process dies, its kernel closes the
connection at once. If a host dies, TCP's keepalive notices within 10 s. JAX alone would need 100 s.
A process that hangs keeps its connection, so process 0 asks each process for its state every
second, and judges it (hung.py).

The same connections carry errors: a process with an error tells process 0, which prints the first
one and ends all. Exit codes: 0 = done, or saved on request; 1 = a bug; 2 = a user's mistake; 75 =
the job was lost, and the same command may work again.

This module does not use JAX.
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
    """Raised if the job does not come together or falls apart. The same command may work again."""


class Follower(Watch):
    """The watch of every process except process 0."""

    def __init__(self, leader: Peer):
        super().__init__()
        self.leader, self.speaks, self.welcome, self.agreed = leader, False, False, False
        self.name, self.interval = "", 1.0  # set by process 0's welcome
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
                # The watching thread answers, so a process whose main thread hangs still reports
                # its state.
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
        """Ends this process if process 0 is silent. Every other process does the same by itself."""
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
        """Sends the facts and waits until process 0 has compared them, or ends after `seconds`."""
        self.leader.send(facts=facts)
        if not self.wait_for(lambda: self.agreed, seconds + 10):
            self.end(f"error: {self.leader} was not ready after {seconds:.0f} s", LOST)

    def end(self, text: str, code: int) -> None:
        self.leader.send(fail=text, code=code)
        time.sleep(15)  # process 0 ends this process meanwhile
        end_here(text, code)

    def send(self, **message: Any) -> None:
        self.leader.send(**message)


# -------------------------------------------------------------------------- the process's own watch

_watch: Leader | Follower | None = None


def active() -> bool:
    """Whether this process is part of a job of several."""
    return _watch is not None


def speaks() -> bool:
    """Whether this process prints: it is alone, or process 0 of a job."""
    return not isinstance(_watch, Follower)


def listen() -> socket.socket:
    """A listening socket on a free port, for IPv4 and IPv6 if both exist."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def lead(listener: socket.socket, token: str, num_processes: int, seconds: float) -> None:
    """Starts the watch in process 0, and waits for all others.

    Raises JobLost, with their numbers, if processes do not connect.
    """
    global _watch
    leader = Leader(listener, token, num_processes)
    if not leader.wait_for(lambda: len(leader.peers) == num_processes - 1, seconds):
        missing = ", ".join(str(i) for i in range(1, num_processes) if i not in leader.peers)
        raise JobLost(f"cluster: process {missing} did not connect in {seconds:.0f} s")
    host = socket.gethostname()
    elsewhere = [i for i, peer in sorted(leader.peers.items()) if peer.host != host]
    deputy = elsewhere[0] if elsewhere else 1  # this process prints if process 0 dies, perhaps with its host
    for i, peer in leader.peers.items():
        peer.heard = time.monotonic()
        peer.send(welcome=leader.name, you=peer.name, interval=leader.interval, speaks=i == deputy)
    _watch = leader


def follow(host: str, port: int, token: str, process_id: int, seconds: float) -> None:
    """Starts the watch in another process. Raises JobLost if process 0 does not answer."""
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
    """Returns if every process gave the same facts.

    Otherwise all end, and a line names the difference.
    """
    if _watch is not None:
        _watch.agree({name: str(value) for name, value in facts.items()}, seconds)


def end(text: str, code: int) -> None:
    """Ends every process of the job with this exit code. Returns only outside a job.

    If several processes call it, only the first text is printed.
    """
    if isinstance(_watch, Leader):
        _watch.fail(text, code)
        time.sleep(60)  # the watch ends this process
    elif _watch is not None:
        _watch.end(text, code)


def say_goodbye() -> None:
    """Announces a normal exit: from here on the end of a connection does not count as a death."""
    if _watch is not None:
        _watch.send(goodbye=True)
