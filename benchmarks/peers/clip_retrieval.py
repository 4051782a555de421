"""Compares bulk indexing with clip-retrieval's `clip_inference`, on the same photos and weights.

    python benchmarks/peers/clip_retrieval.py CLIP PHOTOS [--images 600] [--rounds 3]
        [--work .cache/peers] [--batch 64] [--prepro 2]

CLIP is a folder with the configuration of a CLIP model. Without weights it gets random ones, which
take the same time. clip-retrieval gets a virtual environment of its own in WORK: torch in the
version of constraints.txt, and what its inference imports. Its model is the CLIPModel of
transformers, with its processor (`hf_clip:`). pip warns about the packages of its server, which
are not installed.

The two take turns. clip-retrieval reads, preprocesses, embeds and writes embeddings to one file;
its time is from the first read to the last write, as its log has it. clipfleet does the same, makes
thumbnails and writes to the vector database and the ledger; its time is that of the job. Loading of
the models counts on neither side. At the end the embeddings of both are compared.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ingest import indexing, linked, up, with_weights
from peers.environment import environment

from clipfleet import Client

HERE = Path(__file__).parent
# transformers 5 returns features that clip-retrieval cannot read; setuptools 81 has no
# pkg_resources, which clip-anytorch imports.
PINNED = (
    "clip-retrieval==2.45.0", "all-clip==1.3.0", "clip-anytorch==2.6.0", "open-clip-torch==2.32.0",
    "sentence-transformers==2.7.0", "fire==0.5.0", "torchvision==0.28.0", "webdataset==0.2.111",
)  # fmt: skip
NEEDED = (
    "transformers>=4.57,<5", "wandb==0.21.4", "setuptools<81", "pandas<3", "pyarrow", "braceexpand",
    "ftfy", "timm", "scikit-learn", "scipy", "six", "termcolor",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".cache/peers"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prepro", type=int, default=2)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work / "clip-retrieval", ["--no-deps", *PINNED], NEEDED)
    model = work / "model"  # kept, because clipfleet converts a model that it does not know
    if not model.exists():
        model = Path(with_weights(str(args.clip), model))
    os.environ["CLIPFLEET_MODEL_CACHE"] = str(work / "converted")
    kinds = (".jpg", ".jpeg")
    photos = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in kinds)
    scratch = work / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    folder = linked(list(itertools.islice(itertools.cycle(photos), args.images)), scratch / "in")
    options = [str(model), str(args.batch), str(args.prepro)]
    with ExitStack() as running:
        client, _ = running.enter_context(up(scratch / "data", str(model)))
        client.index("warm-up", folder, wait=True)
        ratios = []
        for number in range(args.rounds):
            output = scratch / f"out-{number}"
            theirs = inference(
                [
                    str(python),
                    "-P",  # this folder has a clip_retrieval.py
                    str(HERE / "clip_inference.py"),
                    str(folder),
                    str(output),
                    *options,
                ]
            )
            ours = indexing(client, folder, f"round-{number}")
            ratios.append(ours / theirs)
            load = os.getloadavg()[0]
            print(
                f"clipfleet {ours:.1f} images/s, clip-retrieval {theirs:.1f}: "
                f"{ratios[-1]:.2f} times, load {load:.1f}",
                flush=True,
            )
        print(f"lowest cosine of 20 embeddings: {lowest_cosine(client, folder, output):.4f}")
    print(f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})")


def inference(command: Sequence[str]) -> float:
    """Images per second of clip-retrieval."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"clip-retrieval failed:\n{done.stderr[-3_000:]}")
    last = json.loads(done.stdout.splitlines()[-1])
    return float(last["images"] / last["seconds"])


def lowest_cosine(client: Client, folder: Path, output: Path) -> float:
    """The lowest cosine similarity of both embeddings of a photo; clip-retrieval sorts by name."""
    theirs = np.load(output / "img_emb" / "img_emb_0.npy").astype(np.float32)
    names = sorted(path.name for path in folder.iterdir())
    cosines = []
    for place in range(0, len(names), max(1, len(names) // 20)):
        path = str(folder / names[place])
        ours = np.array(client.image("round-0", path, include_values=True).values, np.float32)
        cosines.append(float(ours @ theirs[place] / np.linalg.norm(theirs[place])))
    return min(cosines)


if __name__ == "__main__":
    main()
