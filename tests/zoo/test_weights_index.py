"""The index of published weights is consistent with the published names and shapes."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from helpers.image_parity import published_keys
from tubelet.downloads import RemoteFile
from tubelet.zoo.architectures import ARCHITECTURES
from tubelet.zoo.publishers import PublishedWeights
from tubelet.zoo.weights_index import PAGES, PUBLISHED_WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
BY_ID = {known.id: known for known in PUBLISHED_WEIGHTS}
LISTED = {
    "basicsr_basicvsr_reds_b30": "basicvsr-reds4",
    "mmagic_basicvsr": "basicvsr-vimeo_bi",
    "basicsr_iconvsr_b30": "iconvsr-reds4",
    "basicsr_iconvsr_vimeo_tp3": "iconvsr-vimeo_bd",
    "mmagic_basicvsrpp_c64n7": "basicvsr_pp-reds4",
    "mmagic_basicvsrpp_c128n25": "basicvsr_pp-ntire_vsr",
    "mmagic_realbasicvsr": "realbasicvsr-reds",
    "rvrt_001_reds_30f": "rvrt-reds",
    "mmagic_edvrM": "edvr_m-reds",
    "basicsr_edvr_M_woTSA": "edvr_m-reds_wotsa_official",
    "basicsr_edvr_L": "edvr_l-reds",
    "basicsr_edvr_L_vimeo7": "edvr_l-vimeo_official",
    "mmagic_tdan": "tdan-vimeo_bi",
    "mmagic_tof": "toflow-vimeo",
    "zsm_lunatokis": "zooming_slow_mo-vimeo",
    "iart_reds": "iart-reds",
    "miavsr_reds": "mia_vsr-reds",
    "vrt_001_reds_6f": "vrt-reds_n6",
    "vrt_002_reds_16f": "vrt-reds_n16",
    "basicsr_duf_16": "duf_16-x4",
    "basicsr_duf_52": "duf_52-x4",
    "srvgg_animevideov3": "realesr-animevideov3-x4",
    "srvgg_general_x4v3": "realesr-general-x4v3",
    "basicsr_rrdb_x4": "realesrgan-x4plus",
    "basicsr_rrdb_6b_anime": "realesrgan-x4plus-anime",
    "basicsr_swinir_classical_x4": "swinir-df2k-x4",
    "basicsr_swinir_light_x4": "swinir_light-x4",
    "basicsr_swinir_real_M_x4": "swinir-real-x4",
    "hat_x4": "hat-x4",
    "hat_x2": "hat-x2",
    "hat_S_x4": "hat_s-x4",
    "hat_L_x4": "hat_l-x4",
    "basicsr_edsr_M_x4": "edsr_m-x4",
    "basicsr_edsr_L_x4": "edsr_l-x4",
    "basicsr_spynet": "spynet-sintel",
}


def test_names_are_unique_and_files_of_one_name_are_one_file() -> None:
    assert len(BY_ID) == len(PUBLISHED_WEIGHTS)
    files: dict[str, RemoteFile] = {}
    for known in PUBLISHED_WEIGHTS:
        assert files.setdefault(known.file.name, known.file) == known.file
    # Three scales of one network.
    assert len(files) == len(PUBLISHED_WEIGHTS) - 2


@pytest.mark.parametrize("known", PUBLISHED_WEIGHTS, ids=lambda known: known.id)
def test_every_entry_is_whole(known: PublishedWeights) -> None:
    file = known.file
    assert known.id == known.id.lower()
    assert known.architecture in ARCHITECTURES
    assert isinstance(known.config, known.architecture.config)
    assert known.license
    assert urlsplit(file.page).scheme == "https"
    if file.url:
        assert urlsplit(file.url).scheme == "https"
        assert file.url.endswith(f"/{file.name}")
    assert len(file.sha256) in (0, 8, 64)
    assert set(file.sha256) <= set("0123456789abcdef")
    if len(file.sha256) == 8:
        assert file.name.endswith(f"-{file.sha256}.pth")
    pip_file = known.pip_file
    if pip_file is not None:
        assert len(pip_file.sha256) == 64
        assert f"{pip_file.package}==" in (ROOT / "constraints.txt").read_text("utf-8")


@pytest.mark.parametrize(("keys", "id"), LISTED.items())
def test_the_network_is_the_one_that_names_and_shapes_tell(
    recordings: Path, keys: str, id: str
) -> None:
    known = BY_ID[id]
    state = published_keys(recordings, keys)
    own = known.architecture.translate(state)
    assert own is not None
    with torch.device("meta"):
        expected = known.architecture.build(known.config).state_dict()
    absent = [
        name
        for name in expected
        if name not in own and not name.endswith(known.architecture.derived or ("\0",))
    ]
    assert not absent
    assert {name: value.shape for name, value in own.items()}.items() <= {
        name: value.shape for name, value in expected.items()
    }.items()


def test_pages_are_of_networks_that_exist() -> None:
    assert set(PAGES) <= {architecture.name for architecture in ARCHITECTURES}
