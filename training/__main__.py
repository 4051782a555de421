"""Make clipfleet-mini: ``python -m training --data DIR --work DIR``; run again to go on."""

import logging

import torch

from training import stages
from training.settings import Settings, parsed


def main() -> None:
    """Run the stages asked for, in order."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = parsed()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    run(settings)


def run(settings: Settings) -> None:
    """Call each stage by its name."""
    settings.work.mkdir(parents=True, exist_ok=True)
    for name in settings.stages:
        logging.getLogger(__name__).info("stage %s", name)
        stages.BY_NAME[name](settings)


if __name__ == "__main__":
    main()
