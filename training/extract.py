"""Stage: activations of every picture, first views of all sources before second ones."""

from pathlib import Path

from training import features, vision
from training.catalogue import training_only, views
from training.pictures import IMAGE_SIZE
from training.records import Record


def extract(pictures: dict[str, list[Record]], work: Path, device: str) -> None:
    """Write all missing feature shards; further views only of pictures that are trained on."""
    tower = vision.pretrained(IMAGE_SIZE, device).tower
    for number in range(max(views(source) for source in pictures)):
        for source, records in pictures.items():
            chosen = records if number == 0 else training_only(records)
            if number < views(source) and chosen:
                features.compute(chosen, number, work, tower, device)
