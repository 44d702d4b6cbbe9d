"""Tests of files with the packets of a segment: exact, complete or absent."""

from fractions import Fraction

import pytest
from av.packet import Packet

from helpers.videos import frames, info
from tubelet.errors import InputError, ResourceError
from tubelet.video.encoder import PartHead, PartTail, VideoEncoder
from tubelet.video.output_format import OutputClock, choose_output_format
from tubelet.video.parts import PartWriter, copy_part, open_part

CLOCK = OutputClock(Fraction(1001, 90000), Fraction(-1, 3), Fraction(1, 7))
HEAD = PartHead(segment=4, fingerprint="abc", clock=CLOCK, extradata=b"\x00\x01\xff")
TAIL = PartTail(frames=2, end=1 << 41, notes=("one", "two"))


def make_packet(data, pts, dts, duration, is_keyframe):
    packet = Packet(data)
    packet.pts = pts
    packet.dts = dts
    packet.duration = duration
    packet.is_keyframe = is_keyframe
    packet.time_base = CLOCK.tick_s
    return packet


PACKETS = [(b"first", (1 << 40) + 1, -(1 << 40), 3, True), (b"s" * 100_000, 0, -1, 0, False)]


def write_part(path, failure=None):
    with PartWriter(path) as part:
        part.begin(HEAD)
        for fields in PACKETS:
            part.put(make_packet(*fields))
        if failure:
            raise failure
        part.end(TAIL)
    return path


def test_everything_of_a_packet_comes_back(tmp_path):
    part = open_part(write_part(tmp_path / "0.part"))
    assert (part.head, part.tail) == (HEAD, TAIL)
    found = list(part.packets())
    assert [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in found] == PACKETS
    assert {p.time_base for p in found} == {CLOCK.tick_s}


def test_the_file_appears_only_when_it_is_complete(tmp_path):
    with PartWriter(tmp_path / "0.part") as part:
        part.begin(HEAD)
        part.put(make_packet(*PACKETS[0]))
        assert not (tmp_path / "0.part").exists()
        part.end(TAIL)
        assert not (tmp_path / "0.part").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["0.part"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_after_an_exception(tmp_path, failure):
    (tmp_path / "0.part").write_bytes(b"older")
    with pytest.raises(failure):
        write_part(tmp_path / "0.part", failure)
    assert (tmp_path / "0.part").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_segment_that_was_not_ended_leaves_nothing(tmp_path):
    form = choose_output_format("o.mp4", like=info(), width=32, height=24)
    with PartWriter(tmp_path / "0.part") as part:
        VideoEncoder(form, form.clock(Fraction(0)), part).write(frames(1)[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 5, 20, 1000, -1, -9, -200])
def test_a_file_that_was_cut_off_is_refused(tmp_path, size):
    path = write_part(tmp_path / "0.part")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="damaged or incomplete"):
        open_part(path)


@pytest.mark.parametrize("position", [-1, -12, -40])
def test_a_damaged_index_is_refused(tmp_path, position):
    path = write_part(tmp_path / "0.part")
    data = bytearray(path.read_bytes())
    data[position] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged or incomplete"):
        copy_part(path, PartWriter(tmp_path / "copy.part"))


def test_a_missing_part_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no such part file.*7\.part"):
        open_part(tmp_path / "7.part")
    with pytest.raises(ResourceError, match="could not be written"):
        write_part(tmp_path / "missing" / "0.part")


def test_a_part_can_be_copied_to_a_part(tmp_path):
    path = write_part(tmp_path / "0.part")
    with PartWriter(tmp_path / "1.part") as copy:
        copy_part(path, copy)
    assert (tmp_path / "1.part").read_bytes() == path.read_bytes()
