#!/usr/bin/env python3
"""The same requests to `feast serve --metrics` and to the server: which numbers of Feast's metrics differ?

usage: compare_metrics.py FEAST BINARY         (the reference's port 8000 must be free)
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REQUESTS = [
    {"features": ["driver_stats:rating"], "entities": {"driver_id": [1001, 1002]}},
    {"features": ["driver_stats:rating", "driver_stats:rating"], "entities": {"driver_id": [1001]}},
    {"features": ["driver_stats:rating", "driver_scores:score"], "entities": {"driver_id": [1001, 5, 6]}},
    {"feature_service": "svc_driver", "entities": {"driver_id": [1001]}},
    {"feature_service": "nope", "entities": {"driver_id": [1001]}},
    {"features": ["nope:a"], "entities": {"driver_id": [1, 2, 3]}},
    {"features": ["driver_stats:nope"], "entities": {"driver_id": [1, 2]}},
    {"features": ["noColon"], "entities": {"driver_id": [1]}},
    {"features": ["noColon", "driver_stats:rating"], "entities": {"driver_id": [1]}},
    {"features": [], "entities": {"driver_id": [1]}},
    {"features": [], "entities": {}},
    {"features": ["driver_stats:rating"], "entities": {}},
    {"features": ["driver_stats:rating"], "entities": {"driver_id": []}},
    {"features": ["driver_stats:rating"], "entities": {"driver_id": [1, 2], "x": [1]}},
    {"features": ["driver_stats:rating"], "entities": {"driver_id": ["text"]}},
    {"features": ["driver_stats:rating"], "entities": {"nobody": [1]}},
    {"features": ["driver_stats@v1:rating"], "entities": {"driver_id": [1]}},
    {"features": ["driver_stats@latest:rating"], "entities": {"driver_id": [1]}},
    {"features": ["driver_stats:rating"] * 30, "entities": {"driver_id": [1]}},
    {"features": 7, "entities": {"driver_id": [1]}},
    [],
]


def wait(port):
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"nobody on port {port}")


def send(port, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/get-online-features", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def numbers(port):
    """Feast's samples that do not depend on time."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found = {}
    for name, value in re.findall(r"^(feast_(?!prefork)\S+?(?:\{.*\})?) (\S+)$", text, re.M):
        timed = re.search(r"cpu_usage|memory_usage|freshness|(latency|duration)_seconds_(sum|bucket)", name)
        if not timed:
            found[name] = float(value)
    return found


def run(command, port, metrics, env=None):
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env={**os.environ, **(env or {})})
    try:
        wait(port)
        if metrics == 8000:
            time.sleep(2)
        # After each request: what has it changed?
        seen, steps = numbers(metrics), []
        for body in REQUESTS:
            status = send(port, body)
            now = numbers(metrics)
            steps.append((status, {name: now[name] - seen.get(name, 0) for name in now if now[name] != seen.get(name, 0)}))
            seen = now
        return steps, set(seen)
    finally:
        server.terminate()
        server.wait(40)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    feast, binary = sys.argv[1:]
    work = tempfile.mkdtemp()
    shutil.copytree(os.path.join(ROOT, "tests/fixtures/kitchen_sink"), work + "/repo")
    api, metrics = free_port(), free_port()
    ours = run([binary, "-c", work + "/repo", "serve", "-p", str(api), "--metrics", "--metrics-port", str(metrics)], api, metrics)
    theirs = run([feast, "-c", work + "/repo", "serve", "-p", str(api), "-w", "1", "--metrics"], api, 8000)
    differences = 0
    for body, (status, change), (their_status, their_change) in zip(REQUESTS, ours[0], theirs[0]):
        if change != their_change or status != their_status:
            differences += 1
            print(json.dumps(body)[:100], status, their_status)
            for name in sorted(set(change) | set(their_change)):
                if change.get(name) != their_change.get(name):
                    print(f"   {name}: here {change.get(name, 0)}, reference {their_change.get(name, 0)}")
    for name in sorted(ours[1] ^ theirs[1]):
        print("only", "here" if name in ours[1] else "in the reference", name)
    print(f"{len(REQUESTS)} requests, {differences} counted differently")
    sys.exit(differences > 0)


main()
