"""Both forms of attention with BEATs' gated position bias give equal results, alone and inside the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embedding.encoding import flex_attention
from embedding.encoding.flex_attention import Heads, fused_attention, masked_attention
from embedding.encoding.optimized import OptimizedBeats
from tests.support.models import BEATS
from tests.support.optimized_models import load_perturbed, noise_windows, padding_after, relative_norm_error

# By length in seconds. No number of tokens is a multiple of 128, the size of FlexAttention's blocks.
N_TOKENS = {0.5: 24, 1.3: 64, 2.9: 144}


def attention_inputs(n_windows: int, n_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Heads, torch.Tensor]:
    """Return random queries, keys, values and gates of 12 heads, and random biases."""
    generator = torch.Generator().manual_seed(n_tokens)
    shapes = [(n_windows, 12, n_tokens, 64)] * 3 + [(n_windows, 12, n_tokens), (12, n_tokens, n_tokens)]
    *heads, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return Heads(*heads), bias


def smallest_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1).min())


@pytest.mark.parametrize("n_tokens", [7, 64, 144, 248])
@pytest.mark.parametrize("is_masked", [False, True])
def test_both_forms_give_equal_results(n_tokens: int, is_masked: bool) -> None:
    padded = padding_after([n_tokens, n_tokens - 3], n_tokens) if is_masked else None
    inputs = (*attention_inputs(2, n_tokens), padded, 0.125)
    with torch.inference_mode():
        assert relative_norm_error(fused_attention(*inputs), masked_attention(*inputs)) <= 1e-5


def test_gates_and_biases_matter_in_this_comparison() -> None:
    heads, bias = attention_inputs(2, 64)
    with torch.inference_mode():
        attended = masked_attention(heads, bias, None, 0.125)
        without_gates = masked_attention(heads._replace(gate=torch.ones_like(heads.gate)), bias, None, 0.125)
        without_biases = masked_attention(heads, torch.ones_like(bias), None, 0.125)
    assert relative_norm_error(without_gates, attended) > 0.1
    assert relative_norm_error(without_biases, attended) > 0.1


@pytest.mark.long  # two minutes; the fused bias is off (docs/decisions.md), and its parts are tested above
def test_beats_gives_equal_results_with_a_fused_bias() -> None:
    """One test uses each model for all lengths, because loading the models takes most of the time."""
    exact, exact_fused = (beats(torch.float32, fused=fused) for fused in (False, True))
    coarse, coarse_fused = (beats(torch.bfloat16, fused=fused) for fused in (False, True))
    for length_s, n_tokens in N_TOKENS.items():
        windows = noise_windows(2, length_s)
        mask = padding_after([windows.shape[1], windows.shape[1] * 2 // 3], windows.shape[1])
        for padding in (None, mask):
            with torch.inference_mode():
                expected, expected_padded = exact(windows, padding)
                features, padded = exact_fused(windows, padding)
                rounded, rounded_fused = (model(windows, padding)[0] for model in (coarse, coarse_fused))
            assert expected.shape[1] == n_tokens
            rows = slice(None)
            if padded is not None:
                assert expected_padded is not None
                assert torch.equal(padded, expected_padded)
                rows = ~padded
            assert relative_norm_error(features[rows], expected[rows]) <= 1e-5
            assert smallest_cosine(rounded_fused[rows], rounded[rows]) >= 0.9999


def beats(dtype: torch.dtype, *, fused: bool) -> OptimizedBeats:
    return OptimizedBeats(load_perturbed(BEATS), dtype, fused_bias=fused).eval()


class Compilations:
    """Counter of the graphs that torch.compile passes to its backend, which runs them unchanged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        torch.compiler.reset()
        monkeypatch.setattr(flex_attention, "COMPILED_ON", ("cpu",))
        monkeypatch.setattr(flex_attention, "_compiled_shapes", {})
        self._functions: dict[Any, Callable[..., torch.Tensor]] = {}
        monkeypatch.setattr(flex_attention, "_compiled", self._compiled)

    def _compiled(self, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        if attend not in self._functions:
            self._functions[attend] = torch.compile(attend, dynamic=False, fullgraph=True, backend=self._count)
        return self._functions[attend]

    def _count(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.n += 1
        return graph.forward


def test_all_layers_and_passes_of_a_batch_size_use_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = Compilations(monkeypatch)
    model = beats(torch.float32, fused=True)
    with torch.inference_mode():
        for _ in range(2):
            for n_windows in (1, 2, 4):
                model(noise_windows(n_windows, 0.5), None)
    assert compilations.n == 3


def test_a_ninth_shape_is_computed_without_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a function were compiled for a ninth shape, torch would raise."""
    compilations = Compilations(monkeypatch)
    with torch.inference_mode():
        for n_windows in [*range(1, 11), 2]:
            inputs = (*attention_inputs(n_windows, 24), None, 0.125)
            assert relative_norm_error(fused_attention(*inputs), masked_attention(*inputs)) <= 1e-5
        assert compilations.n == 8
        padded = (*attention_inputs(2, 24), padding_after([24, 20], 24), 0.125)
        assert relative_norm_error(fused_attention(*padded), masked_attention(*padded)) <= 1e-5
    assert compilations.n == 9


def test_torch_raises_at_a_ninth_shape() -> None:
    """The reason of ``MAX_SHAPES``: if torch raises later or no longer, more shapes may be fused."""
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False, fullgraph=True)
    with torch.inference_mode():
        for n in range(1, flex_attention.MAX_SHAPES + 1):
            compiled(torch.zeros(n))
        with pytest.raises(Exception, match="Hard failure due to fullgraph=True"):  # a private class of torch
            compiled(torch.zeros(flex_attention.MAX_SHAPES + 1))


@pytest.mark.long  # a C++ compiler runs for a minute
# torch's compiler imports a module that still uses torch.jit (torch 2.11).
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_attention_gives_equal_results(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel is compiled for CPUs from the same function as for GPUs."""
    # A kernel for CPUs has buffers for the number of threads at its compilation. torch's cache on disk also returns the
    # kernel to processes with more threads, which then fail with "double free or corruption" (torch 2.11).
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    monkeypatch.setattr(flex_attention, "COMPILED_ON", ("cpu",))
    monkeypatch.setattr(flex_attention, "_compiled_shapes", {})
    with torch.inference_mode():
        for n_windows, n_tokens in ((1, 24), (2, 144)):
            for padded in (None, padding_after([n_tokens - 3] * n_windows, n_tokens)):
                heads, bias = attention_inputs(n_windows, n_tokens, dtype)
                exact = masked_attention(Heads(*(part.float() for part in heads)), bias.float(), padded, 0.125)
                fused = fused_attention(heads, bias, padded, 0.125)
                masked = masked_attention(heads, bias, padded, 0.125)
                assert relative_norm_error(fused, exact) <= max(1e-5, relative_norm_error(masked, exact))
