from dataclasses import replace

import pytest

from tubelet.models.architecture import Contract
from tubelet.restore.plan import MemoryBudget, MemoryCost, Plan, plan_restoration
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.threads import network_threads
from tubelet.types import Precision, Temporal


def _plan(precision: Precision = "fp32", width: int = 320, height: int = 180) -> Plan:
    contract = Contract(scale=4, temporal=Temporal("frame"), precisions=("fp32", "bf16"))
    return plan_restoration(
        height,
        width,
        contract,
        UpscaleSettings(),
        budget=MemoryBudget(device_bytes=2**33, host_bytes=2**34, file_bytes=2**36),
        cost=MemoryCost(call_bytes_per_px=1000.0),
        device="cpu",
        precision=precision,
        cpu_precision=precision,
    )


@pytest.mark.parametrize("max_threads", [1, 2, 16])
def test_a_model_without_weights_leaves_the_cores_to_the_encoder(max_threads):
    assert network_threads(_plan(), num_weights=0, max_threads=max_threads) == 1


@pytest.mark.parametrize("max_threads", [1, 2, 16])
def test_a_large_network_takes_every_core(max_threads):
    # BasicVSR has 6 million weights.
    assert network_threads(_plan(), num_weights=6_000_000, max_threads=max_threads) == max_threads


def test_the_share_grows_with_the_network_and_not_with_the_image():
    shares = [network_threads(_plan(), num_weights=10**n, max_threads=16) for n in range(3, 9)]
    assert shares == sorted(shares)
    assert shares[0] == 1
    assert 1 < shares[2] < 16
    large = network_threads(_plan(width=1280, height=720), num_weights=10**5, max_threads=16)
    assert large == shares[2]


def test_a_faster_number_format_needs_fewer_threads():
    # The default model, 53 thousand weights, on two cores.
    assert network_threads(_plan("bf16"), num_weights=53_000, max_threads=2) == 1
    assert network_threads(_plan("fp32"), num_weights=53_000, max_threads=2) == 2


def test_a_network_on_a_gpu_leaves_the_threads_as_they_are():
    plan = replace(_plan(), device="cuda")
    assert network_threads(plan, num_weights=0, max_threads=16) == 16


def test_a_second_thread_computes_large_images_of_a_small_network():
    small = _plan("bf16", width=320, height=180)
    large = _plan("bf16", width=640, height=360)
    for plan, num_threads in ((small, 1), (large, 2)):
        assert network_threads(plan, num_weights=53_000, max_threads=2) == num_threads
    assert network_threads(large, num_weights=53_000, max_threads=1) == 1
