"""What happens to a text before the tokenizer's vocabulary, without torch.

`clean` does what open_clip's tokenizers do in Python. `workers/embedding/convert.py` compares the
tokens with those of the model's own tokenizer, on texts for which it matters.
"""

import html
import string
from collections.abc import Callable
from typing import Literal

Cleaning = Literal[
    "", "lower", "siglip", "open_clip:lower", "open_clip:whitespace", "open_clip:canonicalize"
]
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def cleaner(cleaning: Cleaning) -> Callable[[str], str]:
    """The function that cleans a text.

    Args:
        cleaning: "" leaves texts as they are, "lower" makes them lower case, "siglip" also removes
            punctuation, and the others are those of open_clip by their names there.

    Raises:
        ImportError: it needs the extra `open-clip`, which is not installed.
    """
    if cleaning == "":
        return str
    if cleaning == "lower":
        return str.lower
    if cleaning == "siglip":
        return lambda text: _spaced(text.replace("\u2581", " ").lower().translate(NO_PUNCTUATION))
    import ftfy  # 0.1 s, of the extra open-clip

    def whole(text: str) -> str:
        return html.unescape(html.unescape(ftfy.fix_text(text)))

    if cleaning == "open_clip:canonicalize":
        return lambda text: _spaced(whole(text).translate(PUNCTUATION).lower())
    if cleaning == "open_clip:lower":
        return lambda text: _spaced(whole(text)).lower()
    return lambda text: _spaced(whole(text))


def _spaced(text: str) -> str:
    return " ".join(text.split())
