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
        cuts: whether each text, of one or more, has more tokens than the model reads.
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
    cuts: Callable[[Sequence[str]], list[bool]]
    vocabulary: Callable[[], Vocabulary]
