"""The clients of scripts/soak: what they ask for, how each answer is judged, and what excuses a broken connection."""
import contextlib
import datetime
import functools
import http.client
import itertools
import json
import math
import multiprocessing
import random
import signal
import sys
import threading
import time
from collections import namedtuple

HOST, PROCESSES = "127.0.0.1", 4
ROLES = ["kept", "kept", "kept", "lazy", "lazy", "fresh", "push", "slow"]
KINDS = ["kill", "store", "upgrade"]
COUNTS = ["requests", "pushes", "failed", "killed", "store", "idle"]
BUCKETS, PER_E = 400, 20    # of latency: the logarithm of microseconds, in steps of 5 %
STORE_GRACE = 2
DRIVERS = [1001, 1002, 1003, 1004, 1005, 9999]    # the last one is not stored
COLUMNS = ["driver_id", "conv_rate", "acc_rate", "avg_daily_trips"]
now = time.monotonic

# `stored`: a 5xx is excused while Redis is down. `check` is true for the right body.
Request = namedtuple("Request", "method path body status check stored push", defaults=(False, False))


class Windows:
    """What happened when: written by the schedule, read by all clients."""

    def __init__(self):
        self.cells, self.used = multiprocessing.RawArray("d", 30000), multiprocessing.RawValue("i")

    @contextlib.contextmanager
    def open(self, kind):
        at = 3 * self.used.value
        self.cells[at:at + 3] = [KINDS.index(kind), now(), math.inf]
        self.used.value += 1
        try:
            yield
        finally:
            self.cells[at + 2] = now()

    def during(self, kind, begin, end):
        """Begin and end of those that touch the interval."""
        for at in range(0, 3 * self.used.value, 3):
            code, first, last = self.cells[at:at + 3]
            if code == KINDS.index(kind) and first <= end and last >= begin:
                yield first, last

    def last(self):
        """What began within the last half minute, for people."""
        recent = [(kind, begin) for kind in KINDS for begin, _ in self.during(kind, now() - 30, now())]
        return ", ".join(f"{kind} {now() - begin:.3f} s before" for kind, begin in recent) or "no event before"


class Tally:
    """Counters of one thread in shared memory, and what it saw fail."""

    def __init__(self, failures):
        self.cells, self.failures = multiprocessing.RawArray("q", len(COUNTS) + BUCKETS), failures

    def add(self, name):
        self.cells[COUNTS.index(name)] += 1

    def took(self, seconds):
        self.cells[len(COUNTS) + min(int(math.log(seconds * 1e6) * PER_E), BUCKETS - 1)] += 1

    def failed(self, text):
        self.add("failed")
        if self.cells[COUNTS.index("failed")] <= 5:
            with open(self.failures, "a") as file:
                file.write(f"{time.strftime('%H:%M:%S')} {text}\n")


