"""Measures clipfleet on a machine with a GPU: what the parts allow, and what the whole chain gives.

    python benchmarks/gpu.py PHOTOS [--json FILE] [--minutes 8] [--sections prepare chain ...]

PHOTOS is a folder of JPEG files; links repeat them as often as a job needs. The sections:

- prepare: read, hash, decode, resize and make the thumbnail in 1 to 16 processes, without a model.
- chain: jobs through Valkey, milvus-lite, gateway, planner and worker processes, with the CPU time
  of each part, the worker's time in each stage, and the GPU's use as nvidia-smi samples it. The
  workers get this process' environment, so CLIPFLEET_DECODE_THREADS and others can be set.
- copy: pixels to the device from pageable memory, by way of pinned memory, and from pinned memory.
- call: `embed_images` by images in a pass, images in a call, and threads that call it.
- forward: the image tower alone on pixels that are on the device already.
- cosine: embeddings of the photos in bfloat16 compared with those in float32 (`least`, `median`,
  and how many of the ten nearest photos are the same), with those of calls from four threads at
  once (`threads_least`), and float32 compared with a CPU's (`cpu_least`).

The models are ViT-B/32 and ViT-L/14 with random weights, which take the same time as others, and
clipfleet-mini. `--device cpu --small` runs everything in miniature, to test this script.
"""

import argparse
import json
import math
import multiprocessing
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from clipfleet.common.identity import bytes_hash
from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.imaging.thumbnails import thumbnail
from clipfleet.common.process.machine import cores
from clipfleet.common.settings import CARRIED_MODEL, Limits, Settings, carried_model
from clipfleet.workers.embedding.clip import ClipEmbedder
from clipfleet.workers.embedding.libraries import transformers

