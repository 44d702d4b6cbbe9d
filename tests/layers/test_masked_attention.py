from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.image_parity import recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.layers.inference import prepare_for_inference, use_backend
from tubelet.layers.masked_attention import MaskedBlock, cache_names, refine_masked
from tubelet.layers.sweep_transformer import BlockConfig, SweepTransformer
from tubelet.models.mia_vsr import MIAVSRConfig
from tubelet.models.state_dict import rename

Maps = dict[str, Tensor]

SMALL = MIAVSRConfig(
    channels=8, depths=(2, 1), num_heads=(2, 2), window=4, mid_channels=4, hr_channels=4
)


def _transformer(config: MIAVSRConfig = SMALL) -> SweepTransformer:
    """A transformer in float64 whose masks keep about half of the tokens."""
    torch.manual_seed(0)
    transformer = SweepTransformer(config, MaskedBlock, order="current-last", updates="current")
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("mask_predictor.weight"):
            # Half of the channels speak for a token, half against it.
            parameter.data[0] = torch.linspace(-1, 1.1, parameter.shape[1])
    return transformer.double().eval()


def _frames(size: tuple[int, int] = (7, 10), batch: int = 2) -> list[tuple[Tensor, ...]]:
    """Current, newer and older of three frames that resemble each other."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, batch, 8, *size, generator=generator, dtype=torch.float64)

    still, moving = draw(3), draw(3, 3)
    return [tuple(still + 0.3 * moving[t]) for t in range(3)]


def _run(
    transformer: SweepTransformer, frames: list[tuple[Tensor, ...]]
) -> tuple[list[Tensor], list[Maps]]:
    """Refine successive frames; return their states, and what was kept of each."""
    states: list[Tensor] = []
    caches: list[Maps] = []
    last: Maps = {}
    for frame in frames:
        state, last = refine_masked(transformer, *frame, dict(last))
        states.append(state)
        caches.append(last)
    return states, caches


def _keep_ratio(caches: Maps) -> float:
    keeps = [x.mean() for name, x in caches.items() if name.endswith("/keep")]
    return float(sum(keeps) / len(keeps))


@pytest.mark.parametrize("prepared", [False, True])
def test_gives_the_recorded_outputs(recordings: Path, prepared: bool) -> None:
    case = "mia_iiab_A"
    description, expected = recorded(recordings, case)
    block = MaskedBlock(BlockConfig(channels=24, heads=3, window=8, shift=4)).eval()
    state = recorded_state(recordings, description)
    del state["attn.relative_position_index"]
    block.load_state_dict(rename(state, [(r"^attn\.predmask\.rnn\.", "mask_predictor.")]))
    if prepared:
        prepare_for_inference(block)

    def tokens(name: str) -> Tensor:
        """Tokens of frames, padded to windows: (B, D, H, W, C)."""
        image = (recorded_input(recordings, f"{case}:{name}", shapes[name]) - 0.5) * 2
        frames = image.unsqueeze(1) if image.ndim == 4 else image
        return nn.functional.pad(frames.permute(0, 1, 3, 4, 2), (0, 0, 0, 4)).contiguous()

    shapes = {name: tuple(shape) for name, shape in description["inputs"].items()}
    inside = torch.ones(1, 1, 16, 24, 1)
    inside[:, :, :, 20:] = 0
    first = tokens("x1")
    second = first + 0.3 * tokens("dx")
    pasts = [tuple(x.contiguous() for x in tokens(name).split(1, 1)) for name in ("cond1", "cond2")]
    with torch.no_grad():
        residual = block.residual(first, pasts[0], inside)
        keep = block.predict_keep(second, first)
        outputs = [
            first + residual,
            second + block.residual(second, pasts[1], inside, keep, residual),
        ]
    assert keep.mean().item() == pytest.approx(0.198, abs=1e-3)
    for output, recorded_output, stats in zip(
        outputs, expected, description["output_stats"], strict=True
    ):
        torch.testing.assert_close(
            output[:, 0, :, :20], recorded_output, rtol=0, atol=1e-5 * stats["std"]
        )


class _Published:
    """The published formulation: three caches a block, every token computed, then replaced."""

    def __init__(self, transformer: SweepTransformer) -> None:
        self._transformer = transformer
        self._caches: dict[MaskedBlock, tuple[Tensor, Tensor, Tensor]] = {}
        self.margin = float("inf")

    def refine(self, current: Tensor, newer: Tensor, older: Tensor) -> Tensor:
        size = current.shape[-2:]
        x, past, inside = self._transformer.embed(current, newer, older)
        for group in self._transformer.groups:
            y = x
            for block in group.blocks:
                y = self._block(block, y, past, inside)
            x = group.merge(y, x, inside, size)
        return self._transformer.project(x, current)

    def _block(
        self, block: MaskedBlock, x: Tensor, past: tuple[Tensor, ...], inside: Tensor | None
    ) -> Tensor:
        query = block.norm1(x)
        attended = _attention(block, x, past, inside)
        last = self._caches.get(block)
        if last is None:
            hidden = block.mlp(block.norm2(x + attended))
        else:
            last_query, last_attended, last_hidden = last
            logits = block.mask_predictor((query - last_query).abs())
            in_image = logits if inside is None else logits[inside != 0]
            self.margin = min(self.margin, float(in_image.abs().min()))
            attended = torch.where(logits >= 0, attended, last_attended)
            hidden = block.mlp(block.norm2(x + attended))
            hidden = torch.where(logits >= 0, hidden, last_hidden)
        self._caches[block] = (query, attended, hidden)
        return x + attended + hidden


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _attention(
    block: MaskedBlock, x: Tensor, past: tuple[Tensor, ...], inside: Tensor | None
) -> Tensor:
    """Return what the attention adds to all tokens, by a block without MLP."""
    mlp = block.mlp
    block.mlp = _Zero()
    attended = block.residual(x, past, inside)
    block.mlp = mlp
    return attended


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("size", [(7, 10), (8, 12)])
def test_equals_the_published_formulation(backend: str, size: tuple[int, int]) -> None:
    transformer, frames = _transformer(), _frames(size)
    published = _Published(transformer)
    with torch.no_grad():
        expected = [published.refine(*frame) for frame in frames]
        with use_backend(transformer, backend):  # type: ignore[arg-type]
            states, caches = _run(transformer, frames)
    # No decision hangs on rounding.
    assert published.margin > 1e-7
    assert 0.2 < _keep_ratio(caches[1]) < 0.8
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, other, rtol=0, atol=1e-11)


def test_masks_change_the_result() -> None:
    transformer, frames = _transformer(), _frames()
    with torch.no_grad():
        states, _ = _run(transformer, frames)
        plain = [transformer(*frame) for frame in frames]
    torch.testing.assert_close(states[0], plain[0], rtol=0, atol=1e-12)
    assert (states[1] - plain[1]).abs().max() > 0.01


@pytest.mark.parametrize("bias", [1e6, -1e6])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_all_tokens_or_none(bias: float, backend: str) -> None:
    transformer, frames = _transformer(), _frames()
    for name, parameter in transformer.named_parameters():
        if name.endswith("mask_predictor.bias"):
            nn.init.constant_(parameter, bias)
    with torch.no_grad(), use_backend(transformer, backend):  # type: ignore[arg-type]
        (_, state), (first, second) = _run(transformer, frames[:2])
        assert _keep_ratio(second) == (bias > 0)
        if bias > 0:
            torch.testing.assert_close(state, transformer(*frames[1]), rtol=0, atol=1e-12)
        else:
            assert torch.equal(second["0.1/residual"], first["0.1/residual"])


def test_windows_without_changes_are_not_computed() -> None:
    block = prepare_for_inference(_transformer().groups[0].blocks[0])
    x, past, last = torch.randn(3, 1, 1, 8, 8, 8, dtype=torch.float64)
    keep = torch.zeros(1, 1, 8, 8, 1, dtype=torch.float64)
    keep[:, :, 1, 2] = 1
    # Only the first of four windows has a token to compute.
    past[:, :, 4:] = torch.nan
    past[:, :, :, 4:] = torch.nan
    with torch.no_grad():
        residual = block.residual(x, (past, past), None, keep, last)
    assert residual.isfinite().all()
    is_last = (residual == last).all(-1)
    assert torch.equal(is_last, keep[..., 0] == 0)


def test_keeps_a_map_for_each_block_and_one_for_each_group() -> None:
    _, (first, second, _) = _run(_transformer(), _frames())
    names = ["0/input", "0.0/residual", "0.1/residual", "1/input", "1.0/residual"]
    assert cache_names(SMALL.depths) == names
    assert set(first) == set(names)
    assert set(second) == {*names, "0.0/keep", "0.1/keep", "1.0/keep"}
    for name, value in second.items():
        assert value.shape == (2, 1 if name.endswith("keep") else 8, 7, 10)


def test_continues_from_copies_of_its_caches() -> None:
    transformer, frames = _transformer(), _frames()
    with torch.no_grad():
        states, caches = _run(transformer, frames)
        names = cache_names(SMALL.depths)
        copies = {name: caches[1][name].contiguous().clone() for name in names}
        state, _ = refine_masked(transformer, *frames[2], copies)
    torch.testing.assert_close(state, states[2], rtol=0, atol=1e-12)
    assert not copies


def test_elements_of_a_batch_do_not_meet() -> None:
    transformer, frames = prepare_for_inference(_transformer()), _frames()
    with torch.no_grad():
        states, _ = _run(transformer, frames)
        singly, _ = _run(transformer, [tuple(x[1:] for x in frame) for frame in frames])
    for state, single in zip(states, singly, strict=True):
        torch.testing.assert_close(state[1:], single, rtol=0, atol=1e-12)


def test_training_draws_tokens_with_the_probability_of_the_logit() -> None:
    torch.manual_seed(0)
    block = MaskedBlock(BlockConfig(channels=4, heads=2, window=4)).train()
    nn.init.constant_(block.mask_predictor.bias, 0.5)
    x = torch.randn(1, 1, 100, 100, 4)
    # Nothing has changed: the logit is the bias.
    keep = block.predict_keep(x, x)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert keep.mean().item() == pytest.approx(torch.tensor(0.5).sigmoid().item(), abs=0.02)
    assert torch.equal(block.eval().predict_keep(x, x), torch.ones_like(keep))


def test_the_gradient_of_a_draw_is_that_of_a_soft_one() -> None:
    block = MaskedBlock(BlockConfig(channels=4, heads=2, window=4)).train()
    x, last_x = torch.randn(2, 1, 1, 5, 6, 4)
    gradients: list[Tensor] = []
    for is_hard in (True, False):
        block.zero_grad()
        torch.manual_seed(1)
        if is_hard:
            keep = block.predict_keep(x, last_x)
        else:
            logits = block._mask_logits(x, last_x)
            choices = torch.cat([logits, torch.zeros_like(logits)], -1)
            keep = nn.functional.gumbel_softmax(choices, tau=2 / 3)[..., :1]
        keep.mean().backward()
        gradients.append(block.mask_predictor.weight.grad.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_masks_learn_and_caches_do_not() -> None:
    transformer, frames = _transformer(), _frames()
    transformer.train()
    first = tuple(x.requires_grad_() for x in frames[0])
    _, caches = refine_masked(transformer, *first, {})
    assert not any(cache.requires_grad for cache in caches.values())
    state, fresh = refine_masked(transformer, *frames[1], caches)
    state.square().mean().backward(retain_graph=True)
    assert all(x.grad is None for x in first)
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name

    # A loss on the share of computed tokens lowers the logits.
    transformer.zero_grad()
    sum(fresh[name].mean() for name in fresh if name.endswith("/keep")).backward()  # type: ignore[union-attr]
    for group in transformer.groups:
        for block in group.blocks:
            assert block.mask_predictor.bias.grad.item() > 0
