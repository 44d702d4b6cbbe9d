"""Tests of the report on the FFmpeg of PyAV."""

import av
import pytest

from tubelet.video.capabilities import encoder_works, library_versions, working_codecs


def test_versions_name_the_libraries() -> None:
    versions = library_versions()
    assert versions["PyAV"] == av.__version__
    assert versions["libavcodec"].count(".") == 2


def test_encoders_that_work_and_one_that_does_not_exist() -> None:
    assert encoder_works("libx264")
    assert encoder_works("ffv1")
    assert not encoder_works("no_such_encoder")


def test_an_encoder_that_does_not_open_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        options: dict[str, str]

        def open(self) -> None:
            raise av.FFmpegError(1, "no device")

    monkeypatch.setattr(av.CodecContext, "create", lambda name, mode: Closed())
    assert not encoder_works("libx264")


def test_codecs_are_those_that_a_user_can_choose() -> None:
    codecs = working_codecs()
    assert codecs["h264"]
    assert codecs["hevc"]
    assert "gif" not in codecs
