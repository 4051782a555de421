"""The service in this process, with the interface of `stack.Up`."""

import io
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from clipfleet import cli
from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.testing import HashEmbedder, MemoryService


class PixelEmbedder(HashEmbedder):
    """Embeds an image as its small version, so that similar images get similar embeddings."""

    def __init__(self) -> None:
        super().__init__(3 * self.preprocess.height * self.preprocess.width)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        rows = pixels.reshape(len(pixels), -1).astype(np.float32) - 127.5  # never all zeros
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class GatedImages(HashEmbedder):
    """An embedder that embeds no image until the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.gate = threading.Event(), threading.Event()

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        self.reached.set()
        assert self.gate.wait(60)
        return super().embed_images(pixels)


class InProcess(MemoryService):
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def cli(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return run_cli(self.url, *args)


def run_cli(url: str, *args: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in this process, which needs no time to start."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ:
            if name.startswith("CLIPFLEET_"):
                patch.delenv(name)
        patch.setenv("CLIPFLEET_URL", url)
        patch.setattr(sys, "argv", ["clipfleet", *args])
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())
