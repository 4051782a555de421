"""Measures text queries on an idle service, and beside a migration that does not end.

    python benchmarks/migration.py PHOTOS [--rounds 3] [--rate 20] [--seconds 60]

Runs `clipfleet up` with clipfleet-mini on this machine, and with workers of a second model: the
same weights under another name. In turns: idle, then beside the migration. Queries are sent at
times that are fixed in advance (see load.py). The photos are copied meanwhile: at least MIN_IMAGES,
or the run does not count. Limit: 1.5 times the p99.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import load
from parts import linked, shown, until, up
from under_load import measured

IMAGES = 20_000
MIN_IMAGES = 300
MODEL = Path(__file__).parents[1] / "clipfleet" / "models" / "clipfleet-mini"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "other-model"
        shutil.copytree(MODEL, other)
        more = ("--also-model", str(other))
        with up(Path(scratch) / "data", more=more) as (client, port):
            photos = linked(args.photos, Path(scratch) / "photos", IMAGES)
            client.wait(client.index("c", photos))
            url = f"http://127.0.0.1:{port}"
            sent = ["--url", url, "--collection", "c", "--rate", str(args.rate)]
            queries = load.arguments([*sent, "--seconds", str(args.seconds)])
            rounds = []
            for number in range(args.rounds):
                time.sleep(12)  # what was written is then older than Milvus' staleness
                idle = measured(queries)
                client.start_migration("c", str(other))
                until(lambda: client.migration("c").new.images)
                before = client.migration("c").new.images
                beside = measured(queries)
                migration = client.migration("c")
                images = migration.new.images - before
                assert migration.missing, "the migration was too short"
                assert images >= MIN_IMAGES, f"only {images} images were copied meanwhile"
                client.cancel_migration("c")
                rounds.append((idle["latency_ms"], beside["latency_ms"]))
                print(f"round {number}: idle {idle['latency_ms']} ms")
                print(f"  beside a migration {beside['latency_ms']} ms, {images} images meanwhile")
                print(f"  stages {beside['server_ms']}, load {os.getloadavg()[0]:.1f}", flush=True)
    for point in ("p50", "p99"):
        ratios = [beside[point] / idle[point] for idle, beside in rounds]
        print(f"{point}: beside a migration / idle {shown(ratios, 2)}")


if __name__ == "__main__":
    main()
