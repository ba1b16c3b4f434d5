"""The processes of a job watch over each other, so that all end within seconds of one, with one line that says why.

Process 0 holds a TCP connection to every other. A process that dies closes it at once, whatever killed it, since its
kernel does; a host that dies is missed by TCP's keepalive within 10 s. JAX alone would notice after 100 s. A process
that hangs keeps its connection: process 0 asks each one every second where it stands, and judges (hung.py). The same
connections carry what is to be said once: a process with an error tells process 0, which says the first one and ends
all. Exit codes: 0 done, or saved on request; 2 a mistake of the user's; 1 a bug; 75 the job was lost: start it again.

This file knows nothing of JAX.
"""

import contextlib
import dataclasses
import logging
import os
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from bigmodel_jax.cluster import hung
from bigmodel_jax.cluster.connection import Peer
from bigmodel_jax.core import pulse

LOST = pulse.LOST
STACKS_SECONDS = 10.0  # for which process 0 waits for the stacks of the others
RESUMES = "the same command resumes the run"

log = logging.getLogger(__name__)


class JobLost(Exception):
    """The job did not come together, or fell apart: nobody's mistake, and the same command may work."""


class Watch:
    """The thread that reads the connections of one process."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.changed = threading.Condition()
        self.deadline: tuple[float, str, int] | None = None  # an error that waits for a better reason
        self.ticks, self.next_look = pulse.Ticks(), 0.0

    def start(self) -> None:
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def read(self, source: socket.socket, handle: Callable[[], None]) -> None:
        self.selector.register(source, selectors.EVENT_READ, handle)

    def forget(self, peer: Peer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def _watch(self) -> None:
        try:
            self._run()
        except Exception:  # a process that nobody watches would hang when another one dies
            end_here(traceback.format_exc(), 1)

    def _run(self) -> None:
        while True:
            for key, _ in self.selector.select(1.0):
                key.data()
                with self.changed:
                    self.changed.notify_all()
            if gap := self.ticks.gap():
                self.forgive(gap)
            elif time.monotonic() >= self.next_look:
                self.look()
            if self.deadline is not None and time.monotonic() >= self.deadline[0]:
                self.end(*self.deadline[1:])

    def look(self) -> None:
        """Once in a while: whether another process hangs. Sets `next_look`."""
        raise NotImplementedError

    def forgive(self, seconds: float) -> None:
        """This process itself stood still for so long, so it cannot say that another one was silent."""
        pulse.forgive(seconds)

    def end(self, text: str, code: int) -> None:
        raise NotImplementedError


class Leader(Watch):
    """Process 0: knows all others, says what is to be said."""

    def __init__(self, listener: socket.socket, token: str, num_processes: int):
        super().__init__()
        self.listener, self.token, self.num_processes = listener, token, num_processes
        self.peers: dict[int, Peer] = {}
        self.facts: dict | None = None
        self.interval = max(1.0, num_processes / 100)  # seconds between two questions to each process
        self.name = f"process 0 (pid {os.getpid()} on {socket.gethostname()})"
        self.slow: set[int] = set()
        self._one_end = threading.Lock()
        self.read(listener, self._accept)
        self.start()

    def _accept(self) -> None:
        peer = Peer(self.listener.accept()[0])
        self.read(peer.connection, lambda: self._hear(peer))

    def _hear(self, peer: Peer) -> None:
        messages = peer.receive()
        if messages is None:
            self.forget(peer)
            if peer.process_id > 0 and not peer.left:
                self.end(f"error: {peer} died; all other processes were ended; the same command resumes the run", LOST)
            return
        for message in messages:
            if message.get("token") == self.token:
                peer.process_id, peer.host = message["process_id"], message["host"]
                peer.name = f"process {peer.process_id} (pid {message['pid']} on {peer.host})"
                self.peers[peer.process_id] = peer
            elif peer.process_id < 0:  # a stranger
                self.forget(peer)
                return
            elif "facts" in message:
                peer.facts = message["facts"]
                self._compare(peer)
            elif "fail" in message:
                self.fail(message["fail"], message["code"])
            elif "beat" in message:
                peer.beat, peer.heard = pulse.Beat(**message["beat"]), time.monotonic()
            elif "stacks" in message:
                peer.stacks = message["stacks"]
            elif "given_up" in message:
                self.end(message["given_up"], LOST)
            elif "goodbye" in message:
                peer.left = True

    def forgive(self, seconds: float) -> None:
        super().forgive(seconds)
        for peer in self.peers.values():
            peer.heard = time.monotonic()

    def look(self) -> None:
        """Asks all where they stand, and ends the job where one hangs."""
        self.next_look = time.monotonic() + self.interval
        members = self._members()
        verdict = hung.judge(list(members.values()), self.interval)
        if verdict is not None:
            self._give_up(verdict)
        self._name_slow(members)
        self.send(where=True)

    def _members(self) -> dict[int, hung.Member]:
        now, mine = time.monotonic(), hung.Member(self.name, pulse.read())
        peers = {i: p for i, p in self.peers.items() if p.process_id > 0 and not p.left and not p.closed}
        return {0: mine} | {i: hung.Member(p.name, p.beat, now - p.heard) for i, p in peers.items()}

    def _name_slow(self, members: dict[int, hung.Member]) -> None:
        slow = {i: m for i, m in members.items() if m in hung.slow(list(members.values()))}
        for i in slow.keys() - self.slow:
            beat = slow[i].beat
            text = (
                f"{slow[i].name} is slow: it spends {beat.own:.3g} s of a step on its own, reading data or writing "
                f"metrics, while the others wait; a step takes {beat.whole:.3g} s"
            )
            pulse.aside(lambda text=text: log.info(text))
        self.slow = set(slow)

    def _give_up(self, verdict: hung.Verdict) -> None:
        """Collects the stacks of all that answer, writes them, and ends the job; the silent ones hear why, once awake."""
        text = f"error: {verdict.text}; {pulse.stacks_text()}all processes were ended; {RESUMES}"
        silent = {m.name for m in verdict.silent}
        for peer in list(self.peers.values()):
            peer.send(given_up=_given_up(peer.name)) if peer.name in silent else peer.send(dump=True)
        found = [pulse.stacks(self.name), *self._stacks([p for p in self.peers.values() if p.name not in silent])]
        pulse.write_stacks("\n".join([text, *found]))
        self.end(text, LOST)

    def _stacks(self, peers: list[Peer]) -> list[str]:
        """Read here, since this is the thread that hears; what else arrives meanwhile no longer matters."""
        end = time.monotonic() + STACKS_SECONDS
        for peer in peers:
            while peer.stacks is None and (left := end - time.monotonic()) > 0 and not peer.closed:
                peer.connection.settimeout(left)
                messages = peer.receive()
                if messages is None:
                    break
                peer.stacks = next((m["stacks"] for m in messages if "stacks" in m), None)
        return [p.stacks or f"stacks of {p.name}: it did not send them" for p in peers]

    def fail(self, text: str, code: int) -> None:
        """Ends all, at once for a mistake; after a second and a half for a failure, whose cause may be a death."""
        if code != 1:
            self.end(text, code)
        elif self.deadline is None:
            self.deadline = (time.monotonic() + 1.5, text, code)

    def agree(self, facts: dict, seconds: float) -> None:
        self.facts = facts
        for peer in list(self.peers.values()):
            self._compare(peer)
        if not self.wait_for(lambda: all(p.facts is not None for p in self.peers.values()), seconds):
            silent = ", ".join(str(p) for p in self.peers.values() if p.facts is None)
            self.end(f"error: not ready after {seconds:.0f} s: {silent}", LOST)
        self.send(agreed=True)

    def _compare(self, peer: Peer) -> None:
        if self.facts is None or peer.facts is None:
            return
        names = [n for n in self.facts | peer.facts if self.facts.get(n) != peer.facts.get(n)]
        if names:
            mine, theirs = self.facts.get(names[0], "nothing"), peer.facts.get(names[0], "nothing")
            more = f", and {len(names) - 1} more differ: {', '.join(names[1:4])}" if names[1:] else ""
            self.end(
                f"error: the processes of the job differ: {names[0]} is {theirs} in {peer}, {mine} in process 0{more}",
                2,
            )

    def send(self, **message: Any) -> None:
        for peer in list(self.peers.values()):
            peer.send(**message)

    def end(self, text: str, code: int) -> None:
        """Says it and ends every process; the others first, since JAX aborts those whose process 0 is gone."""
        self._one_end.acquire()  # never released: the first reason is the one
        pulse.say(text)
        self.send(end=code)
        for peer in list(self.peers.values()):
            with contextlib.suppress(OSError):  # closed already
                peer.connection.settimeout(5)
                while peer.receive() is not None:
                    pass
        os._exit(code)


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
            self.leader.send(given_up=_given_up(self.leader.name))
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


def end_here(text: str, code: int) -> None:
    """Ends this process alone, at once: what hangs in a collective can be ended in no other way."""
    pulse.say(text)
    os._exit(code)


def _given_up(name: str) -> str:
    """What a process says that wakes after the others have ended."""
    return f"error: {name} did not answer, and the others have ended without it; {RESUMES}"
