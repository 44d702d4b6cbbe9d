"""The standard datasets: contents, folder layouts, sources and licenses.

A layout is a pattern of the path of a clip in the folder of the dataset: GT/{clip}, {clip}/truth.
Several are tried in order, and the first that exists is used. Numbers that are not certain are left
out, and are not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tubelet.errors import RequestError, suggest

__all__ = ["DATASETS", "ClipFacts", "Dataset", "DatasetSplit", "find_dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """Expected length and size of a clip; None is not checked.

    Attributes:
        frames: Number of frames.
        size: (width, height) of the ground truth, pixels.
        frames_max: Maximum number of frames, if clips differ.
    """

    frames: int | None = None
    size: tuple[int, int] | None = None
    frames_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSplit:
    """A split of a dataset: clips for training, validation or testing.

    Attributes:
        name: "train", "val" or "test".
        clips: Names of the clips; empty if they are read from `list_file`, or if all existing
            folders are clips.
        list_file: Text file with the names of the clips, one per line.
        count: Number of clips.
        facts: Expected length and size of every clip.
        own_facts: Expected length and size of single clips, which override `facts`.
        gt: Patterns of the ground truth, with {clip}, or with {shifted}: the number of the clip
            plus `shift`.
        lq: Patterns of the low-quality clips that are published with the dataset, by degradation;
            scale 4.
        shift: Offset of the numbers in a regrouped copy of the dataset.
    """

    name: str
    clips: tuple[str, ...] = ()
    list_file: str = ""
    count: int
    facts: ClipFacts
    own_facts: Mapping[str, ClipFacts] = field(default_factory=dict[str, ClipFacts])
    gt: tuple[str, ...] = ()
    lq: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    shift: int = 0

    def facts_of(self, clip: str) -> ClipFacts:
        """Return the expected length and size of a clip."""
        return self.own_facts.get(clip, self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A standard dataset.

    Attributes:
        name: Name in commands.
        title: Name in papers.
        folders: Usual names of its folder, in lower case.
        splits: Splits of the dataset.
        summary: Contents and use.
        source: Address of the download.
        license: License, as stated by its authors.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    splits: tuple[DatasetSplit, ...]
    summary: str
    source: str
    license: str


def _numbers(start: int, stop: int, digits: int) -> tuple[str, ...]:
    """List numbers with leading zeros, without `stop`: "000", "001", ..."""
    return tuple(f"{number:0{digits}d}" for number in range(start, stop))


_NOT_STATED = "not stated by its authors; used for research"
_REDS4 = ("000", "011", "015", "020")
_REDS = ClipFacts(frames=100, size=(1280, 720))
_REDS_TRAIN = ("train_sharp/{clip}", "train/train_sharp/{clip}")
_REDS_TRAIN_LQ = ("train_sharp_bicubic/X4/{clip}", "train/train_sharp_bicubic/X4/{clip}")
_TEST_LQ = {
    "bi": ("BIx4/{clip}", "Bicubic4xLR/{clip}"),
    "bd": ("{clip}/blur4",),
    "bd-b": ("BDx4/{clip}",),
    "bd-c": ("Gaussian4xLR/{clip}",),
}
"""Low-quality clips by their folders in the layouts of BasicSR and MMagic (BIx4, BDx4), PFNL
(blur4) and TecoGAN-PyTorch (…4xLR). The authors of BDx4 do not state its degradation; bd-b is
inferred."""
_TEST_GT = ("GT/{clip}", "HR/{clip}", "{clip}/truth", "{clip}/original", "{clip}/hr", "{clip}")
_VIMEO = ClipFacts(frames=7, size=(448, 256))
_VIMEO_GT = ("sequences/{clip}", "GT/{clip}")
_VIMEO_LQ = {
    "bi": ("BIx4/{clip}", "vimeo_septuplet_matlabLRx4/sequences/{clip}"),
    "bd-b": ("BDx4/{clip}",),
}

_REDS_SOURCE = "https://seungjunnah.github.io/Datasets/reds.html"

DATASETS: tuple[Dataset, ...] = (
    Dataset(
        name="reds",
        title="REDS",
        folders=("reds",),
        splits=(
            DatasetSplit(
                name="train",
                clips=tuple(clip for clip in _numbers(0, 240, 3) if clip not in _REDS4),
                count=236,
                facts=_REDS,
                gt=_REDS_TRAIN,
                lq={"bi-u8": _REDS_TRAIN_LQ},
            ),
            DatasetSplit(
                name="val",
                clips=_numbers(0, 30, 3),
                count=30,
                facts=_REDS,
                gt=("val_sharp/{clip}", "val/val_sharp/{clip}", "train_sharp/{shifted}"),
                lq={
                    "bi-u8": (
                        "val_sharp_bicubic/X4/{clip}",
                        "val/val_sharp_bicubic/X4/{clip}",
                        "train_sharp_bicubic/X4/{shifted}",
                    )
                },
                # BasicSR moves the validation clips behind the 240 training clips.
                shift=240,
            ),
        ),
        summary=(
            "266 training clips: 236 of the training set, without REDS4, "
            "and the 30 of the validation set"
        ),
        source=_REDS_SOURCE,
        license="CC BY 4.0",
    ),
    Dataset(
        name="reds4",
        title="REDS4",
        folders=("reds4", "reds"),
        splits=(
            DatasetSplit(
                name="test",
                clips=_REDS4,
                count=4,
                facts=_REDS,
                gt=(*_REDS_TRAIN, "GT/{clip}", "{clip}"),
                lq={"bi-u8": (*_REDS_TRAIN_LQ, "sharp_bicubic/{clip}")},
            ),
        ),
        summary="clips 000, 011, 015, 020 of the training set of REDS, held out for testing",
        source=_REDS_SOURCE,
        license="CC BY 4.0",
    ),
    Dataset(
        name="vimeo90k",
        title="Vimeo-90K",
        folders=("vimeo90k", "vimeo_septuplet", "vimeo-90k", "vimeo"),
        splits=(
            DatasetSplit(
                name="train",
                list_file="sep_trainlist.txt",
                count=64612,
                facts=_VIMEO,
                gt=_VIMEO_GT,
                lq=_VIMEO_LQ,
            ),
        ),
        summary="64 612 septuplets for training, listed in sep_trainlist.txt",
        source="http://toflow.csail.mit.edu/",
        license="videos of Vimeo's users, for research; the list and code are MIT",
    ),
    Dataset(
        name="vimeo90k-t",
        title="Vimeo-90K-T",
        folders=("vimeo90k-t", "vimeo90k", "vimeo_septuplet", "vimeo-90k", "vimeo"),
        splits=(
            DatasetSplit(
                name="test",
                list_file="sep_testlist.txt",
                count=7824,
                facts=_VIMEO,
                gt=_VIMEO_GT,
                lq=_VIMEO_LQ,
            ),
        ),
        summary="7 824 septuplets for testing, listed in sep_testlist.txt; the 4th frame is scored",
        source="http://toflow.csail.mit.edu/",
        license="videos of Vimeo's users, for research; the list and code are MIT",
    ),
    Dataset(
        name="vid4",
        title="Vid4",
        folders=("vid4",),
        splits=(
            DatasetSplit(
                name="test",
                clips=("calendar", "city", "foliage", "walk"),
                count=4,
                # The clips differ in length and size.
                facts=ClipFacts(),
                own_facts={
                    "calendar": ClipFacts(frames=41, size=(720, 576)),
                    "city": ClipFacts(frames=34, size=(704, 576)),
                    "foliage": ClipFacts(frames=49, size=(720, 480)),
                    "walk": ClipFacts(frames=47, size=(720, 480)),
                },
                gt=(*_TEST_GT, "vid4_{clip}"),
                lq=_TEST_LQ,
            ),
        ),
        summary="four short clips, 171 frames",
        source="https://github.com/XPixelGroup/BasicSR/blob/master/docs/DatasetPreparation.md",
        license=_NOT_STATED,
    ),
    Dataset(
        name="udm10",
        title="UDM10",
        folders=("udm10",),
        splits=(
            DatasetSplit(
                name="test",
                count=10,
                facts=ClipFacts(frames=32, size=(1272, 720)),
                gt=_TEST_GT,
                lq=_TEST_LQ,
            ),
        ),
        summary="ten clips of 32 frames",
        source="https://github.com/psychopa4/PFNL",
        license=_NOT_STATED,
    ),
    Dataset(
        name="spmcs",
        title="SPMCS",
        folders=("spmcs", "spmcs30", "spmc"),
        splits=(
            DatasetSplit(
                name="test",
                count=30,
                facts=ClipFacts(frames=31, size=(960, 540)),
                gt=_TEST_GT,
                lq=_TEST_LQ,
            ),
        ),
        summary="thirty clips of 31 frames; some papers use eleven of them",
        source="https://github.com/jiangsutx/SPMC_VideoSR",
        license=_NOT_STATED,
    ),
    Dataset(
        name="tos3",
        title="ToS3",
        folders=("tos3", "tos"),
        splits=(
            DatasetSplit(
                name="test",
                clips=("bridge", "face", "room"),
                count=3,
                facts=ClipFacts(),
                gt=_TEST_GT,
                lq=_TEST_LQ,
            ),
        ),
        summary="three clips of Tears of Steel",
        source="https://github.com/thunil/TecoGAN",
        license="CC BY 3.0 (Blender Foundation)",
    ),
    Dataset(
        name="videolq",
        title="VideoLQ",
        folders=("videolq",),
        splits=(
            DatasetSplit(
                name="test",
                clips=_numbers(0, 50, 3),
                count=50,
                facts=ClipFacts(frames_max=100),
                # Real low-quality videos: there is no ground truth and no known degradation.
                lq={"none": ("Input/{clip}", "LQ/{clip}", "{clip}")},
            ),
        ),
        summary="fifty real low-quality videos of up to 100 frames, without ground truth",
        source="https://github.com/ckkelvinchan/RealBasicVSR",
        license="videos under Creative Commons licenses, for research",
    ),
    Dataset(
        name="div2k",
        title="DIV2K",
        folders=("div2k",),
        splits=(
            DatasetSplit(
                name="train",
                clips=_numbers(1, 801, 4),
                count=800,
                facts=ClipFacts(frames=1),
                gt=("DIV2K_train_HR/{clip}.png",),
                lq={"bi-u8": ("DIV2K_train_LR_bicubic/X4/{clip}x4.png",)},
            ),
            DatasetSplit(
                name="val",
                clips=_numbers(801, 901, 4),
                count=100,
                facts=ClipFacts(frames=1),
                gt=("DIV2K_valid_HR/{clip}.png",),
                lq={"bi-u8": ("DIV2K_valid_LR_bicubic/X4/{clip}x4.png",)},
            ),
        ),
        summary="800 photographs of about 2K for training, 100 for validation",
        source="https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        license="for academic research only",
    ),
    Dataset(
        name="flickr2k",
        title="Flickr2K",
        folders=("flickr2k",),
        splits=(
            DatasetSplit(
                name="train",
                clips=_numbers(1, 2651, 6),
                count=2650,
                facts=ClipFacts(frames=1),
                gt=("Flickr2K_HR/{clip}.png",),
                lq={"bi-u8": ("Flickr2K_LR_bicubic/X4/{clip}x4.png",)},
            ),
        ),
        summary="2 650 photographs of about 2K",
        source="https://github.com/limbee/NTIRE2017",
        license="photographs of Flickr's users, for research; no license is stated",
    ),
)
"""All standard datasets."""
_DATASETS_BY_NAME = {dataset.name: dataset for dataset in DATASETS}


def find_dataset(name: str) -> Dataset:
    """Look up a standard dataset.

    Raises:
        RequestError: There is no such dataset; the message suggests the nearest name.
    """
    dataset = _DATASETS_BY_NAME.get(name.lower())
    if dataset is None:
        raise RequestError(f"unknown dataset {name!r}; {suggest(name, _DATASETS_BY_NAME)}")
    return dataset
