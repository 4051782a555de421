"""The embedder on OpenVINO, for CPUs. It imports neither torch nor transformers.

OpenVINO needs 0.4 of torch's time for the same embeddings, and a process with it starts in a second
and takes 200 MB (docs/decisions/0025). `convert.py` makes the models.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import tokenizers
from numpy.typing import NDArray

from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.workers.embedding.converted import ConvertedModel, Precision
from clipfleet.workers.embedding.passes import Passes, cpu_passes
from clipfleet.workers.embedding.texts import Cleaning, cleaner

log = logging.getLogger(__name__)

IMAGE, TEXT, TOKENIZER = "image.xml", "text.xml", "tokenizer.json"
PASS_SIZE = (
    4  # images in one forward pass: clipfleet-mini is 6 % faster than with 8, ViT-B/32 equal
)
TEXT_PASS_SIZE = 32  # a pass of 32 texts needs 0.9 of the time that four passes of 8 need
PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def may_be_cut(text: str, limit: int) -> bool:
    """Whether a text may have more tokens than `limit`. A token has a character at least, and the
    tokens for the beginning, the end and a blank have none."""
    return not text.isascii() or len(text) + 3 > limit


class Tokenizer:
    """Texts to the arrays of a text model's inputs, int64 [n, length].

    Args:
        path: the tokenizer.json; it says how to pad and truncate.
        inputs: the names of the inputs.
        cleaning: what happens to a text first.
        pattern: a regular expression of the package regex that finds the words of a text; "": the
            tokenizer finds them.

    Raises:
        ImportError: the cleaning needs the extra `open-clip`, which is not installed.
    """

    def __init__(
        self, path: Path, inputs: Sequence[str], cleaning: Cleaning = "", pattern: str = ""
    ) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._parts = [PARTS[name] for name in inputs]
        self._clean = cleaner(cleaning)
        self._words = _words(pattern) if pattern else None

    def cuts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the model reads."""
        limit = int((self._tokenizer.truncation or {}).get("max_length", 0))
        cut = [False] * len(texts)
        if limit:
            cleaned = [self._clean(text) for text in texts]
            long = [n for n, text in enumerate(cleaned) if may_be_cut(text, limit)]
            for n, encoding in zip(long, self._encoded([cleaned[n] for n in long]), strict=True):
                cut[n] = bool(encoding.overflowing)
        return cut

    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        encoded = self._encoded([self._clean(text) for text in texts])
        return [np.array([getattr(row, part) for row in encoded], np.int64) for part in self._parts]

    def _encoded(self, cleaned: Sequence[str]) -> list[Any]:
        if self._words is None:
            return list(self._tokenizer.encode_batch(cleaned))
        words = [self._words(text) for text in cleaned]
        return list(self._tokenizer.encode_batch(words, is_pretokenized=True))


def _words(pattern: str) -> Callable[[str], list[str]]:
    import regex  # of the extra open-clip, whose models have a pattern

    find: Callable[[str], list[str]] = regex.compile(pattern, regex.IGNORECASE).findall
    return find


class OpenVinoEmbedder:
    """Embeds images and texts with a converted model. It is loaded once the constructor returns.

    Args:
        folder: the folder of the converted model.
        record: its record.
        batch: the number of images in one forward pass; 0: the default.
    """

    device = "cpu"

    def __init__(self, folder: Path, record: ConvertedModel, batch: int = 0) -> None:
        if record.preprocess is None:
            raise ValueError("a model that was not converted")
        self.dim, self.preprocess = record.dim, record.preprocess
        parallel = cpu_passes()
        self._passes = Passes(batch or PASS_SIZE, parallel)
        self.batch = self._passes.batch
        core = openvino.Core()
        options = _options(core, record.precision, parallel)
        self._image = _Model(core.compile_model(folder / IMAGE, "CPU", options))
        self._text = _Model(core.compile_model(folder / TEXT, "CPU", options))
        self._tokens = Tokenizer(folder / TOKENIZER, record.inputs, record.cleaning, record.pattern)
        # The first calls must not come from two threads at once: OpenVINO's binding then waits for
        # ever, one thread for the interpreter and the other for a static variable (2026.4).
        blank = np.zeros((1, self.preprocess.height, self.preprocess.width, 3), np.uint8)
        self._image(blank)
        self._text(*self._tokens(["a photo"]))

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embed pixels [n, height, width, 3]; returns unit vectors [n, dim]."""
        rows = self._passes.run(lambda part: self._image(np.ascontiguousarray(part)), pixels)
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed n texts; returns unit vectors [n, dim]."""
        # The texts of a pass are as long as its longest, so texts of one length go together.
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        ordered = [texts[n] for n in order]
        parts = self._passes.run(
            lambda part: self._text(*self._tokens(part)), ordered, TEXT_PASS_SIZE
        )
        rows = np.empty((len(texts), self.dim), np.float32)
        if parts:
            rows[order] = np.concatenate(parts)
        return rows

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the model reads."""
        return self._tokens.cuts(texts)


class _Model:
    """A compiled model. Every thread has a request of its own.

    Attributes:
        is_warm: whether it was called before.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled, self._threads = compiled, threading.local()
        self.is_warm = False

    def __call__(self, *inputs: NDArray[Any]) -> Embeddings:
        request = getattr(self._threads, "request", None)
        if request is None:
            request = self._threads.request = self._compiled.create_infer_request()
        request.infer(list(inputs), share_inputs=True)
        self.is_warm = True
        return np.array(request.get_output_tensor(0).data, np.float32)


def _options(core: Any, precision: Precision, parallel: int) -> dict[str, Any]:
    """One stream with one thread for each pass. No thread is bound to a core, because another
    worker would bind its threads to the same cores."""
    hint = HINTS[precision]
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        log.warning("CLIPFLEET_DTYPE=bfloat16: this processor computes in float32")
        hint = "f32"
    return {
        "NUM_STREAMS": parallel,
        "INFERENCE_NUM_THREADS": parallel,
        "INFERENCE_PRECISION_HINT": hint,
        "ENABLE_CPU_PINNING": False,
    }
