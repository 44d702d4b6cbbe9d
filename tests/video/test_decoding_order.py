"""Tests of decoding times across the joints of segments."""

import itertools

import pytest
from av.packet import Packet

from tubelet.video.decoding_order import DecodingOrder


def ordered(depth, packets):
    """Pass packets, each (pts, dts of its encoder), through the order; return (pts, dts)."""
    order = DecodingOrder(depth)
    out = []
    for pts, dts in packets:
        packet = Packet(b"x")
        packet.pts = pts
        packet.dts = dts
        out += order.put(packet)
    out += order.flush()
    assert [packet.pts for packet in out] == [pts for pts, _ in packets]
    return [(packet.pts, packet.dts) for packet in out]


def test_one_encoder_keeps_its_times():
    """Times of x264 with two B-frames in a pyramid and a variable frame rate stay."""
    packets = [
        (0, -67),
        (140, -34),
        (67, 0),
        (33, 33),
        (133, 67),
        (400, 133),
        (301, 140),
        (200, 200),
    ]
    assert ordered(2, packets) == packets


def test_the_example_of_the_docstring():
    packets = [(0, -80), (80, -40), (40, 0), (120, 40), (160, 80)]
    assert ordered(2, packets) == packets


@pytest.mark.parametrize("first", [1, 2, 3, 7])
def test_a_joint_looks_like_any_other_place(first):
    """Encoders of segments shorter than the delay give dts that clash with their neighbors'."""
    segment = [(0, 0), (3, 1), (2, 2), (1, 3), (4, 4), (7, 5), (6, 6), (5, 7), (8, 8)]
    packets = [(pts, pts) for pts in range(first)]
    packets += [(first + pts, None) for pts, _ in segment]
    joined = ordered(2, packets)
    assert [dts for _, dts in joined] == list(range(-2, first + 7))
    assert all(dts <= pts for pts, dts in joined)


def test_packets_in_order_are_decoded_when_they_are_shown():
    assert ordered(0, [(0, -5), (40, 40), (50, None)]) == [(0, 0), (40, 40), (50, 50)]


def test_too_few_packets_for_the_rule_keep_their_times():
    assert ordered(2, [(0, -108), (33, -75)]) == [(0, -108), (33, -75)]
    clash = ordered(2, [(0, 0), (1, 0)])
    assert all(a[1] < b[1] for a, b in itertools.pairwise(clash))