class Client:
    """One connection at a time, and the judgement of what is seen on it."""

    def __init__(self, connect, windows, tally, name, keep=True, slow=False):
        self.connect, self.windows, self.tally, self.name = connect, windows, tally, name
        self.keep, self.slow, self.connection = keep, slow, None
        # When the request began that this connection has answered last (or itself), and when it was answered.
        self.used = self.answered = 0
        self.answering = False

    def ask(self, request):
        """True when the answer was right, None when it is excused, False otherwise."""
        began = now()
        try:
            status, body = self.exchange(request)
        except (OSError, http.client.HTTPException) as error:
            excuse = self.excuse(error, began, request)
            self.drop()
            if not excuse:
                return self.fail(request, repr(error))
            self.tally.add(excuse)
            began = now()
            try:
                status, body = self.exchange(request)
            except (OSError, http.client.HTTPException) as again:
                self.drop()
                return self.fail(request, f"{again!r}, on a new connection after {error!r} ({excuse})")
        self.tally.add("requests")
        if request.stored and status >= 500 and any(self.windows.during("store", began - STORE_GRACE, now())):
            self.tally.add("store")
            return None
        right = False
        with contextlib.suppress(ValueError, LookupError, TypeError):
            right = status == request.status and request.check(body)
        if not right:
            return self.fail(request, f"{status} {body[:600]!r}")
        if not self.slow:
            self.tally.took(now() - began)
        return True

    def exchange(self, request):
        began, self.answering = now(), False
        if self.connection is None:
            self.used, self.answered, self.connection = began, began, self.connect()
        answer = (self.send_slowly if self.slow else self.send)(request)
        self.answering = True
        body = answer.read()
        self.used, self.answered = began, now()
        if answer.will_close or not self.keep:
            self.drop()
        return answer.status, body

    def send(self, request):
        self.connection.request(request.method, request.path, request.body, {"Content-Type": "application/json"})
        return self.connection.getresponse()

    def send_slowly(self, request):
        """A piece at a time, for some seconds."""
        body = request.body or b""
        head = f"{request.method} {request.path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n"
        message = head.encode() + body
        if self.connection.sock is None:
            self.connection.connect()
        for at in range(0, len(message), 16):
            self.connection.sock.sendall(message[at:at + 16])
            time.sleep(random.uniform(0.08, 0.25))
        answer = http.client.HTTPResponse(self.connection.sock, method=request.method)
        answer.begin()
        return answer

    def excuse(self, error, began, request):
        """Which event explains the broken connection, if one does."""
        if isinstance(error, TimeoutError):
            return None
        # Under way when the worker was killed, or idle then and used for the first time since.
        kills = self.windows.during("kill", self.used, now())
        if any(killed <= began or killed >= now() - 1 for killed, _ in kills):
            return "killed"
        idle = began - self.answered > 0.3 and not self.answering and not request.push
        return "idle" if idle and any(self.windows.during("upgrade", self.used, now())) else None

    def drop(self):
        if self.connection:
            self.connection.close()
            self.connection = None

    def fail(self, request, text):
        self.tally.failed(f"{self.name} client, {request.method} {request.path} {request.body or b''}: {text}, "
                          f"{now() - self.answered:.3f} s after the last answer; {self.windows.last()}")
        return False


def read(what, ids, check, **kind):
    body = json.dumps({**what, "entities": {"driver_id": ids}}).encode()
    return Request("POST", "/get-online-features", body, 200, check, stored=True, **kind)


class Reads:
    """What clients without pushes ask for; the right answers are made from one that was given at rest."""

    def __init__(self, connection):
        features = [f"driver_hourly_stats:{name}" for name in COLUMNS[1:]]
        self.shapes = [({"features": features}, COLUMNS, 10), ({"features": features[:1]}, COLUMNS[:2], 1),
                       ({"feature_service": "driver_activity_v2"}, COLUMNS, 3)]
        connection.request("POST", "/get-online-features", read(self.shapes[0][0], DRIVERS, None).body)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        cells = [list(zip(*column.values())) for column in answer["results"]]
        stored = [cell for column in cells for cell in column[:5]]
        if any(value is None or status != "PRESENT" for value, status, _ in stored):
            sys.exit(f"the repository lacks values: {answer}")
        self.cells = {name: dict(zip(DRIVERS, column)) for name, column in zip(COLUMNS, cells)}
        wrong = [("GET", "/nothing", None, 404), ("DELETE", "/push", None, 405), ("POST", "/push", b"{}", 422),
                 ("POST", "/get-online-features", b'{"features":', 422),
                 ("POST", "/get-online-features", b'{"feature_service": "no", "entities": {"driver_id": [1]}}', 404)]
        self.others = [Request(*parts, check=lambda body: b"detail" in body or b"message" in body) for parts in wrong]
        self.others += 10 * [Request("GET", "/health", None, 200, lambda body: body == b"")]

    def choose(self):
        if random.random() < 0.2:
            return random.choice(self.others)
        what, names, rows = random.choice(self.shapes)
        ids = random.choices(DRIVERS, k=rows)
        return read(what, ids, functools.partial(self.right, names, ids))

    def right(self, names, ids, body):
        columns = [zip(*(self.cells[name][one] for one in ids)) for name in names]
        results = [dict(zip(("values", "statuses", "event_timestamps"), map(list, column))) for column in columns]
        return json.loads(body) == {"results": results, "metadata": {"feature_names": names}}


def stamp(number):
    return (datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=number)).isoformat()


