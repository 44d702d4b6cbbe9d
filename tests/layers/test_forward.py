import threading

import pytest
from torch import nn

from tubelet.layers.forward import replaced_forward


def test_replaces_within_the_context_alone():
    layer = nn.Identity()
    forward = layer.forward
    with replaced_forward({layer: lambda x: forward(x) + 1}):
        assert layer(1) == 2
        inner = layer.forward
        with replaced_forward({layer: lambda x: 10 * inner(x)}):
            assert layer(1) == 20
        assert layer(1) == 2
    assert layer(1) == 1
    assert "forward" not in vars(layer)


def test_an_error_restores_it_too():
    layer = nn.Identity()
    with pytest.raises(RuntimeError), replaced_forward({layer: lambda x: x + 1}):
        raise RuntimeError
    assert layer(1) == 1


def test_another_thread_waits():
    layer = nn.Identity()
    forward = layer.forward
    entered = threading.Event()
    seen: list[int] = []

    def other() -> None:
        entered.set()
        with replaced_forward({layer: lambda x: forward(x) + 10}):
            seen.append(layer(1))

    with replaced_forward({layer: lambda x: forward(x) + 1}):
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
        thread.join(0.05)
        assert layer(1) == 2
    thread.join()
    assert seen == [11]
    assert "forward" not in vars(layer)
