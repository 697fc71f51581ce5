"""Prints what the Python client makes of a multiprocess directory: a JSON object per line read from standard input."""
import json
import sys

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
collector = MultiProcessCollector(registry, path=sys.argv[1])
for _ in sys.stdin:
    samples = {}
    for family in collector.collect():
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    print(json.dumps(samples), flush=True)
