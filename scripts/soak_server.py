"""The servers of scripts/soak: feast-prefork with a repository of its own, and Redis."""
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter

from soak_traffic import HOST, now

WORKERS, GRACE = 3, 8


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def until(done, seconds, what):
    end = now() + seconds
    while not done():
        if now() > end:
            raise RuntimeError(f"{what}: not after {seconds} s")
        time.sleep(0.05)


class Redis:
    """A redis-server whose data outlive it."""

    def __init__(self, work):
        self.port, self.process = free_port(), None
        self.command = ["redis-server", "--port", str(self.port), "--bind", HOST, "--dir", work, "--save", "",
                        "--appendonly", "yes"]

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, start_new_session=True)
        until(self.answers, 20, "redis-server answers")

    def answers(self):
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1) as link:
            link.sendall(b"PING\r\n")
            return link.recv(7) == b"+PONG\r\n"

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(20)


class Server:
    """The feast-prefork under test: all processes of its session, whoever is the master."""

    def __init__(self, binary, work, redis, tls):
        self.binary, self.work, self.exits = binary, work, {}
        self.port, self.metrics_port = free_port(), free_port()
        self.socket, self.log, self.metrics, repo = (f"{work}/{name}" for name in ("control", "log", "metrics", "repo"))
        self.run("quickstart", "--dir", repo, "--once")
        if redis:
            with open(f"{repo}/feature_store.yaml", "r+") as file:
                text = file.read().replace("type: sqlite", "type: redis")
                file.seek(0)
                file.write(re.sub("path: data/online.*", f"connection_string: '{HOST}:{redis.port}'", text))
                file.truncate()
            self.run("-c", repo, "materialize", "2000-01-01T00:00:00", "2100-01-01T00:00:00")
        options = {"port": self.port, "workers": WORKERS, "max-requests": 1000, "graceful-timeout": GRACE,
                   "metrics-host": HOST, "metrics-port": self.metrics_port, "control-socket": self.socket,
                   "pid": f"{work}/pid", **({"key": f"{work}/key.pem", "cert": f"{work}/cert.pem"} if tls else {})}
        command = [binary, "-c", repo, "serve", "--no-access-log", "--metrics"]
        command += [f"--{name}={value}" for name, value in options.items()]
        env = {**os.environ, "TZ": "UTC", "PROMETHEUS_MULTIPROC_DIR": self.metrics}
        with open(self.log, "w") as log:
            self.first = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def run(self, *words):
        done = subprocess.run([self.binary, *words], capture_output=True, text=True, timeout=150)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def ctl(self, word):
        return json.loads(self.run("ctl", "--socket", self.socket, "--json", word))

    def workers(self):
        return {worker["pid"]: worker["state"] for worker in self.ctl("status")["workers"]}

    def serves(self, count=WORKERS):
        return sum(state in ("serving", "retiring") for state in self.workers().values()) >= count

    def master(self):
        with open(f"{self.work}/pid") as file:
            return int(file.read())

    def processes(self):
        """Name, state and parent of each. A master that has ended is reaped: its parent has ended before it."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
                name, rest = stat.read().split("(", 1)[1].rsplit(")", 1)
                state, parent, _, session = rest.split()[:4]
                if int(session) == self.first.pid:
                    found[int(pid)] = name, state, int(parent)
        for pid in [pid for pid, one in found.items() if one == ("feast-master", "Z", os.getpid())]:
            self.exits[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            del found[pid]
        return found

    def memory(self, *kinds):
        """KiB of all processes."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith(kinds))
        return total

    def descriptors(self):
        """Of the master, and the most of a worker."""
        most = Counter()
        for pid, (name, *_) in self.processes().items():
            with contextlib.suppress(OSError):
                most[name] = max(most[name], len(os.listdir(f"/proc/{pid}/fd")))
        return most["feast-master"], most["feast-worker"]

    def scrape(self):
        connection = http.client.HTTPConnection(HOST, self.metrics_port, timeout=15)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def is_strange(self):
        """True unless there is the present tree and nothing else."""
        master, found = self.master(), self.processes()
        names = Counter(name for name, *_ in found.values())
        family = all(pid == master or parent == master and state != "Z" for pid, (_, state, parent) in found.items())
        return not family or names != {"feast-master": 1, "feast-metrics": 1, "feast-worker": WORKERS}

    def stop(self):
        """The exit code, once all processes have ended."""
        master = self.master()
        os.kill(master, signal.SIGTERM)
        until(lambda: not self.processes(), GRACE + 5, "the server stops")
        return self.exits[master]

    def kill(self):
        while alive := [pid for pid, one in self.processes().items() if one[1] != "Z"]:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def certificate(work):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=soak",
                    "-addext", f"subjectAltName=IP:{HOST}", "-keyout", f"{work}/key.pem", "-out", f"{work}/cert.pem"],
                   check=True, capture_output=True)
    return ssl.create_default_context(cafile=f"{work}/cert.pem")