def push_of(ids, number):
    df = {"driver_id": ids, "conv_rate": number % 1000 / 8, "acc_rate": 0.5, "avg_daily_trips": number,
          "event_timestamp": stamp(number), "created": stamp(number)}
    df = {name: value if isinstance(value, list) else [value] * len(ids) for name, value in df.items()}
    body = json.dumps({"push_source_name": "driver_stats_push_source", "df": df, "to": "online"}).encode()
    return Request("POST", "/push", body, 200, lambda _: True, stored=True, push=True)


def holds(possible, body):
    """Each row has a number that it may have, and the other columns of that push."""
    _, rates, _, trips = json.loads(body)["results"]
    return all(number in those and (number is None or (rate, when) == (number % 1000 / 8, stamp(number) + "Z"))
               for number, rate, when, those in zip(trips["values"], rates["values"], trips["event_timestamps"],
                                                    possible.values()))


def push_and_read(pusher, reader, base, stop):
    """Pushes to pairs of rows in turn, and reads all rows over another connection after each push."""
    possible = {base + row: {None} for row in range(16)}
    for number in itertools.count():
        ids = [base + number % 8 * 2, base + number % 8 * 2 + 1]
        accepted = pusher.ask(push_of(ids, number))
        possible.update({row: {number} if accepted else possible[row] | {number} for row in ids})
        pusher.tally.cells[COUNTS.index("pushes")] += bool(accepted)
        back = read({"feature_service": "driver_activity_v3"}, list(possible), functools.partial(holds, possible))
        while reader.ask(back) is None:
            time.sleep(0.1)
        if stop.value:
            return
        time.sleep(0.02)


def pause(seconds, stop):
    until = now() + seconds
    while now() < until and not stop.value:
        time.sleep(max(min(0.2, until - now()), 0))


class Traffic:
    """Client processes with a thread for each role."""

    def __init__(self, port, tls, windows, failures):
        self.port, self.tls, self.windows, self.failures = port, tls, windows, failures
        self.stop, self.base = multiprocessing.RawValue("b"), 0
        self.tallies = [[Tally(failures) for _ in ROLES] for _ in range(PROCESSES)]
        self.reads = Reads(self.connect())

    def connect(self):
        """A connection that is made when it is used first."""
        if self.tls:
            return http.client.HTTPSConnection(HOST, self.port, timeout=15, context=self.tls)
        return http.client.HTTPConnection(HOST, self.port, timeout=15)

    def start(self):
        self.base, self.stop.value = self.base + 1_000_000, 0
        self.processes = []
        for number in range(PROCESSES):
            self.processes.append(multiprocessing.Process(target=self.process, args=(number,), daemon=True))
            self.processes[-1].start()

    def end(self):
        self.stop.value = 1
        for process in self.processes:
            process.join(40)
            if process.exitcode != 0:
                raise RuntimeError(f"a client process does not end as it should: {process}")

    def process(self, number):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threads = [threading.Thread(target=self.thread, args=(role, tally, self.base + number * 1000 + at * 100))
                   for at, (role, tally) in enumerate(zip(ROLES, self.tallies[number]))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def thread(self, role, tally, base):
        def client():
            return Client(self.connect, self.windows, tally, role, keep=role != "fresh", slow=role == "slow")
        try:
            if role == "push":
                return push_and_read(client(), client(), base, self.stop)
            one, shortest, longest = client(), *{"lazy": (0.5, 10), "fresh": (0, 0.02)}.get(role, (0, 0.003))
            while not self.stop.value:
                one.ask(self.reads.choose())
                pause(random.uniform(shortest, longest), self.stop)
        except Exception as error:
            tally.failed(f"{role} client ended: {error!r}")

    def sums(self):
        return [sum(cells) for cells in zip(*(tally.cells for tallies in self.tallies for tally in tallies))]

    def counts(self):
        return dict(zip(COUNTS, self.sums()))

    def quantile(self, share):
        """Of the latency, in milliseconds."""
        buckets = self.sums()[len(COUNTS):]
        reached = itertools.accumulate(buckets)
        return math.exp(next(at for at, n in enumerate(reached) if n >= share * sum(buckets)) / PER_E) / 1000
