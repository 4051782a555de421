"""Stage: the numbers of the table, measured on held-out pictures with the packaged folder.

The folder is loaded afresh through the auto classes.  No Debian or npm package holds the sample
images that the product will carry, so held-out clip art and OpenMoji drawings stand in for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from training import metrics
from training.encoder import BATCH, Encoder
from training.photos import IMAGENETTE
from training.pictures import opened
from training.records import HELD_VENDOR, Record

Pictures = dict[str, list[Record]]


@dataclass(frozen=True)
class Result:
    """One line of the table; ``spread`` is a standard deviation over random galleries."""

    test: str
    measured: float
    bar: float
    spread: float
    images: int

    def reached(self) -> bool:
        """Say whether the bar is reached."""
        return self.measured >= self.bar


def evaluate(encoder: Encoder, pictures: Pictures) -> list[Result]:
    """Measure every line whose source is not left out."""
    held = {
        name: [record for record in records if record.held] for name, records in pictures.items()
    }
    lines: dict[str, Callable[[Encoder, Pictures], list[Result]]] = {
        "imagenette": _imagenette,
        "flickr8k": _flickr,
        HELD_VENDOR: _emoji,
        "openclipart": _samples,
        "caltech101": lambda model, held_out: _caltech(model, held_out, pictures["caltech101"]),
    }
    return [line for name, run in lines.items() if held.get(name) for line in run(encoder, held)]


def embed(encoder: Encoder, records: Sequence[Record]) -> Tensor:
    """Embed pictures from their files: float32 [n, d]."""
    parts = []
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        parts.append(encoder.images([opened(record.path) for record in batch]))
    return torch.cat(parts)


def _prompted(encoder: Encoder, names: Sequence[str]) -> Tensor:
    """Embed class names in the one prompt that the table asks for."""
    return encoder.texts([f"a photo of a {name}" for name in names])


def _labels(records: Sequence[Record], names: Sequence[str]) -> Tensor:
    """Number the records' names."""
    return torch.tensor([names.index(record.texts[0]) for record in records])


def _imagenette(encoder: Encoder, held: Pictures) -> list[Result]:
    """Classify the validation half by prompt, and look at neighbours."""
    records = held["imagenette"]
    names = list(IMAGENETTE.values())
    images, labels = embed(encoder, records), _labels(records, names)
    top = metrics.accuracy(images, _prompted(encoder, names), labels)
    near = metrics.neighbour_accuracy(images, labels)
    return [
        Result("imagenette, prompt, top-1 of 10", top, 0.95, 0.0, len(records)),
        Result("imagenette, image to image, one of 5 nearest", near, 0.95, 0.0, len(records)),
    ]


def _caltech(encoder: Encoder, held: Pictures, everything: Sequence[Record]) -> list[Result]:
    """Classify the held-out tenth by prompt among all 101 names."""
    records = held["caltech101"]
    names = sorted({record.texts[0] for record in everything})
    top = metrics.accuracy(
        embed(encoder, records), _prompted(encoder, names), _labels(records, names)
    )
    return [Result("caltech101, prompt, top-1 of 101", top, 0.80, 0.0, len(records))]


def _flickr(encoder: Encoder, held: Pictures) -> list[Result]:
    """Ask for held-out photos by their captions in galleries of a hundred."""
    records = held["flickr8k"]
    captions = [text for record in records for text in record.texts]
    owners = [number for number, record in enumerate(records) for _ in record.texts]
    texts, images = encoder.texts(captions), embed(encoder, records)
    lines = []
    for top, bar in ((1, 0.0), (5, 0.0), (10, 0.65)):
        mean, spread = metrics.recall(texts, torch.tensor(owners), images, top, 100)
        name = f"flickr8k, caption to image, R@{top} of 100"
        lines.append(Result(name, mean, bar, spread, len(records)))
    return lines


def _emoji(encoder: Encoder, held: Pictures) -> list[Result]:
    """Ask for the held-out vendor's emoji by name in galleries of five hundred."""
    records = held[HELD_VENDOR]
    mean, spread = _by_name(encoder, records, 10, 500)
    return [Result(f"{HELD_VENDOR}, name to image, R@10 of 500", mean, 0.5, spread, len(records))]


def _samples(encoder: Encoder, held: Pictures) -> list[Result]:
    """Ask for held-out drawings by name, in galleries of a hundred, as a stand-in."""
    records = held["openclipart"] + held.get("openmoji", [])
    mean, spread = _by_name(encoder, records, 5, 100)
    name = "samples (stand-in), name to image, R@5 of 100"
    return [Result(name, mean, 0.6, spread, len(records))]


def _by_name(
    encoder: Encoder, records: Sequence[Record], top: int, gallery: int
) -> tuple[float, float]:
    """Ask for each picture by its name alone."""
    texts = encoder.texts([record.texts[0] for record in records])
    owners = torch.arange(len(records))
    return metrics.recall(texts, owners, embed(encoder, records), top, gallery)


def table(results: Sequence[Result]) -> str:
    """Lay the results out as a Markdown table."""
    rows = ["| test | measured | bar | spread | images |", "|---|---|---|---|---|"]
    for line in results:
        mark = "" if line.reached() else " (missed)"
        bar = f"{line.bar:.2f}{mark}" if line.bar else "none"
        rows.append(
            f"| {line.test} | {line.measured:.3f} | {bar} | {line.spread:.3f} | {line.images} |"
        )
    return "\n".join(rows)


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """Turn results into what a JSON document holds."""
    return [asdict(line) | {"reached": line.reached()} for line in results]
