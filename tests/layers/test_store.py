import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tubelet.errors import ConfigError, ResourceError
from tubelet.layers.store import FeatureLimits, FeatureStore, open_store

DISK = FeatureLimits(host_bytes=0)


def _feats() -> list[Tensor]:
    torch.manual_seed(0)
    rows = torch.randn(2, 5, 7, 6)
    return [
        rows,
        rows.contiguous(memory_format=torch.channels_last),
        rows.bfloat16(),
        rows.half().contiguous(memory_format=torch.channels_last),
        rows[:, 1:4, ::2],
        rows.transpose(0, 3),
        torch.tensor([float("nan"), -0.0, float("inf")]),
        torch.arange(6).view(2, 3),
        torch.randn(1, 3, 2, 4, 5),
        torch.empty(0, 3),
        torch.randn(1).expand(4),
    ]


def _equal_to_the_bit(a: Tensor, b: Tensor) -> bool:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(whole), b.contiguous().view(whole)
    )


def _watch_files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which every temporary file is added as it is made."""
    made: list[Any] = []
    real: Any = tempfile.TemporaryFile

    def watched(**options: Any) -> Any:
        made.append(real(**options))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    return made


@pytest.mark.parametrize("host_bytes", [None, 0, 1000])
def test_what_comes_back_is_what_went_in(host_bytes: int | None) -> None:
    with FeatureStore(FeatureLimits(host_bytes=host_bytes)) as store:
        for t, feat in enumerate(_feats()):
            store.append(t, feat)
        for t, feat in enumerate(_feats()):
            assert _equal_to_the_bit(*store.get(t), feat)
            assert _equal_to_the_bit(*store.pop(t), feat)
        assert len(store) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_stays(layout: torch.memory_format) -> None:
    feat = torch.randn(1, 8, 3, 4).contiguous(memory_format=layout)
    with FeatureStore(DISK) as store:
        store.append(0, feat)
        assert store.pop(0)[0].stride() == feat.stride()


def test_features_of_a_frame_come_in_their_order() -> None:
    a = torch.zeros(2, 2)
    b = torch.ones(2, 2)
    for limits in (DISK, FeatureLimits(), FeatureLimits(host_bytes=16)):
        with FeatureStore(limits) as store:
            store.append(3, a)
            store.append(("flow", 3), a)
            store.append(3, b)
            first, second = store.get(3)
            assert torch.equal(first, a)
            assert torch.equal(second, b)
            assert 3 in store
            assert 4 not in store
            assert store.get(4) == store.pop(4) == []
            assert len(store.pop(3)) == 2
            assert 3 not in store
            assert len(store) == 1


def test_what_fits_is_not_copied() -> None:
    feats = [torch.rand(8) for _ in range(3)]
    with FeatureStore(FeatureLimits(host_bytes=2 * 32)) as store:
        for t, feat in enumerate(feats):
            store.append(t, feat)
        assert [store.get(t)[0] is feat for t, feat in enumerate(feats)] == [True, True, False]
        # Now there is room for a tensor.
        store.pop(0)
        store.append(3, feats[0])
        assert store.get(3)[0] is feats[0]


def test_autograd_graphs_are_not_moved() -> None:
    weight = torch.ones(4, requires_grad=True)
    with FeatureStore(DISK) as store:
        feat = weight * 2
        store.append(0, feat)
        assert store.get(0)[0] is feat
        store.pop(0)[0].sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2] * 4


def test_the_file_uses_freed_places_again_and_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = _watch_files(monkeypatch)
    with FeatureStore(FeatureLimits(host_bytes=0, folder=tmp_path)) as store:
        for t in range(20):
            store.append(t, torch.full((64,), float(t)))
            if t >= 2:
                assert store.pop(t - 2)[0].tolist() == [float(t - 2)] * 64
        assert made[0].seek(0, 2) == 3 * 256
    assert made[0].closed
    assert list(tmp_path.iterdir()) == []


def test_no_file_where_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _watch_files(monkeypatch)
    with FeatureStore(FeatureLimits(host_bytes=400)) as store:
        store.append(0, torch.zeros(100))
        assert made == []
        store.append(1, torch.zeros(1))
        assert len(made) == 1


def test_a_store_of_the_caller_is_used_and_emptied() -> None:
    own = FeatureStore(DISK)
    with open_store(own) as store:
        assert store is own
        store.append(0, torch.zeros(3))
    assert len(own) == 0
    with open_store(None) as store:
        assert store.limits == FeatureLimits()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with (
        FeatureStore(FeatureLimits(host_bytes=0, folder=tmp_path / "absent")) as store,
        pytest.raises(ResourceError, match="temporary file"),
    ):
        store.append(0, torch.zeros(3))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 the store closes it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with FeatureStore(DISK) as store, pytest.raises(ResourceError, match="cannot write 12 bytes"):
        store.append(0, torch.zeros(3))


@pytest.mark.parametrize("name", ["host_bytes", "device_bytes"])
def test_negative_bounds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=-1"):
        FeatureLimits(**{name: -1})


def test_a_freed_place_is_given_once() -> None:
    with FeatureStore(DISK) as store:
        for t in range(3):
            store.append(t, torch.full((8,), float(t)))
        store.pop(0)
        store.pop(2)
        for t in range(3, 7):
            store.append(t, torch.full((8,), float(t)))
        assert [store.pop(t)[0].tolist() for t in (1, 3, 4, 5, 6)] == [
            [float(t)] * 8 for t in (1, 3, 4, 5, 6)
        ]


def test_the_peak_counts_what_lies_anywhere_and_stays_when_a_store_is_emptied() -> None:
    store = FeatureStore(FeatureLimits(host_bytes=100))
    with store:
        for t in range(4):
            # 80 bytes: the second is in the file.
            store.append(t, torch.zeros(20))
        store.pop(1)
        store.append(5, torch.zeros(20))
    assert store.peak_bytes == 320
    with store:
        store.append(0, torch.zeros(20))
        assert store.pop(0)[0].tolist() == [0] * 20
    assert store.peak_bytes == 320
