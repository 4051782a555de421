"""How soon work goes on after Redis was away.

    python benchmarks/redis_away.py PHOTOS [--away-s 20] [--rounds 3] [--images 20000]

A whole service on a model that costs nothing, with default settings. A job runs. Redis becomes
read-only (as in a failover), full, or is killed and started again.
Printed are the seconds from its return until a search is answered, and until the job's count of
images grows. The bar is 5 s.
"""

import argparse
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import redis
from parts import linked, process, shown, until

from clipfleet import Client, Error
from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.embedded import commands, processes

MODEL, PASSWORD = "hash:64", "secret"
FORMS = ("read-only", "full", "gone")


class Valkey:
    """A Valkey server that can be taken away."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, commands.free_port()
        self.url = commands.valkey_url(self._port, PASSWORD)
        self.client = redis.Redis.from_url(self.url)
        self.start()

    def start(self) -> None:
        command = commands.valkey(self._folder / "valkey", self._port, PASSWORD)
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self.client.ping)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def away(self, form: str) -> Iterator[None]:
        if form == "read-only":
            self.client.replicaof("127.0.0.1", "1")
        elif form == "full":
            self.client.config_set("maxmemory", 1)
        else:
            self.stop()
        yield
        if form == "read-only":
            self.client.replicaof("NO", "ONE")
        elif form == "full":
            self.client.config_set("maxmemory", 0)
        else:
            self.start()


@contextmanager
def service(folder: Path, valkey: Valkey) -> Iterator[Client]:
    with ExitStack() as running:
        port = commands.free_port()
        milvus = commands.free_port()
        env = {
            "CLIPFLEET_REDIS_URL": valkey.url,
            "CLIPFLEET_MILVUS_URI": commands.milvus_uri(milvus),
            "CLIPFLEET_SOURCE_ROOTS": '["/"]',
            "CLIPFLEET_BLOBS": str(folder / "blobs"),
            "CLIPFLEET_MODEL": MODEL,
        }
        programs = {
            "milvus": commands.milvus_lite(folder / "milvus", milvus),
            "gateway": processes.gateway(commands.LOOPBACK, port),
            "planner": processes.planner(),
            "ingest": processes.worker("one", ["ingest"], MODEL),
            "query": processes.worker("two", ["query"], MODEL),
        }
        for name, command in programs.items():
            more = commands.MILVUS_LITE_ENVIRONMENT if name == "milvus" else {}
            running.enter_context(process(command, folder / f"{name}.log", **env, **more))
        client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}", retries=0))
        until(lambda: len(RedisFleet(valkey.client).alive()) == 2)
        until(lambda: client.create_collection("photos"))
        yield client


def seconds_until_work(client: Client, job: str) -> tuple[float, float]:
    """From now until a search is answered, and until the job has more images than at first."""
    began = time.monotonic()
    took = {"search": 0.0, "job": 0.0}
    looks: list[int] = []

    def watch(name: str) -> None:
        while not took[name]:
            with suppress(Error):
                if name == "search":
                    client.search("photos", text="a dog")
                    took[name] = time.monotonic() - began
                else:
                    looks.append(client.job(job).done)
                    if looks[-1] > looks[0]:
                        took[name] = time.monotonic() - began
            time.sleep(0.02)

    threads = [threading.Thread(target=watch, args=(name,)) for name in took]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took["search"], took["job"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--away-s", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = linked(options.photos, Path(folder, "photos"), options.images)
        valkey = Valkey(Path(folder))
        try:
            with service(Path(folder), valkey) as client:
                for form in FORMS:
                    result = measured(client, valkey, photos, form, options)
                    print(f"{form} for {options.away_s:g} s: {result}")
        finally:
            valkey.stop()


def has_begun(client: Client, job: str) -> bool:
    return client.job(job).done > 0


def measured(
    client: Client, valkey: Valkey, photos: Path, form: str, options: argparse.Namespace
) -> str:
    searches, jobs = [], []
    for _ in range(options.rounds):
        job = client.index("photos", photos, on_existing="replace").id
        until(partial(has_begun, client, job))
        with valkey.away(form):
            time.sleep(options.away_s)
        search_s, job_s = seconds_until_work(client, job)
        state = client.job(job).state
        if state != "running":
            raise SystemExit(f"the job was {state} before the end: give more --images")
        searches.append(search_s)
        jobs.append(job_s)
        client.cancel(job)
    return f"a search after {shown(searches)} s, the job after {shown(jobs)} s"


if __name__ == "__main__":
    main()
