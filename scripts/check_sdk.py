"""The Feast SDK and the server on one repository: check_sdk.py REPO BINARY [REDIS host:port instead of its store]"""
import datetime
import json
import socket
import subprocess
import sys
import time
import urllib.request

import pandas
import yaml
from feast import FeatureStore

repo, binary, *redis = sys.argv[1:]
if redis:
    with open(repo + "/feature_store.yaml") as file:
        config = yaml.safe_load(file)
    config["online_store"] = {"type": "redis", "connection_string": redis[0]}
    with open(repo + "/feature_store.yaml", "w") as file:
        yaml.safe_dump(config, file)
store = FeatureStore(repo)
assert [v.name for v in store.list_feature_views()] == ["driver_hourly_stats", "driver_hourly_stats_fresh"]
assert {s.name for s in store.list_feature_services()} == {f"driver_activity_v{n}" for n in (1, 2, 3)}
assert {d.name for d in store.list_data_sources()} == {"driver_hourly_stats_source", "driver_stats_push_source"}
service = store.get_feature_service("driver_activity_v2")
rows = store.get_online_features(features=service, entity_rows=[{"driver_id": 1001}, {"driver_id": 9}]).to_dict()
assert redis or rows["avg_daily_trips"] == [100, None] and rows["conv_rate"] == [0.25, None], rows

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen([binary, "-c", repo, "serve", "-p", str(port), "--no-access-log", "-w", "2"])
try:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    for round in range(20):
        store.push("driver_stats_push_source", pandas.DataFrame({
            "driver_id": [1001], "conv_rate": [0.5 + round], "acc_rate": [1.0], "avg_daily_trips": [round],
            "event_timestamp": [now + datetime.timedelta(seconds=round)], "created": [now]}))
        body = json.dumps({"feature_service": "driver_activity_v3", "entities": {"driver_id": [1001]}}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/get-online-features", body, timeout=10) as answer:
            got = json.load(answer)
        values = dict(zip(got["metadata"]["feature_names"], (column["values"][0] for column in got["results"])))
        assert values == {"driver_id": 1001, "conv_rate": 0.5 + round, "acc_rate": 1.0, "avg_daily_trips": round}, values
finally:
    server.terminate()
    assert server.wait(40) == 0
print("ok: 20 pushes of the SDK were served at once")
