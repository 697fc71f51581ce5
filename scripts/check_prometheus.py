#!/usr/bin/env python3
"""A real Prometheus scrapes the server for a minute while workers are recycled: up, right rates, no complaints.

usage: check_prometheus.py BINARY [SECONDS]      (needs prometheus on the path)
"""
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

BODY = b'{"features":["driver_hourly_stats:conv_rate"],"entities":{"driver_id":[1001]}}'
RATE = 200


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def wait_for(url):
    for _ in range(200):
        try:
            return get(url)
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{url} does not answer")


def main():
    binary, seconds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    work = tempfile.mkdtemp()
    subprocess.run([binary, "quickstart", "--once", "--dir", work + "/repo"], check=True, capture_output=True)
    api, metrics, web = free_port(), free_port(), free_port()
    with open(work + "/prometheus.yml", "w") as out:
        out.write("global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: feast\n    static_configs:\n"
                  f"      - targets: ['127.0.0.1:{metrics}']\n")
    log = open(work + "/prometheus.log", "w+")
    server = subprocess.Popen([binary, "-c", work + "/repo", "serve", "-p", str(api), "-w", "3", "--metrics",
                               "--metrics-port", str(metrics), "--max-requests", "50", "--no-access-log"],
                              stderr=subprocess.DEVNULL)
    prometheus = subprocess.Popen(["prometheus", f"--config.file={work}/prometheus.yml", "--log.level=debug",
                                   f"--storage.tsdb.path={work}/data", f"--web.listen-address=127.0.0.1:{web}"],
                                  stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{api}/health")
        wait_for(f"http://127.0.0.1:{web}/-/ready")
        stop, sent = threading.Event(), [0]

        def load():
            start = time.time()
            while not stop.is_set():
                request = urllib.request.Request(f"http://127.0.0.1:{api}/get-online-features", BODY,
                                                 {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=10).read()
                sent[0] += 1
                time.sleep(max(0, start + sent[0] / RATE - time.time()))

        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(seconds)

        def query(text):
            url = f"http://127.0.0.1:{web}/api/v1/query?" + urllib.parse.urlencode({"query": text})
            return [float(one["value"][1]) for one in json.loads(get(url))["data"]["result"]]

        window = f"{max(seconds - 15, 10)}s"
        results = {
            "up in every scrape": query(f"min_over_time(up[{window}])") == [1.0],
            "no reset of a counter": all(n == 0 for n in query(f"resets(feast_online_features_request_total[{window}])")),
            "samples kept": query("min(scrape_samples_post_metric_relabeling)")[0] > 50,
        }
        rate = query(f"sum(rate(feast_online_features_request_total[{window}]))")[0]
        results[f"rate {rate:.1f} of {RATE} requests/s"] = abs(rate - RATE) < 0.05 * RATE
        results["workers recycled"] = query('feast_prefork_worker_exits_total{reason="recycled"}')[0] > seconds
        stop.set()
        thread.join()
        time.sleep(2.5)
        results["total equals what was sent"] = query("sum(feast_online_features_request_total)") == [float(sent[0])]
        log.seek(0)
        complaints = [line for line in log if "scrape" in line.lower() and ("warn" in line or "err=" in line)]
        results["no complaint in its log"] = not complaints
        for name, good in results.items():
            print(("ok   " if good else "FAIL ") + name)
        print("".join(complaints[:5]), end="")
        if not all(results.values()):
            sys.exit(1)
    finally:
        for process in (prometheus, server):
            process.terminate()
            process.wait(30)


main()
