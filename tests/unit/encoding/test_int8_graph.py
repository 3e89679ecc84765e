"""Matrix products in int8: rounding of weights, and vectors of BEATs."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openvino import opset13 as ops

from embedding.encoding.graph_files import open_graph_files
from embedding.encoding.graph_model import GraphModel
from embedding.encoding.int8_graph import GROUP, quantize_products, quantize_rows
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from tests.support.encoding import (
    make_cpu_encoder,
    make_settings,
    tone_windows,
)
from tests.support.models import BEATS, EFFICIENTNET

pytestmark = pytest.mark.usefixtures("few_layers")

WEIGHTS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=WEIGHTS))
def test_a_rounded_weight_differs_by_at_most_half_a_scale(weight: np.ndarray) -> None:
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == np.int8
    assert (np.abs(rounded.astype(int)) <= 127).all()
    assert (np.abs(rounded * scale.astype(np.float64) - weight) <= 0.5001 * scale).all()


def test_weights_of_other_shapes_and_sides_stay_as_they_are() -> None:
    weights = [
        ops.constant(np.ones((4, GROUP - 1), np.float32)),
        ops.constant(np.ones((2, 4, GROUP), np.float32)),
        ops.constant(np.ones(GROUP, np.float32)),
    ]
    x = ops.parameter([1, 4, -1], np.float32)
    products = [ops.matmul(x, weight, False, True) for weight in weights]
    products.append(ops.matmul(x, ops.constant(np.ones((GROUP, GROUP), np.float32)), False, False))
    for product in products:
        graph = ov.Model([product], [x])  # pyright: ignore[reportGeneralTypeIssues] — missing in OpenVINO's stubs
        assert quantize_products(graph) == 0


def test_a_row_of_zeros_stays_zero() -> None:
    rounded, scale = quantize_rows(np.zeros((1, 4), np.float32))
    assert not rounded.any()
    assert np.isfinite(scale).all()


def test_all_products_of_the_layers_of_beats_are_rounded(few_layers: int, shallow_checkpoints: dict[str, Path]) -> None:
    settings = make_settings(shallow_checkpoints[BEATS], BEATS)
    graph = ov.Core().read_model(open_graph_files(settings.model, settings.checkpoint).graph)
    assert quantize_products(graph) == 4 * few_layers
    constants = [
        op for op in graph.get_ops() if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.i8
    ]
    assert {op.shape[1] % GROUP for op in constants} == {0}
    assert quantize_products(graph) == 0


def test_sizes_of_inputs_are_passed_to_openvino_for_int8_only(shallow_checkpoints: dict[str, Path]) -> None:
    """A CPU with VNNI rounds inputs in groups of this size; without the option it would compute in float32."""
    settings = make_settings(shallow_checkpoints[BEATS], BEATS)
    files = open_graph_files(settings.model, settings.checkpoint)
    for precision, size in (("int8", GROUP), ("fp32", 0)):
        model = GraphModel(files.front_end(), files.graph, precision, 1)
        model(tone_windows(1, 0.5))
        compiled = model._request.get_compiled_model()
        assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == size


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            EFFICIENTNET,
            {},
            r"--precision: only BEATs models compute in int8; use fp32 or bf16 for esp_aves2_effnetb0_all",
        ),
        (BEATS, {"mask_padding": True}, "int8 goes neither with --mask-padding nor with --layers"),
        (BEATS, {"layers": "0"}, "int8 goes neither with --mask-padding nor with --layers"),
        (
            BEATS,
            {"device": "cuda"},
            "--precision: only CPUs compute in int8; use bf16, or choose --device cpu",
        ),
    ],
)
def test_int8_is_refused_where_it_is_not_possible(model: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_settings("random", model, precision="int8", **options)


def test_int8_is_refused_on_gpus_that_a_run_finds() -> None:
    settings: Settings = make_settings("random", BEATS, precision="int8")
    assert settings.on("cpu").device is None
    with pytest.raises(RequestError, match="only CPUs compute in int8"):
        settings.on("cuda")


def test_int8_is_refused_without_a_prepared_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of torch, which replaces the graph otherwise, does not compute in int8."""
    (tmp_path / "avex-batch").mkdir()
    (tmp_path / "avex-batch" / "graphs").write_text("a file where a folder is expected")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RequestError, match=r"--precision: int8 is not possible: the prepared model cannot be kept \("):
        make_cpu_encoder("random", BEATS, precision="int8")
