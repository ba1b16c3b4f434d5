"""The watch of process 0: it knows all other processes, judges them and prints messages. See
peers.py."""

import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any

from bigmodel_jax.cluster import hung
from bigmodel_jax.cluster.connection import Peer
from bigmodel_jax.cluster.watch import LOST, RESUMES, Watch, given_up
from bigmodel_jax.core import pulse

STACKS_SECONDS = 10.0  # how long process 0 waits for stack traces of the others

log = logging.getLogger(__name__)


class Leader(Watch):
    """The watch of process 0, which is connected to all other processes."""

    def __init__(self, listener: socket.socket, token: str, num_processes: int):
        super().__init__()
        self.listener, self.token, self.num_processes = listener, token, num_processes
        self.peers: dict[int, Peer] = {}
        self.facts: dict | None = None
        self.interval = max(1.0, num_processes / 100)  # seconds between two requests for each process's state
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
            elif peer.process_id < 0:  # not a process of this job
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
        """Asks all processes for their state, and ends the job if one hangs."""
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
        """Writes the stack traces of all processes that answer, and ends the job.

        A silent process gets the reason, which it prints when it wakes.
        """
        text = f"error: {verdict.text}; {pulse.stacks_text()}all processes were ended; {RESUMES}"
        silent = {m.name for m in verdict.silent}
        for peer in list(self.peers.values()):
            peer.send(given_up=given_up(peer.name)) if peer.name in silent else peer.send(dump=True)
        found = [pulse.stacks(self.name), *self._stacks([p for p in self.peers.values() if p.name not in silent])]
        pulse.write_stacks("\n".join([text, *found]))
        self.end(text, LOST)

    def _stacks(self, peers: list[Peer]) -> list[str]:
        """The stack traces of these processes.

        They are read here, because this thread handles messages. Other messages no longer matter.
        """
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
        """Ends all processes, at once for a user's mistake and after 1.5 s for a bug.

        The delay lets the death of a process be noticed first, because it may be the cause.
        """
        if code != 1:
            self.end(text, code)
        # The first bug is reported, and later ones are ignored.
        elif self.deadline is None:
            self.deadline = (time.monotonic() + 1.5, text, code)

    def agree(self, facts: dict, seconds: float) -> None:
        """Waits until all processes are ready with equal facts, or ends the job after `seconds`."""
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
        """Prints `text` and ends every process, this one last: JAX aborts processes without a
        process 0."""
        self._one_end.acquire()  # never released, so that only the first reason is printed
        pulse.say(text)
        self.send(end=code)
        for peer in list(self.peers.values()):
            with contextlib.suppress(OSError):  # already closed
                peer.connection.settimeout(5)
                while peer.receive() is not None:
                    pass
        os._exit(code)
