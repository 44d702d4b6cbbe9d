"""Inputs that the tests of the command line make for themselves."""

import wave
from pathlib import Path

import pytest

from helpers.videos import make_video


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An H.264 clip of 10 frames, 64×48, 25 a second."""
    return make_video(tmp_path / "clip.mp4")


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A WAV file: audio and no image."""
    path = tmp_path / "audio.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return path
