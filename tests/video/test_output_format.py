"""Tests of the value by which all processes encode alike."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from helpers.videos import info
from tubelet.video.codecs import EncodeSettings
from tubelet.video.info import ColorTags, HdrMetadata
from tubelet.video.output_format import OutputClock, OutputFormat, choose_output_format

SIZE = {"width": 64, "height": 48}


@pytest.mark.parametrize(
    "name", ["o.mp4", "o.mkv", "o.avi", "o.gif", "o.y4m", "folder", "f%04d.png", "-"]
)
def test_json_returns_the_same_value(name):
    like = info(
        color=ColorTags(siting=1),
        time_base=Fraction(1001, 90000),
        average_rate=None,
        hdr=HdrMetadata(max_cll=1000),
    )
    form = choose_output_format(name, like=like, **SIZE, duration_s=1.5)
    text = json.dumps(form.to_json())
    again = OutputFormat.from_json(json.loads(text))
    assert again == form
    assert again.fingerprint == form.fingerprint
    clock = form.clock(Fraction(1, 3))
    assert OutputClock.from_json(json.loads(json.dumps(clock.to_json()))) == clock


def test_the_fingerprint_tells_formats_apart():
    form = choose_output_format("o.mp4", like=info(), **SIZE)
    other = choose_output_format("o.mp4", like=info(), **SIZE, settings=EncodeSettings(crf=17))
    assert form.fingerprint != other.fingerprint
    assert form.fingerprint != replace(form, width=66).fingerprint


@pytest.mark.parametrize(
    ("start_s", "first_s", "origin_s"),
    [
        (0.0, Fraction(3), Fraction(0)),  # the video of a file may begin late
        (0.0, Fraction(-1, 50), Fraction(-1, 50)),  # nothing comes before 0
        (2.0, Fraction(3), Fraction(3)),  # a cut begins with its first frame
    ],
)
def test_the_clock_counts_from_the_first_frame_or_from_that_of_the_file(start_s, first_s, origin_s):
    form = choose_output_format("o.mp4", like=info(), **SIZE, start_s=start_s)
    assert form.clock(first_s).origin_s == origin_s


def test_a_clock_that_begins_anywhere_is_set_to_zero(tmp_path):
    (tmp_path / "in.ts").write_bytes(b"x")
    like = info(source=str(tmp_path / "in.ts"), origin_s=Fraction(40))
    assert choose_output_format("o.mp4", like=like, **SIZE).clock(Fraction(41)).origin_s == 40
    piped = choose_output_format("o.mp4", like=replace(like, source="-"), **SIZE)
    assert piped.clock(Fraction(41)).origin_s == 0


def test_avi_is_encoded_without_reordering():
    assert choose_output_format("o.avi", like=info(), **SIZE).encoding.options["bf"] == "0"
    assert "bf" not in choose_output_format("o.mp4", like=info(), **SIZE).encoding.options
