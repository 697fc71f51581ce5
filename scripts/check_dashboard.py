#!/usr/bin/env python3
"""config/grafana-dashboard.json against a real server and a real Prometheus: every panel's queries work and show something.

    python3 scripts/check_dashboard.py BINARY [SECONDS]         (needs prometheus on the path)

1. The dashboard itself: ids, places, and what each panel and each query must have.
2. A quickstart repository is served and scraped every second while reads, pushes and materializations are sent and one
   worker is killed; then each query is put to Prometheus as Grafana would put it, with the variables filled in.
   One that is an error, has no number, or another one than is known, fails the check.
3. Where there is a Grafana ($GRAFANA_HOME, or grafana or grafana-server on the path) it is started with the dashboard
   and the data source provisioned, and must have both.
"""
import contextlib
import json
import math
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
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DASHBOARD = os.path.join(ROOT, "config", "grafana-dashboard.json")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What Grafana puts in for the variables.
VARIABLES = {"$__rate_interval": "10s", "$job": ".+", "$instance": ".+"}
# Queries whose answer is known after the traffic below, by panel and legend.
EXPECTED = {
    ("Trouble in the chosen time range", "Workers that died"): [1],
    ("Trouble in the chosen time range", "Requests the store failed"): [0],
    ("Trouble in the chosen time range", "Unusable registry files"): [0],
    ("Trouble in the chosen time range", "Failed materializations"): [0],
    ("Trouble in the chosen time range", "Offline pushes set aside"): [0],
    ("Entities per read", "mean"): [2],
    ("Missing values", "{{feature_view}}"): [0.5],
    ("Share of errors", "{{endpoint}}"): [0, 0, 1 / 11],
}
READ = {"features": ["driver_hourly_stats:conv_rate"], "entities": {"driver_id": [1001, 5]}}  # 5 does not exist
WRONG = {"features": ["no_such_view:conv_rate"], "entities": {"driver_id": [1001, 5]}}


