"""Settings of one run: folders, sources left out, steps, seed, device."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from training.catalogue import SOURCES

STAGES = ("fetch", "features", "teacher", "text", "joint", "package", "check", "evaluate", "speed")


@dataclass(frozen=True)
class Settings:
    """One run's settings, read once from the command line."""

    data: Path
    work: Path
    model: Path
    without: frozenset[str]
    stages: tuple[str, ...]
    text_steps: int
    joint_steps: int
    seed: int
    threads: int
    device: str


def parsed(arguments: list[str] | None = None) -> Settings:
    """Read the command line."""
    options = _parser().parse_args(arguments)
    return Settings(
        data=options.data,
        work=options.work,
        model=options.model or options.work / "clipfleet-mini",
        without=frozenset(options.without),
        stages=tuple(options.stage or STAGES),
        text_steps=options.text_steps,
        joint_steps=options.joint_steps,
        seed=options.seed,
        threads=options.threads,
        device=options.device,
    )


def _parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the photo sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--model", type=Path, help="folder for the model [WORK/clipfleet-mini]")
    parser.add_argument("--without", choices=SOURCES, action="append", default=[], help="leave out")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this [all]")
    parser.add_argument("--text-steps", type=int, default=850)
    parser.add_argument("--joint-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser
