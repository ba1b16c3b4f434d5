"""The server under load, over HTTP on the loopback: clients that hang up, speed, and memory.

    python benchmarks/serve_load.py hangups RUN [--requests 2000] [--clients 32]
    python benchmarks/serve_load.py speed RUN [--requests 64] [--reference-python PATH]
        [--folder EXPORTED]
    python benchmarks/serve_load.py memory RUN [--seconds 600]

hangups: a third of the clients disconnect during their request. Three counts must be 0: lost (no
answer, or an error), hung (no end within a minute) and leaked (texts still open when all clients
are gone). It prints p50 and p95 of a request.

speed: all requests are sent at once to 16 slots, with log-normal lengths of answers from a fixed
seed. transformers generates the same in static batches of 16, from EXPORTED, which `launch.py
export RUN EXPORTED` writes.

memory: prints the server's resident memory after each round of requests, and how far the highest
lies above the first, which must be at most 2 %.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).parents[1]
BATCH, PROMPT, LONGEST = 16, 32, 384


def lengths(num: int) -> list[int]:
    """Log-normal lengths of answers, with a median of 64 tokens."""
    drawn = np.random.default_rng(0).lognormal(np.log(64), 1.0, num)
    return np.clip(drawn, 8, LONGEST).astype(int).tolist()


def prompts(num: int, vocab: int = 257) -> list[list[int]]:
    return np.random.default_rng(1).integers(1, vocab, (num, PROMPT)).tolist()


class Server:
    """`launch.py serve RUN` in its own process, on a free port."""

    def __init__(self, run: str, *options: str):
        command = [sys.executable, str(ROOT / "launch.py"), "serve", run, "--port", "0", "--name", "model", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]
        while httpx.get(f"{self.url}/ready", timeout=60).status_code != 200:
            time.sleep(0.2)

    def megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def gauge(self, name: str) -> float:
        return float(re.search(rf"^bigmodel_{name} (\S+)", httpx.get(f"{self.url}/metrics").text, re.M)[1])

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


async def ask(client: httpx.AsyncClient, url: str, prompt: list[int], num: int, hang_up: int = 0) -> tuple[int, float]:
    """(tokens, seconds) of one streamed completion; the client disconnects after `hang_up` events,
    0 = never."""
    began, events, usage = time.perf_counter(), 0, 0
    body = {"model": "model", "prompt": prompt, "max_tokens": num, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            events += line.startswith("data: ")
            if hang_up and events >= hang_up:
                return 0, time.perf_counter() - began
            if line.startswith("data: {") and (found := json.loads(line[6:])).get("usage"):
                usage = found["usage"]["completion_tokens"]
    return usage, time.perf_counter() - began


async def many(server: Server, wanted: list[int], clients: int, share: float = 0.0) -> dict:
    """Sends all requests with so many clients at a time; a share of them hangs up after 1 to 8
    events."""
    draw, free = random.Random(0), asyncio.Semaphore(clients)
    found = {"seconds": [], "lost": 0, "hung": 0, "tokens": 0, "gone": 0}

    async def one(prompt: list[int], num: int, hang_up: int) -> None:
        async with free:
            try:
                async with asyncio.timeout(60 if share else None):
                    tokens, seconds = await ask(client, server.url, prompt, num, hang_up)
            except TimeoutError:
                found["hung"] += 1
            except httpx.HTTPError:
                found["lost"] += 1
            else:
                found["gone"] += bool(hang_up)
                if not hang_up:
                    found["lost"] += tokens != num
                    found["seconds"].append(seconds)
                    found["tokens"] += tokens

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        began = time.perf_counter()
        rows = zip(prompts(len(wanted)), wanted, strict=True)
        await asyncio.gather(*(one(p, n, draw.randint(1, 8) if draw.random() < share else 0) for p, n in rows))
        found["wall"] = time.perf_counter() - began
    return found


def hangups(args: argparse.Namespace) -> None:
    server = Server(args.run, "--slots", "16", "--length", "256")
    wanted = np.random.default_rng(0).integers(4, 48, args.requests).tolist()
    asyncio.run(many(server, wanted[:64], args.clients))  # compiles
    found = asyncio.run(many(server, wanted, args.clients, share=1 / 3))
    time.sleep(2)
    leaked, code = server.gauge("texts"), server.end()
    cuts = statistics.quantiles(found["seconds"], n=20)
    print(f"{args.requests} requests by {args.clients} clients in {found['wall']:.0f} s, {found['gone']} hung up")
    print(f"lost {found['lost']}, hung {found['hung']}, leaked slots {leaked:.0f}, exit code {code}")
    print(f"p50 {cuts[9]:.3f} s, p95 {cuts[18]:.3f} s, {found['tokens'] / found['wall']:,.0f} tokens/s")


def speed(args: argparse.Namespace) -> None:
    wanted = lengths(args.requests)
    length = str(PROMPT + LONGEST)
    server = Server(args.run, "--slots", str(BATCH), "--length", length, "--prefixes", "0")
    asyncio.run(many(server, wanted[:BATCH], args.requests))  # compiles
    rounds = [asyncio.run(many(server, wanted, args.requests)) for _ in range(args.rounds)]
    server.end()
    ours = statistics.median(found["tokens"] / found["wall"] for found in rounds)
    print(f"serve: {ours:,.1f} tokens/s of {sum(wanted)} tokens, {args.requests} requests, {BATCH} slots")
    if args.reference_python:
        theirs = {how: reference(args, how, wanted) for how in ("eager", "compile")}
        for how, found in theirs.items():
            print(f"transformers, static batches of {BATCH}, {how}: {found:,.1f} tokens/s")
        print(f"ratio to the better: {ours / max(theirs.values()):.2f}")


def reference(args: argparse.Namespace, how: str, wanted: list[int]) -> float:
    """Tokens per second of transformers; 0, with a printed reason, if it fails."""
    script = Path(__file__).with_name("torch_generate.py")
    asked = json.dumps({"prompts": prompts(len(wanted)), "lengths": wanted, "batch": BATCH, "rounds": args.rounds})
    done = subprocess.run(
        [args.reference_python, script, args.folder, how], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"transformers, {how}: {done.stderr.strip().splitlines()[-1]}")
        return 0.0
    return float(done.stdout.splitlines()[-1])


def memory(args: argparse.Namespace) -> None:
    server = Server(args.run, "--slots", "16", "--length", "256")
    wanted = np.random.default_rng(0).integers(4, 48, 200).tolist()
    asyncio.run(many(server, wanted, 32, share=1 / 3))
    seen, end = [server.megabytes()], time.monotonic() + args.seconds
    while time.monotonic() < end:
        asyncio.run(many(server, wanted, 32, share=1 / 3))
        seen.append(server.megabytes())
    server.end()
    print(f"resident memory over {len(seen)} rounds of 200 requests: " + ", ".join(f"{mb:,.0f}" for mb in seen) + " MB")
    print(f"highest over first: {max(seen) / seen[0] - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("hangups", "speed", "memory"))
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--reference-python", default="")
    parser.add_argument("--folder", default="")
    args = parser.parse_args()
    args.requests = args.requests or {"hangups": 2000, "speed": 64}.get(args.what, 0)
    {"hangups": hangups, "speed": speed, "memory": memory}[args.what](args)


if __name__ == "__main__":
    main()