def structure(dashboard):
    """What is wrong with the dashboard, before anything is asked."""
    taken, seen = {}, set()
    names = [one["name"] for one in dashboard["templating"]["list"]]
    if names != ["datasource", "job", "instance"]:
        yield f"variables are {names}"
    for panel in dashboard["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if panel["id"] in seen:
            yield f"{title}: id {panel['id']} is taken"
        seen.add(panel["id"])
        if place["x"] + place["w"] > 24:
            yield f"{title}: wider than the grid"
        cells = [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
        for other in sorted({taken[cell] for cell in cells if cell in taken}):
            yield f"{title}: lies over {other}"
        taken.update((cell, title) for cell in cells)
        if panel["type"] == "row":
            continue
        if not panel.get("description") or not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{title}: no description or no unit"
        references = [target.get("refId") for target in panel["targets"]]
        if not all(references) or len(set(references)) != len(references):
            yield f"{title}: refIds are {references}"
        for one in [panel, *panel["targets"]]:
            if one.get("datasource") != SOURCE:
                yield f"{title}: data source is not the variable"
        for target in panel["targets"]:
            if not target.get("expr") or not target.get("legendFormat"):
                yield f"{title}: a query without expression or legend"
    if len(taken) != 24 * (1 + max(y for _, y in taken)):
        yield "there are holes in the grid"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(url, seconds=30):
    for _ in range(seconds * 10):
        try:
            if call(url)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"{url} does not answer")


def traffic(api, metrics, seconds):
    """Reads of which some fail, pushes to both stores, materializations; one worker is killed on the way."""
    def send(path, body, status=200):
        answer = call(f"http://127.0.0.1:{api}{path}", body)
        if answer[0] != status:
            sys.exit(f"{path}: {answer}")

    start, killed, turn = time.time(), False, 0
    while time.time() < start + seconds:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        rows = {"driver_id": [1001], "conv_rate": [0.5], "acc_rate": [0.5], "avg_daily_trips": [turn],
                "event_timestamp": [now + "Z"], "created": [now]}
        for _ in range(10):
            send("/get-online-features", READ)
        send("/get-online-features", WRONG, 404)
        send("/push", {"push_source_name": "driver_stats_push_source", "df": rows, "to": "online_and_offline"}, 202)
        send("/write-to-online-store", {"feature_view_name": "driver_hourly_stats_fresh", "df": rows})
        if turn % 50 == 0:
            send("/materialize-incremental", {"end_ts": now, "feature_views": ["driver_hourly_stats"]})
        if not killed and time.time() > start + seconds / 2:
            lines = call(f"http://127.0.0.1:{metrics}/metrics")[1].splitlines()
            pid = next(line for line in lines if line.startswith("feast_prefork_connections{")).split('"')[1]
            with contextlib.suppress(ProcessLookupError):  # it has just been recycled
                os.kill(int(pid), signal.SIGKILL)
                killed = True
        turn += 1
        time.sleep(0.1)


def ask(prometheus, panel, target, seconds):
    """The numbers a query answers, and what is wrong with them, if anything."""
    text = target["expr"].replace("$__range", f"{seconds + 30}s")
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    status, body = call(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": text}))
    if status != 200 or "$" in text:
        return [], f"{body} {text}"
    numbers = [float(one["value"][1]) for one in json.loads(body)["data"]["result"]]
    if not any(math.isfinite(number) for number in numbers):
        return numbers, "shows nothing"
    known = EXPECTED.get((panel["title"], target["legendFormat"]))
    if known and (len(known) != len(numbers) or any(abs(a - b) > 0.05 for a, b in zip(known, sorted(numbers)))):
        return numbers, f"is not {known}"
    return numbers, None


def choices(prometheus, query):
    """What a variable offers."""
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
    found = call(f"{prometheus}/api/v1/series?" + urllib.parse.urlencode({"match[]": series.replace("$job", ".+")}))[1]
    return sorted({one[label] for one in json.loads(found)["data"]})


def grafana(work, prometheus, dashboard, started):
    """Starts a Grafana, if there is one, and looks for the dashboard in it."""
    home = os.environ.get("GRAFANA_HOME")
    folders = [os.path.join(home, "bin")] if home else os.environ["PATH"].split(os.pathsep)
    binary = shutil.which("grafana", path=os.pathsep.join(folders)) or shutil.which("grafana-server", path=os.pathsep.join(folders))
    if binary is None:
        print("skip Grafana: there is none (set GRAFANA_HOME to one)")
        return True
    home = home or "/usr/share/grafana"
    for name in ("datasources", "dashboards", "data"):
        os.makedirs(f"{work}/grafana/{name}")
    with open(f"{work}/grafana/datasources/prometheus.yaml", "w") as out:
        json.dump({"apiVersion": 1, "datasources": [{"name": "Prometheus", "uid": "prometheus", "type": "prometheus", "access": "proxy",
                   "url": prometheus, "isDefault": True, "jsonData": {"timeInterval": "1s"}}]}, out)
    with open(f"{work}/grafana/dashboards/feast.yaml", "w") as out:
        json.dump({"apiVersion": 1, "providers": [{"name": "feast", "type": "file", "options": {"path": f"{work}/grafana/data/shown"}}]}, out)
    os.makedirs(f"{work}/grafana/data/shown")
    shutil.copy(DASHBOARD, f"{work}/grafana/data/shown")
    port = free_port()
    settings = {"GF_SERVER_HTTP_ADDR": "127.0.0.1", "GF_SERVER_HTTP_PORT": str(port), "GF_PATHS_DATA": f"{work}/grafana/data",
                "GF_PATHS_LOGS": f"{work}/grafana/data", "GF_PATHS_PLUGINS": f"{work}/grafana/data/plugins",
                "GF_PATHS_PROVISIONING": f"{work}/grafana", "GF_AUTH_ANONYMOUS_ENABLED": "true",
                "GF_AUTH_ANONYMOUS_ORG_ROLE": "Admin", "GF_ANALYTICS_REPORTING_ENABLED": "false", "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false", "GF_PLUGINS_PREINSTALL_DISABLED": "true"}
    command = [binary] if binary.endswith("-server") else [binary, "server"]
    started.append(subprocess.Popen([*command, "--homepath", home], env={**os.environ, **settings},
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    web = f"http://127.0.0.1:{port}"
    wait_for(f"{web}/api/health", 90)
    wait_for(f"{web}/api/dashboards/uid/{dashboard['uid']}", 30)
    loaded = json.loads(call(f"{web}/api/dashboards/uid/{dashboard['uid']}")[1])["dashboard"]
    through = call(f"{web}/api/datasources/proxy/uid/prometheus/api/v1/query?query=feast_prefork_build_info")
    good = [one["title"] for one in loaded["panels"]] == [one["title"] for one in dashboard["panels"]] \
        and through[0] == 200 and json.loads(through[1])["data"]["result"] != []
    print(f"{'ok  ' if good else 'FAIL'} Grafana loads the dashboard and reaches Prometheus")
    return good


def main():
    binary, seconds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with open(DASHBOARD) as source:
        dashboard = json.load(source)
    wrong = list(structure(dashboard))
    print("".join(f"FAIL {one}\n" for one in wrong) or "ok   structure\n", end="")
    work, started, good = tempfile.mkdtemp(), [], not wrong
    try:
        subprocess.run([binary, "quickstart", "--once", "--dir", work + "/repo"], check=True, capture_output=True, timeout=60)
        with open(work + "/repo/feature_store.yaml", "a") as out:
            out.write("feature_server:\n    type: local\n    offline_push_batching_enabled: true\n"
                      "    offline_push_batching_batch_size: 1000\n    offline_push_batching_batch_interval_seconds: 2\n")
        api, metrics, web = free_port(), free_port(), free_port()
        with open(work + "/prometheus.yml", "w") as out:
            out.write("global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: feast-prefork\n    static_configs:\n"
                      f"      - targets: ['127.0.0.1:{metrics}']\n")
        prometheus = f"http://127.0.0.1:{web}"
        with open(work + "/log", "w") as log:
            started.append(subprocess.Popen([binary, "-c", work + "/repo", "serve", "-p", str(api), "-w", "2", "--metrics",
                                             "--metrics-port", str(metrics), "--metrics-host", "127.0.0.1",
                                             "--max-requests", "500", "--no-access-log"], stderr=log))
            started.append(subprocess.Popen(["prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data",
                                             f"--web.listen-address=127.0.0.1:{web}"], stderr=log))
        wait_for(f"http://127.0.0.1:{api}/health")
        wait_for(f"{prometheus}/-/ready")
        time.sleep(3)
        traffic(api, metrics, seconds)
        offered = [choices(prometheus, one["definition"]) for one in dashboard["templating"]["list"] if one["type"] == "query"]
        right = offered == [["feast-prefork"], [f"127.0.0.1:{metrics}"]]
        good &= right
        print(f"{'ok  ' if right else 'FAIL'} variables: {offered}")
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                numbers, trouble = ask(prometheus, panel, target, seconds)
                good &= trouble is None
                shown = " ".join(f"{number:.4g}" for number in numbers) or "-"
                print(f"{'ok  ' if trouble is None else 'FAIL'} {panel['title']}: {target['legendFormat']} = {shown} {trouble or ''}".rstrip())
        good &= grafana(work, prometheus, dashboard, started)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if good else 1)


main()