EDGE = 224
SHAPES: dict[str, dict[str, Any]] = {
    "ViT-B/32": {"projection_dim": 512},
    "ViT-L/14": {
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
SMALL: dict[str, dict[str, Any]] = {"tiny": {"vision_config": TINY, "text_config": TINY}}
SECTIONS = ("prepare", "chain", "copy", "call", "forward", "cosine")
PREPROCESS, LIMITS = Preprocess(shortest=EDGE, height=EDGE, width=EDGE), Limits()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", default=[*SHAPES, CARRIED_MODEL])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing begins after this time")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    card = _nvidia_smi("name,memory.total,driver_version")  # torch would begin to use CUDA
    print(f"{card or args.device}, {cores()} cores, {platform.platform()}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", end=", ")
    print(f"numpy {np.__version__}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        for section in SECTIONS:  # in this order: `prepare` forks, which must not follow CUDA
            if section in args.sections:
                bench.run(section)


class Report:
    """Prints rows as tables, and keeps them in a JSON file."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._rows, self._columns = file, list[dict[str, Any]](), list[str]()

    def add(self, section: str, **values: Any) -> None:
        """Add a row. A list holds a number from each round: its median and spread are printed."""
        columns = [section, *values]
        if columns != self._columns:
            print(f"\n## {section}\n" + "  ".join(name.rjust(9) for name in values))
            self._columns = columns
        cells = zip(values, values.values(), strict=True)
        print(
            "  ".join(_shown(value).rjust(max(9, len(name))) for name, value in cells), flush=True
        )
        self._rows.append({"section": section, **values})
        if self._file:
            self._file.write_text(json.dumps(self._rows, indent=1))


class Bench:
    """The sections.

    Args:
        args: the command line.
        scratch: a temporary folder.
    """

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._args, self._scratch, self._report = args, scratch, Report(args.json)
        self._ends: float = time.monotonic() + 60 * args.minutes
        self._seconds = 0.01 if args.small else 0.3  # of one measurement
        self._photos = sorted(
            path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
        )
        if not self._photos:
            raise SystemExit(f"no JPEG files in {args.photos}")
        self._folders: dict[str, str] = {}

    def run(self, section: str) -> None:
        """Run a section. An error ends this section only."""
        began = time.monotonic()
        try:
            getattr(self, section)()
        except Exception as error:
            traceback.print_exc()
            self._report.add("failed", part=section, error=repr(error)[:500])
        self._report.add("took", part=section, seconds=round(time.monotonic() - began, 1))

    def prepare(self) -> None:
        images = 64 if self._args.small else 1_500
        for processes in (1, 2) if self._args.small else (1, 2, 4, 8, 16):
            paths = list(islice(cycle(self._photos), images * processes))
            slices = [paths[start : start + 32] for start in range(0, len(paths), 32)]
            with multiprocessing.get_context("fork").Pool(processes) as pool:
                pool.map(_prepare, slices[: 2 * processes], chunksize=1)
                rates = []
                for _ in self._rounds():
                    began = time.perf_counter()
                    pool.map(_prepare, slices, chunksize=1)
                    rates.append(len(paths) / (time.perf_counter() - began))
            self._report.add("prepare", processes=processes, images_s=rates)

    def chain(self) -> None:
        import parts  # needs what only the chain needs, such as Valkey's wheel

        for name, folder in self._models():
            scratch = Path(tempfile.mkdtemp(dir=self._scratch))
            with ExitStack() as running:
                chain = Chain(running, scratch, folder, self._args)
                self._report.add("chain's start", model=name, seconds=chain.started_s)
                few, many = (40, 60) if self._args.small else (2_000, 40_000)
                rate = chain.job(
                    parts.linked(self._args.photos, scratch / "few", few), "warm-up"
                ).rate
                images = min(many, max(few, int(10 * rate)))
                photos = parts.linked(self._args.photos, scratch / "many", images)
                jobs = [chain.job(photos, f"c{number}") for number in self._rounds()]
                if not jobs:
                    return
                rates = [job.rate for job in jobs]
                gpu = [row for job in jobs for row in job.gpu]
                self._report.add(
                    "chain",
                    model=name,
                    workers=self._args.workers,
                    images=images,
                    images_s=rates,
                    machine_busy=statistics.fmean(job.busy for job in jobs),
                    gpu_percent=_mean(gpu, 0),
                    gpu_percent_max=max((row[0] for row in gpu), default=0.0),
                    gpu_mib=_mean(gpu, 1),
                    watt=_mean(gpu, 2),
                )
                for what in ("core_ms", "stage_ms"):  # per image
                    tables = [getattr(job, what) for job in jobs]
                    means = {key: _mean_of(key, tables) for key in sorted(tables[0])}
                    self._report.add(f"chain's {what} an image, {name}", **means)

    def copy(self) -> None:
        if self._args.device == "cpu":
            return
        for count in (256, 1_024):
            pixels = torch.from_numpy(_noise(count, EDGE))
            device = torch.device(self._args.device)
            ways: dict[str, Callable[[], torch.Tensor]] = {
                "pageable": partial(pixels.to, device),
                "staged": partial(_staged, pixels, device),
                "pinned": partial(pixels.pin_memory().to, device, non_blocking=True),
            }
            for name, way in ways.items():
                rates = self._rates(way, count)
                gigabytes = [rate * 3 * EDGE**2 / 1e9 for rate in rates]
                self._report.add("copy", images=count, way=name, images_s=rates, GB_s=gigabytes)

    def call(self) -> None:
        for name, folder in self._models():
            embedder = self._embedder(folder, "auto")
            ways = [(size, calls, 1, True) for size in (128, 256, 512, 1_024) for calls in (1, 2)]
            ways += [(256, 1, 2, True), (256, 2, 2, True), (512, 2, 2, True), (256, 2, 1, False)]
            for size, passes, threads, pins in [(2, 2, 2, False)] if self._args.small else ways:
                embedder._passes.size = size
                embedder._pins = pins and self._args.device != "cpu"
                images = _noise(size * passes, embedder.preprocess.height)
                with ThreadPoolExecutor(threads) as pool:
                    call = partial(_together, pool, embedder.embed_images, [images] * threads)
                    rates = self._rates(call, len(images) * threads)
                self._report.add(
                    "call",
                    model=name,
                    a_pass=size,
                    a_call=size * passes,
                    threads=threads,
                    pinned=str(pins),
                    images_s=rates,
                )

    def forward(self) -> None:
        for name, folder in self._models():
            for dtype in ("bfloat16", "float32"):
                embedder = self._embedder(folder, dtype)
                for batch in (2, 4) if self._args.small else (64, 128, 256, 512, 1_024):
                    ready = embedder.normalised(_noise(batch, embedder.preprocess.height))

                    alone = partial(embedder.model.get_image_features, pixel_values=ready)
                    rates = self._rates(alone, batch)
                    self._report.add(
                        "forward", model=name, dtype=dtype, batch=batch, images_s=rates
                    )

    def cosine(self) -> None:
        for name, folder in self._models():
            embedder = self._embedder(folder, "float32")
            edge = embedder.preprocess.edge()
            photos = self._photos[: 16 if self._args.small else 512]
            images = (decode(path.read_bytes(), LIMITS, edge=edge).image for path in photos)
            pixels = np.stack([embedder.preprocess.apply(image) for image in images])
            exact = embedder.embed_images(pixels)
            embedder = self._embedder(folder, "bfloat16")
            embedder._passes.size = 64
            short = embedder.embed_images(pixels)
            with ThreadPoolExecutor(4) as pool:  # each call has the photos in another order
                orders = [np.roll(pixels, by, 0) for by in range(8)]
                turned = list(pool.map(embedder.embed_images, orders))
            threads = [np.roll(rows, -by, 0) for by, rows in enumerate(turned)]
            near = zip(_nearest(exact, exact), _nearest(exact, short), strict=True)
            cpu = ClipEmbedder(Settings(model=folder, device="cpu", dtype="float32"))
            self._report.add(
                "cosine",
                model=name,
                photos=len(exact),
                least=_least(exact, short),
                median=round(float(np.median((exact * short).sum(1))), 5),
                same_of_10=statistics.fmean(len({*rows} & {*others}) for rows, others in near),
                threads_least=min(_least(short, rows) for rows in threads),
                cpu_least=_least(exact[:32], cpu.embed_images(pixels[:32])),
            )

    def _models(self) -> Iterator[tuple[str, str]]:
        """The names and folders of the models. Those with random weights are made once."""
        shapes = SMALL if self._args.small else SHAPES
        for name in [*shapes, CARRIED_MODEL] if self._args.small else self._args.models:
            if self._late():
                return
            if name == CARRIED_MODEL:
                self._folders[name] = CARRIED_MODEL
            elif name not in self._folders:
                folder = self._scratch / name.replace("/", "-")
                _random_model(shapes[name], folder, self._args.device)
                self._folders[name] = str(folder)
            yield name, self._folders[name]

    def _embedder(self, folder: str, dtype: str) -> ClipEmbedder:
        return ClipEmbedder(Settings(model=folder, device=self._args.device, dtype=dtype))

    @torch.inference_mode()
    def _rates(self, call: Callable[[], Any], images: int) -> list[float]:
        """Images per second in each round, after two calls to warm up."""
        self._timed(call, 1)
        repeats = math.ceil(self._seconds / self._timed(call, 1))
        return [images * repeats / self._timed(call, repeats) for _ in self._rounds()]

    def _timed(self, call: Callable[[], Any], repeats: int) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        if self._args.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _rounds(self) -> Iterator[int]:
        """The numbers of the rounds, fewer once the time is over."""
        for number in range(self._args.rounds):
            if self._late():
                return
            yield number

    def _late(self) -> bool:
        return time.monotonic() > self._ends


@dataclass(frozen=True)
class Measured:
    """What one job took.

    Attributes:
        rate: images per second from its start to its end.
        busy: the share of the machine's cores that was busy.
        core_ms: CPU milliseconds per image of each part, its child processes included.
        stage_ms: milliseconds per image of each stage of the workers, summed over their threads.
        gpu: nvidia-smi's samples: use in percent, memory in MiB, power in watts.
    """

    rate: float
    busy: float
    core_ms: dict[str, float]
    stage_ms: dict[str, float]
    gpu: list[list[float]]


class Chain:
    """A whole service, each part a process of its own.

    Attributes:
        started_s: seconds from the start until the workers were ready.
    """

    def __init__(
        self, running: ExitStack, scratch: Path, model: str, args: argparse.Namespace
    ) -> None:
        import parts
        import redis

        from clipfleet import Client
        from clipfleet.common.http.fleet import LANES
        from clipfleet.common.queue.fleet import RedisFleet
        from clipfleet.embedded import commands, processes

        began, self._until = time.monotonic(), parts.until
        env = {
            **parts.environment(running, scratch, model),
            "CLIPFLEET_RUNTIME": "torch",
            "CLIPFLEET_DEVICE": args.device,
        }
        port = commands.free_port()
        programs = {
            "gateway": processes.gateway(commands.LOOPBACK, port),
            "planner": processes.planner(),
        }
        for number in range(args.workers):
            programs[f"worker {number}"] = processes.worker(f"w{number}", LANES, model)
        logs = {name: scratch / f"{name}.log" for name in programs}
        self._processes = {
            name: running.enter_context(parts.process(program, logs[name], **env))
            for name, program in programs.items()
        }
        self._fleet = RedisFleet(redis.Redis.from_url(env["CLIPFLEET_REDIS_URL"]))
        self._client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}"))
        try:
            parts.until(lambda: len(self._fleet.alive()) == args.workers, 90)
            parts.until(lambda: self._client.create_collection("ready"), 30)
        except Exception:
            print(*(f"{name}: {log.read_text()[-2000:]}" for name, log in logs.items()), sep="\n")
            raise
        self.started_s = round(time.monotonic() - began, 1)
        self._processes |= {
            "valkey": _child("valkey"),
            "milvus-lite": _child("milvus_lite"),
        }

    def job(self, photos: Path, collection: str) -> Measured:
        """Index a folder into a new collection."""
        cpu, machine, worked = self._cpu_s(), psutil.cpu_times(), self._worked()
        with _gpu_samples() as gpu:
            job = self._client.index(collection, photos, wait=True)
        assert job.done == job.total, job
        used = {name: seconds - cpu[name] for name, seconds in self._cpu_s().items()}
        busy = _busy(machine, psutil.cpu_times())
        self._until(lambda: self._worked()["images"] - worked["images"] >= job.done)
        stages = {name: total - worked.get(name, 0) for name, total in self._worked().items()}
        del stages["images"]
        return Measured(
            rate=job.done / ((job.finished_at or 0) - (job.started_at or 0)),
            busy=busy,
            core_ms={name: 1e3 * seconds / job.done for name, seconds in used.items()},
            stage_ms={name: 1e3 * seconds / job.done for name, seconds in stages.items()},
            gpu=gpu,
        )

    def _cpu_s(self) -> dict[str, float]:
        return {
            name: sum(map(_cpu_s, [process, *process.children(recursive=True)]))
            for name, process in self._processes.items()
        }

    def _worked(self) -> dict[str, float]:
        """Images, and seconds in each stage, of the workers since their start."""
        cards = self._fleet.alive()
        stages = {stage for card in cards for stage in card.about.spent}
        sums = {stage: sum(card.about.spent.get(stage, 0) for card in cards) for stage in stages}
        return {"images": sum(card.about.images for card in cards), **sums}


def _child(word: str) -> psutil.Process:
    """The child process with a word in its command line."""
    children = psutil.Process().children()
    return next(child for child in children if any(word in part for part in child.cmdline()))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy(before: Any, after: Any) -> float:
    """The share of time in which a core was not idle."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    idle = after.idle - before.idle + after.iowait - before.iowait
    return float(1 - idle / sum(spent))


@contextmanager
def _gpu_samples() -> Iterator[list[list[float]]]:
    """Rows of [percent in use, MiB, watts] that a thread collects, some three a second."""
    rows: list[list[float]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.25):
            cells = _nvidia_smi("utilization.gpu,memory.used,power.draw").split(",")
            if len(cells) == 3:
                rows.append([_number(cell) for cell in cells])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield rows
    finally:
        over.set()
        thread.join()


def _nvidia_smi(query: str) -> str:
    """What nvidia-smi says about the first GPU, separated by commas; "" without a GPU."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _number(cell: str) -> float:
    """A cell of nvidia-smi; 0 when it is not available."""
    try:
        return float(cell)
    except ValueError:
        return 0.0


def _prepare(paths: Sequence[Path]) -> None:
    """What a worker does with an image before the model. It resizes as a gateway does."""
    for path in paths:
        data = path.read_bytes()
        bytes_hash(data, "")
        decoded = decode(data, LIMITS, edge=EDGE)
        PREPROCESS.apply(decoded.image)
        thumbnail(decoded, 256)


def _random_model(shape: dict[str, Any], folder: Path, device: str) -> None:
    """Save a CLIP with random weights, with the tokenizer of clipfleet-mini."""
    size = {"height": EDGE, "width": EDGE}
    with torch.device(device):
        transformers.CLIPModel(transformers.CLIPConfig(**shape)).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": EDGE}, crop_size=size).save_pretrained(
        folder
    )
    for file in carried_model().glob("tokenizer*"):
        shutil.copy(file, folder)


def _staged(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    return pixels.pin_memory().to(device, non_blocking=True)


def _together(pool: ThreadPoolExecutor, call: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """Call with each item, each on a thread of its own."""
    for future in [pool.submit(call, item) for item in items]:
        future.result()


def _noise(count: int, edge: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, edge, edge, 3), np.uint8)


def _least(rows: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """The lowest cosine similarity of two unit vectors in the same place."""
    return round(float((rows * others).sum(1).min()), 5)


def _nearest(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.intp]:
    """The ten nearest rows of each query; the row in its own place does not count."""
    cosines = queries @ rows.T
    np.fill_diagonal(cosines, -1)
    return np.argsort(-cosines, axis=1)[:, :10]


def _mean(rows: Sequence[Sequence[float]], column: int) -> float:
    return statistics.fmean(row[column] for row in rows) if rows else 0.0


def _mean_of(key: str, tables: Sequence[dict[str, float]]) -> float:
    return statistics.fmean(table.get(key, 0.0) for table in tables)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, list):
        if not value:
            return "-"
        numbers = (statistics.median(value), min(value), max(value))
        return "{} ({} to {})".format(*map(_shown, numbers))
    return str(value)


if __name__ == "__main__":
    main()
