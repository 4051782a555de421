"""The stages of a run: each reads earlier results, does its part and writes its own result."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from training import bank, catalogue, distil, evaluate, examples, extract, joint, photos, vision
from training import fetch as packages
from training import package as packaging
from training import speed as timing
from training import teacher as teaching
from training import texts as wording
from training.check import check as check_input
from training.encoder import Encoder
from training.pictures import IMAGE_SIZE
from training.records import Record
from training.settings import Settings
from training.student import WIDTH, TextTower


def _pictures(settings: Settings) -> dict[str, list[Record]]:
    """List the run's pictures."""
    return catalogue.catalogue(settings.data, settings.work, settings.without)


def fetch(settings: Settings) -> None:
    """Fetch and check the packages, and count the pictures."""
    packages.fetch(settings.work, settings.without)
    counts = {
        name: {"all": len(records), "held": sum(record.held for record in records)}
        for name, records in _pictures(settings).items()
    }
    _write(settings.work / "counts.json", counts)


def features(settings: Settings) -> None:
    """Compute the activations that are not on disk yet."""
    extract.extract(_pictures(settings), settings.work, settings.device)


def _corpus(settings: Settings) -> list[str]:
    """Collect the texts of the text tower, the same list in every stage."""
    return wording.corpus(_pictures(settings), settings.data, settings.work, seed=0)


def teacher(settings: Settings) -> None:
    """Embed the texts with the teacher."""
    teaching.vectors(_corpus(settings), settings.work, settings.device)


def text(settings: Settings) -> None:
    """Distil the teacher into the text tower."""
    texts = _corpus(settings)
    targets = teaching.vectors(texts, settings.work, settings.device)
    distil.distil(texts, targets, settings.work, settings.text_steps, settings.device)


def tune(settings: Settings) -> None:
    """Tune the image tower towards the text tower."""
    pictures = _pictures(settings)
    texts = _bank(settings, pictures)
    places = texts.places()
    shown = examples.gather(pictures, places, settings.work)
    known = vision.pretrained(IMAGE_SIZE, settings.device)
    before = joint.pooled(known.tower, shown.activations, settings.device)
    classes = torch.tensor([places[name] for name in photos.imagenet_names(settings.data)])
    joint_teaching = joint.Teaching(shown, texts, joint.opinions(known, before), classes)
    model = joint.ImageTower(known.tower, WIDTH).to(settings.device)
    joint.begin(model, joint_teaching, before)
    path = _joint_path(settings)
    joint.train(model, joint_teaching, path, settings.joint_steps, settings.seed, settings.device)


def _text_side(settings: Settings) -> tuple[TextTower, Any]:
    """Load the distilled text tower and its tokenizer."""
    tower = distil.load(settings.work, settings.device)
    return tower, AutoTokenizer.from_pretrained(settings.work / "tokenizer")


def _joint_path(settings: Settings) -> Path:
    """Name the file of joint tuning; every seed has its own."""
    return settings.work / f"joint-seed{settings.seed}.pt"


def _bank(settings: Settings, pictures: dict[str, list[Record]]) -> bank.Bank:
    """Embed every text that describes a training picture."""
    tower, tokenizer = _text_side(settings)
    chosen = [record for records in pictures.values() for record in records if not record.held]
    return bank.embed(bank.gather(chosen, photos.imagenet_names(settings.data)), tower, tokenizer)


def package(settings: Settings) -> None:
    """Write the model folder from the tuned towers."""
    model = joint.ImageTower(vision.pretrained(IMAGE_SIZE).tower, WIDTH)
    state = torch.load(_joint_path(settings), map_location="cpu", weights_only=True)
    model.load_state_dict(state["average"])
    tower, _ = _text_side(settings)
    packaging.package(model, tower.cpu(), settings.work, settings.model)


def measure(settings: Settings) -> None:
    """Measure the packaged model on held-out pictures; print the table and write it to a file."""
    encoder = Encoder(settings.model, settings.device)
    results = evaluate.evaluate(encoder, _pictures(settings))
    _write(settings.work / "results.json", evaluate.as_json(results))
    print(json.dumps(evaluate.as_json(results)))
    print(evaluate.table(results))


def check(settings: Settings) -> None:
    """Give the packaged model bad input."""
    print(json.dumps(check_input(Encoder(settings.model, settings.device))))


def speed(settings: Settings) -> None:
    """Time the packaged model and ViT-B/32."""
    encoder = Encoder(settings.model, settings.device)
    rates = asdict(timing.speed(encoder, settings.data / "clip-vit-base-patch32"))
    _write(settings.work / "speed.json", rates)
    print(json.dumps(rates))


def _write(path: Path, document: object) -> None:
    """Write a JSON document."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


BY_NAME: dict[str, Callable[[Settings], None]] = {
    "fetch": fetch,
    "features": features,
    "teacher": teacher,
    "text": text,
    "joint": tune,
    "package": package,
    "check": check,
    "evaluate": measure,
    "speed": speed,
}
