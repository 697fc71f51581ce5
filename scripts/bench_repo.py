"""Makes the benchmark repository with the Feast SDK: 25 feature views x 10 int64 features, 2,500 entities.

usage: bench_repo.py DIR [REDIS]   (run with a Python that has feast[redis]==0.67.0; REDIS: host:port to write to)
"""
import datetime
import os
import sys

import pandas
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

VIEWS, FEATURES, ENTITIES = 25, 10, 2500

directory = sys.argv[1]
os.makedirs(os.path.join(directory, "data"), exist_ok=True)
with open(os.path.join(directory, "feature_store.yaml"), "w") as out:
    out.write("project: bench\nregistry: data/registry.db\nprovider: local\n"
              + (f"online_store:\n    type: redis\n    connection_string: '{sys.argv[2]}'\n" if len(sys.argv) > 2 else
                 "online_store:\n    type: sqlite\n    path: data/online_store.db\n") +
              "entity_key_serialization_version: 3\nauth:\n    type: no_auth\n")

store = FeatureStore(directory)
entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.INT64)
views = []
for number in range(VIEWS):
    source = FileSource(name=f"source_{number}", path="none.parquet", timestamp_field="event_timestamp")
    views.append(FeatureView(
        name=f"feature_view_{number}", entities=[entity], ttl=datetime.timedelta(days=365), source=source,
        schema=[Field(name="entity", dtype=Int64)]
        + [Field(name=f"feature_{number * FEATURES + index}", dtype=Int64) for index in range(FEATURES)]))
services = [FeatureService(name=f"service_{count * FEATURES}", features=views[:count]) for count in (1, 5, 25)]
store.apply([entity, *views, *services])
now = datetime.datetime(2026, 11, 1)
for number, view in enumerate(views):
    frame = {"entity": range(ENTITIES), "event_timestamp": [now] * ENTITIES}
    for index in range(FEATURES):
        frame[f"feature_{number * FEATURES + index}"] = [
            (entity_id * 7919 + index * 104729 + number) % 1_000_000 for entity_id in range(ENTITIES)]
    store.write_to_online_store(view.name, df=pandas.DataFrame(frame))
