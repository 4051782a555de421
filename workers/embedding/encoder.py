"""What the embedder needs of a model, whichever library it is for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.workers.embedding.texts import Cleaning


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that works without its library.

    Attributes:
        backend: the tokenizer of the package tokenizers; it pads and truncates.
        cleaning: what happens to a text before.
        pattern: a regular expression of the package regex that finds the words of a text; "": the
            backend finds them.
    """

    backend: Any
    cleaning: Cleaning = ""
    pattern: str = ""


@dataclass(frozen=True)
class DualEncoder:
    """A loaded model, and what happens to images and texts before its towers.

    Attributes:
        model: the torch module, with `get_image_features(pixel_values=...)` and
            `get_text_features(**tokens)`.
        preprocess: how images become pixels.
        scale: what the pixels are multiplied with before the normalisation.
        mean: what is then subtracted, for each channel.
        std: what they are then divided by, for each channel.
        pixels: the model's own input [1, 3, height, width] of an image, by its library.
        tokenize: texts to the arguments of `get_text_features`.
        vocabulary: the tokenizer without its library.

            Raises NotConverted when it does not work without.
    """

    model: Any
    preprocess: Preprocess
    scale: float
    mean: Sequence[float]
    std: Sequence[float]
    pixels: Callable[[Image.Image], Any]
    tokenize: Callable[[Sequence[str]], Mapping[str, Any]]
    vocabulary: Callable[[], Vocabulary]


def first_line(error: Exception) -> str:
    """The first line of an error's text, at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def no_model(name: str, error: Exception, folder: bool, advice: str = "") -> str:
    """Why a model could not be loaded, and what to do.

    Args:
        name: the model.
        error: what its library raised.
        folder: whether it is a folder.
        advice: what else may help for a model of the hub; a sentence and a blank.
    """
    if folder:
        return f"the folder {name!r} does not contain a complete model: {first_line(error)}"
    return (
        f"model {name!r} is neither on this machine nor available from the model hub. Connect this "
        "machine to the hub once (or set HF_ENDPOINT to a mirror), or put the model into a folder "
        "and set CLIPFLEET_MODEL=/path/to/folder. "
        f"{advice}CLIPFLEET_MODEL=clipfleet-mini is included and needs no download. "
        f"Reason: {first_line(error)}"
    )
