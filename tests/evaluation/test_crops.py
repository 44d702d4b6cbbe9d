"""Regions of high detail."""

import torch

from tubelet.evaluation.crops import Region, detailed_regions


def test_the_best_region_holds_the_texture() -> None:
    rgb = torch.full((3, 120, 200), 0.5)
    rgb[:, 64:96, 120:152] = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    best = detailed_regions(rgb, width_px=32, height_px=32, count=3)[0]
    assert abs(best.x_px - 120) <= 4
    assert abs(best.y_px - 64) <= 4
    assert best.crop(rgb).shape == (3, 32, 32)


def test_regions_do_not_overlap_and_come_best_first() -> None:
    rgb = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1))
    regions = detailed_regions(rgb, width_px=24, height_px=24, count=5)
    assert len(regions) == 5
    assert [r.detail for r in regions] == sorted((r.detail for r in regions), reverse=True)
    for a in regions:
        assert not any(a.overlaps(b) for b in regions if b is not a)


def test_a_image_smaller_than_the_region() -> None:
    (only,) = detailed_regions(torch.rand(3, 10, 12), width_px=64, height_px=64, count=4)
    assert (only.x_px, only.y_px, only.width_px, only.height_px) == (0, 0, 12, 10)


def test_overlap_is_shared_pixels() -> None:
    a = Region(0, 0, 10, 10, 0.0)
    assert a.overlaps(Region(9, 9, 10, 10, 0.0))
    assert not a.overlaps(Region(10, 0, 10, 10, 0.0))
