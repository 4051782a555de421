"""Indexes Imagenette as one job and measures precision@10 by class.

    clipfleet up --model clipfleet-mini                     # in another terminal
    python benchmarks/imagenette.py IMAGENETTE/train

precision@10 of an image is the share of its ten nearest other images that have its label. That of a
prompt is the share of the ten images nearest to "a photo of a NAME" that have this label.
"""

import argparse
import asyncio
import csv
import statistics
import time
from collections import defaultdict
from pathlib import Path

from clipfleet import AsyncClient, Client

COLLECTION = "benchmark-imagenette"
K = 10
AT_ONCE = 64
NAMES = Path(__file__).parents[1] / "examples" / "imagenette.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="one folder per label")
    parser.add_argument("--keep", action="store_true", help="leave the collection there")
    args = parser.parse_args()
    with Client() as client:
        _index(client, args.folder)
        images = args.folder.resolve().glob("*/*.*")
        asyncio.run(_report({str(path): path.parent.name for path in images}))
        if not args.keep:
            client.delete_collection(COLLECTION)


def _index(client: Client, folder: Path) -> None:
    began = time.perf_counter()
    job = client.index(COLLECTION, folder, label_from_folder=True, wait=True, progress=True)
    seconds = time.perf_counter() - began
    model = client.collection(COLLECTION).model
    print(f"model {model}; {job.done} indexed, {job.skipped} were in, {job.failed} failed")
    print(f"{job.total} images in {seconds:.0f} s: {job.total / seconds:.1f} images/s")


async def _report(labelled: dict[str, str]) -> None:
    with NAMES.open(newline="", encoding="utf-8") as lines:
        names = {row["label"]: row["name"] for row in csv.DictReader(lines)}
    async with AsyncClient() as client:
        gate = asyncio.Semaphore(AT_ONCE)

        async def by_image(image: str) -> float:
            async with gate:
                result = await client.search(COLLECTION, id=image, top_k=K + 1)
            others = [match for match in result.matches if match.id != image][:K]
            return sum(match.label == labelled[image] for match in others) / K

        began = time.perf_counter()
        scores = await asyncio.gather(*map(by_image, labelled))
        seconds = time.perf_counter() - began
        by_label: dict[str, list[float]] = defaultdict(list)
        for image, score in zip(labelled, scores, strict=True):
            by_label[labelled[image]].append(score)
        print(f"{len(scores)} searches by id, {AT_ONCE} at once: {len(scores) / seconds:.0f}/s\n")
        print("| class | images | precision@10 by image | by prompt |\n|---|---|---|---|")
        for label, of_class in sorted(by_label.items()):
            name = names.get(label, label)
            result = await client.search(COLLECTION, text=f"a photo of a {name}", top_k=K)
            prompt = sum(match.label == label for match in result.matches) / K
            print(f"| {name} | {len(of_class)} | {statistics.mean(of_class):.3f} | {prompt:.1f} |")
        print(f"| all | {len(scores)} | {statistics.mean(scores):.3f} | |")


if __name__ == "__main__":
    main()
