#!/usr/bin/env python3
"""The same writes to `feast serve` and to the server: which answers and which stored values differ?

usage: compare_writes.py FEAST BINARY

1. Pushes of about 30 values to a feature of every type, on SQLite: status, text, and what is read back.
2. Times in every form, as event times.
3. The recorded write requests of tests/fixtures/driver_stats, in order, on Redis (needs redis-server).
Differences that docs/compatibility.md lists are left out; any other ends with exit code 1.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TYPES = ["Int32", "Int64", "Float32", "Float64", "String", "Bool", "Bytes", "UnixTimestamp", "Uuid", "Decimal", "Map",
         "Json", "Struct", "Array(Int32)", "Array(Int64)", "Array(Float32)", "Array(Float64)", "Array(String)",
         "Array(Bool)", "Array(Bytes)", "Array(UnixTimestamp)", "Array(Map)", "Array(Json)", "Set(Int64)", "Set(String)"]
VALUES = [[1], [-7], [2147483648], [9223372036854775807], [9223372036854775808], [18446744073709551616], [0], [1.5], [0.0],
          [1e300], [1e16], [True], [False], ["x"], ["12"], [" 12 "], ["1_0"], ["1.5"], [""], ["true"], ["nan"],
          ["{\"a\": 1}"], ["[1]"], ["[{\"a\": [1, 2.5]}]"], [None], [[1, 2]], [[1.5, 2]], [["a", "b", "a"]], [[True]],
          [[None]], [[1, None]], [[]], [{"a": 1}], [{"a": "é", "b": {"c": 1.5}}], [{"a": [1, 2]}], [{"a": []}],
          [[{"a": 1}]], [[[1], [2]]], [1, None], [1.5, None], [True, None], ["a", None], [1, True], [True, 1], [1, "a"],
          ["a", 1], [1.5, True], [[1], [1.5]], [[1], ["a"]], [{"a": 1}, 1], [[1], 1], [1, [1]], ["2020-01-01"]]
TIMES = ["2025-03-01T10:00:00Z", "2025-03-01T10:00:00+02:00", "2025-03-01 10:00:00 -0530", "2025-03-01T10:00:00-08",
         "2025-03-01T10:00", "2025-03-01T10", "2025-03-01", "2025-03", "2025", "20250301", "20250301T100000Z",
         "2025/03/01 10:00:00", "2025-3-1 1:2:3", "2025-03-01t10:00:00z", "2025-03-01T10:00:00,5", "03/01/2025",
         "13/03/2025", "March 1, 2025", "1 Mar 2025 10:00:00 GMT", "Sat, 01 Mar 2025 10:00:00 GMT", "garbage",
         "2025-02-30", "2025-03-01T25:00:00", "2025-03-01T10:00:60", "9999-12-31T23:59:59Z", "1740823200", "2025-060",
         1740823200000000000, 1.7e18, True, None, "", [1], {"a": 1}, "2025-03-01T10:00:00.123456789Z", "now"]
# Integers beside nulls stay integers; a timestamp never becomes the sentinel; objects keep their own keys.
LISTED = {("UnixTimestamp", json.dumps(value)) for value in ([1.5], [0.0], [1e16], [1, None], [1.5, None], [1e300], [1.5, True])}
# Nulls beside numbers stay nulls; objects that hold lists are fine; the first item of a set is not that of a hash.
LISTED |= {(kind, json.dumps(value)) for kind in ("Json", "Struct") for value in ([1, None], [1.5, None])}
LISTED |= {("Json", json.dumps(value)) for value in ([{"a": [1, 2]}], [{"a": []}])}
LISTED |= {("Array(Map)", json.dumps(["[{\"a\": [1, 2.5]}]"])), ("Set(Int64)", json.dumps([["a", "b", "a"]])),
           ("Set(Int64)", json.dumps([[1, None]]))}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, command, repo):
        self.port = free_port()
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*command, "-c", repo, "serve", "--port", str(self.port), "--no-access-log",
                                         # The reference drops connections when it recycles.
                                         "--max-requests", "1000000"],
                                        env={**os.environ, "TZ": "UTC"}, stdout=self.log, stderr=self.log)
        until = time.time() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return
            except OSError:
                if time.time() > until:
                    sys.exit(f"{command[0]} does not start")
                time.sleep(0.05)

    def ask(self, path, body, method="POST"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data if method == "POST" else None,
                                         {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def read(self, features, driver):
        status, text = self.ask("/get-online-features", {"features": features, "entities": {"driver_id": driver}})
        if status != 200:
            return status, text
        body = json.loads(text)
        return status, dict(zip(body["metadata"]["feature_names"], body["results"]))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)


def same_text(a, b):
    """Equal but for the order inside braces, and for what only suggests something."""
    def plain(text):
        text = re.sub(r"not in \{[^}]*\}", "not in {}", text)
        return text.split("You might want to try")[0]
    return plain(a) == plain(b)


def type_repo(folder):
    os.makedirs(os.path.join(folder, "data"))
    with open(os.path.join(folder, "feature_store.yaml"), "w") as out:
        out.write("project: types\nregistry: data/registry.db\nprovider: local\nonline_store: {type: sqlite, path: data/online.db}\n"
                  "entity_key_serialization_version: 3\n")
    views = "".join(f"  - {{name: t{n}, entities: [driver], source: push{n}, schema: [{{name: v{n}, dtype: '{t}'}}]}}\n"
                    for n, t in enumerate(TYPES))
    pushes = "".join(f"  - {{name: push{n}, type: push, batch_source: file}}\n" for n in range(len(TYPES)))
    with open(os.path.join(folder, "definitions.yaml"), "w") as out:
        out.write("entities: [{name: driver, join_keys: [driver_id], value_type: Int64}]\ndata_sources:\n"
                  f"  - {{name: file, path: data/x.parquet, timestamp_field: event_timestamp}}\n{pushes}feature_views:\n{views}")


def compare(name, ours, theirs, problems):
    (status, text), (wanted_status, wanted) = ours, theirs
    equal = status == wanted_status and (text == wanted or isinstance(text, str) and same_text(text, wanted))
    if not equal:
        problems.append(f"{name}\n     ours {status} {text}\n   theirs {wanted_status} {wanted}")


def values_and_times(feast, binary, problems):
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        type_repo(os.path.join(folder, "a"))
        subprocess.run([binary, "-c", os.path.join(folder, "a"), "apply"], check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(os.path.join(folder, "a"), os.path.join(folder, "b"))
        ours, theirs = Server([binary], os.path.join(folder, "a")), Server([feast], os.path.join(folder, "b"))
        driver = 1
        for n, kind in enumerate(TYPES):
            for value in VALUES:
                rows = [driver + i for i in range(len(value))]
                driver += len(value)
                body = {"push_source_name": f"push{n}", "df": {"driver_id": rows, f"v{n}": value,
                                                              "event_timestamp": ["2025-03-01T00:00:00Z"] * len(value)}}
                name = f"{kind} {json.dumps(value, ensure_ascii=False)}"
                count += 1
                found, wanted = ours.ask("/push", body), theirs.ask("/push", body)
                if (kind, json.dumps(value)) in LISTED:
                    continue
                compare(name, found, wanted, problems)
                a, b = ours.read([f"t{n}:v{n}"], rows), theirs.read([f"t{n}:v{n}"], rows)
                if kind.startswith("Set(String"):
                    for side in (a, b):
                        for item in side[1][f"v{n}"]["values"] if side[0] == 200 else []:
                            item and item.sort()
                compare(f"{name}, read back", a, b, problems)
        n = TYPES.index("Int64")
        for value in TIMES:
            driver += 1
            body = {"push_source_name": f"push{n}", "df": {"driver_id": [driver], f"v{n}": [1], "event_timestamp": [value]}}
            count += 1
            name = f"event time {json.dumps(value)}"
            compare(name, ours.ask("/push", body), theirs.ask("/push", body), problems)
            if value != "now":
                compare(f"{name}, read back", ours.read([f"t{n}:v{n}"], [driver]), theirs.read([f"t{n}:v{n}"], [driver]), problems)
        ours.stop()
        theirs.stop()
    return count


def recorded_on_redis(feast, binary, problems):
    cases = os.path.join(ROOT, "tests/fixtures/driver_stats")
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        servers, stores = [], []
        for name, command in [("a", [binary]), ("b", [feast])]:
            port = free_port()
            stores.append(subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--dir", folder],
                                           stdout=subprocess.DEVNULL))
            repo = os.path.join(folder, name)
            os.makedirs(repo)
            shutil.copytree(os.path.join(cases, "data"), os.path.join(repo, "data"))
            subprocess.run(["chmod", "-R", "u+w", repo], check=True)
            with open(os.path.join(repo, "feature_store.yaml"), "w") as out:
                out.write("project: driver_stats\nregistry: data/registry.db\nprovider: local\noffline_store: {type: file}\n"
                          f"online_store: {{type: redis, connection_string: '127.0.0.1:{port}'}}\nentity_key_serialization_version: 3\n")
            time.sleep(0.5)
            servers.append(Server(command, repo))
        for line in open(os.path.join(cases, "write_cases.jsonl")):
            case = json.loads(line)
            # The push to a view without entities can be read here, and is newer.
            if case["name"] == "materialize a view without entities":
                continue
            if "request" not in case:
                continue
            count += 1
            request = case["request"]
            body = json.dumps(request["body"]).encode() if "body" in request else request.get("body_text", "").encode()
            answers = [server.ask(request["path"], body, request["method"]) for server in servers]
            quirk = "quirk" in case["tags"]
            if not quirk:
                compare(f"redis: {case['name']}", *answers, problems)
            for read in case["readback"]:
                if quirk or "quirk" in read.get("tags", []):
                    continue
                until = time.time() + read.get("within_s", 0)
                while True:
                    entities = read["request"]["body"]["entities"]
                    found = [server.ask("/get-online-features", read["request"]["body"]) for server in servers]
                    parsed = []
                    for status, text in found:
                        answer = json.loads(text)
                        parsed.append((status, dict(zip(answer["metadata"]["feature_names"], answer["results"])) if status == 200 else answer))
                    if parsed[0] == parsed[1] or time.time() > until:
                        break
                    time.sleep(0.2)
                compare(f"redis: {case['name']}, read back {json.dumps(entities)[:60]}", *parsed, problems)
        for server in servers:
            server.stop()
        for store in stores:
            store.terminate()
            store.wait()
    return count


def main():
    feast, binary = map(os.path.abspath, sys.argv[1:3])
    problems = []
    count = values_and_times(feast, binary, problems)
    count += recorded_on_redis(feast, binary, problems)
    for problem in problems:
        print(problem)
    print(f"{count} writes, {len(problems)} differences that are not listed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
