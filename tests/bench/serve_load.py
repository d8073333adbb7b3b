#!/usr/bin/env python3
"""Load on `infer serve`: many clients at once, for minutes.

    python3 tests/bench/serve_load.py --infer target/release/infer --model DIR --image FILE [--clients 32] [--seconds 120]

Starts a server on a free port and asks 16 different questions about a picture one after the other (greedy and drawn with
seeds): the answers to expect. Then CLIENTS threads ask them over and over, whole and streamed, while some clients read one
byte at a time, hang up in the middle of an answer or send half a request and wait. Every answer must equal the unloaded one;
every refusal must be 429 or 503 with Retry-After. Memory is looked at all along. Needs nothing beyond Python's library.
Prints one JSON line; the exit code is 0 only if everything held.
"""
import argparse
import base64
import http.client
import json
import pathlib
import random
import socket
import subprocess
import threading
import time

CHAT, QUESTIONS = "/v1/chat/completions", 16


class Load:
    def __init__(self, port, url, seconds):
        self.port, self.url, self.end = port, url, time.monotonic() + seconds
        self.expected, self.lock = [], threading.Lock()
        self.counts = dict(answered=0, streamed=0, refused=0, abandoned=0)
        self.latencies, self.faults = [], []

    def body(self, number, stream=False):
        drawn = dict(temperature=1.0, seed=number, top_p=0.9) if number % 2 else {}
        picture = [{"type": "image_url", "image_url": {"url": self.url}}] if number % 4 < 3 else []
        content = [{"type": "text", "text": f"Question {number}: what is this?"}, *picture]
        message = dict(model="tiny", max_tokens=8 + 8 * (number % 5), messages=[{"role": "user", "content": content}])
        return json.dumps(message | drawn | dict(stream=stream))

    def ask(self, number, stream=False):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", CHAT, self.body(number, stream), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                return response.status, response.headers.get("Retry-After"), text
            if not stream:
                return 200, None, json.loads(text)["choices"][0]["message"]["content"]
            events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
            failed = next((event["error"] for event in events if "error" in event), None)
            if failed:
                return (503 if failed["code"] in ("timeout", "unavailable") else 0), "in the stream", str(failed)
            return 200, None, "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        finally:
            connection.close()

    def client(self, seed):
        choice = random.Random(seed)
        while time.monotonic() < self.end:
            number, stream, begin = choice.randrange(QUESTIONS), choice.random() < 0.5, time.monotonic()
            try:
                status, retry_after, text = self.ask(number, stream)
            except Exception as error:  # a broken connection is a fault, not the end of the client
                status, retry_after, text = -1, None, repr(error)
            with self.lock:
                if status == 200 and text == self.expected[number]:
                    self.counts["streamed" if stream else "answered"] += 1
                    self.latencies.append(time.monotonic() - begin)
                elif status in (429, 503) and retry_after:
                    self.counts["refused"] += 1
                else:
                    self.faults.append(f"question {number}, stream {stream}: {status} {text[:300]}")
            if status != 200:
                time.sleep(0.05)

    def nuisance(self, kind):
        """Clients that must not hold the others: slow readers, ones that hang up, ones that send half a request."""
        choice = random.Random(kind)
        while time.monotonic() < self.end:
            body = self.body(choice.randrange(QUESTIONS), stream=True).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    connection.sendall(head.encode() + (body[: len(body) // 2] if kind == "half" else body))
                    stay = time.monotonic() + {"slow": 4, "gone": 0.1, "half": 3}[kind]
                    while kind != "half" and time.monotonic() < min(stay, self.end):
                        connection.recv(1)
                        time.sleep(0.02)
                    if kind == "half":
                        time.sleep(min(3, max(0, self.end - time.monotonic())))
            except OSError:
                pass
            with self.lock:
                self.counts["abandoned"] += 1


def resident_mb(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else None


def run(options, server, port):
    url = "data:image/jpeg;base64," + base64.b64encode(pathlib.Path(options.image).read_bytes()).decode()
    load = Load(port, url, options.seconds)
    for number in range(QUESTIONS):
        status, _, text = load.ask(number)
        assert status == 200, (status, text)
        load.expected.append(text)
    load.end = time.monotonic() + options.seconds
    threads = [threading.Thread(target=load.client, args=(seed,)) for seed in range(options.clients)]
    threads += [threading.Thread(target=load.nuisance, args=(kind,)) for kind in ("slow", "slow", "gone", "half")]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - begin, resident_mb(server.pid)))
        time.sleep(0.25)
    # The first quarter fills caches, threads' stacks and the allocator's pools; from then on memory must stay level.
    middle = [mb for at, mb in memory if options.seconds * 0.25 <= at < options.seconds * 0.5]
    last = [mb for at, mb in memory if options.seconds * 0.75 <= at < options.seconds]
    growth = quantile(last, 0.5) - quantile(middle, 0.5)
    after = [load.ask(number)[2] == load.expected[number] for number in range(QUESTIONS)]
    report = dict(
        clients=options.clients, seconds=options.seconds, **load.counts, faults=len(load.faults),
        latency_p50_s=quantile(load.latencies, 0.5), latency_p99_s=quantile(load.latencies, 0.99),
        rss_second_quarter_mb=quantile(middle, 0.5), rss_last_quarter_mb=quantile(last, 0.5), rss_growth_mb=growth,
        same_answers_afterwards=all(after), server_alive=server.poll() is None)
    print(json.dumps(report))
    for fault in load.faults[:10]:
        print("fault:", fault)
    enough = load.counts["answered"] + load.counts["streamed"] > options.clients
    return enough and not load.faults and all(after) and server.poll() is None and growth < options.growth_mb


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--infer", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--growth-mb", type=float, default=8, help="largest growth of the resident memory allowed, MB")
    options = parser.parse_args()
    command = [options.infer, "serve", "--model", options.model, "--port", "0", "--served-model-name", "tiny", "--max-queue", "20"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        held = run(options, server, port)
    finally:
        server.terminate()
        server.wait()
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
