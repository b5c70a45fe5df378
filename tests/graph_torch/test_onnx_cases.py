"""ONNX's own test cases: every one runs, and each that may fail stands below with its reason."""

from __future__ import annotations

import warnings
from functools import cache

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (packlight[heal])")

from backend_cases import cases_of, run_case  # noqa: E402

RANDOM = "draws random numbers, which are NumPy's in the expected outputs"
TRAINING = "an optimizer of a training graph: packlight trains with PyTorch's"
TREES = "a classic model of ai.onnx.ml, which has nothing to heal"
PICTURES = "decodes picture files"
NOISE = "expects the rounding noise of another Fourier transform (2e-7 where this one has 0)"

EXCLUDED: dict[str, str] = {
    "test_adagrad": TRAINING,
    "test_adagrad_multiple": TRAINING,
    "test_adam": TRAINING,
    "test_adam_multiple": TRAINING,
    "test_ai_onnx_ml_binarizer": TREES,
    "test_ai_onnx_ml_label_encoder_string_int": TREES,
    "test_ai_onnx_ml_label_encoder_string_int_no_default": TREES,
    "test_ai_onnx_ml_label_encoder_tensor_mapping": TREES,
    "test_ai_onnx_ml_label_encoder_tensor_value_only_mapping": TREES,
    "test_ai_onnx_ml_tree_ensemble_set_membership": TREES,
    "test_ai_onnx_ml_tree_ensemble_single_tree": TREES,
    "test_bernoulli": RANDOM,
    "test_bernoulli_double": RANDOM,
    "test_bernoulli_double_expanded": RANDOM,
    "test_bernoulli_expanded": RANDOM,
    "test_bernoulli_seed": RANDOM,
    "test_bernoulli_seed_expanded": RANDOM,
    "test_dft_inverse": NOISE,
    "test_dft_inverse_opset19": NOISE,
    "test_gradient_of_add": "a gradient as a node of the graph, which is PyTorch's own business",
    "test_gradient_of_add_and_mul": "a gradient as a node, which is PyTorch's own business",
    "test_image_decoder_decode_bmp_rgb": PICTURES,
    "test_image_decoder_decode_jpeg2k_rgb": PICTURES,
    "test_image_decoder_decode_jpeg_bgr": PICTURES,
    "test_image_decoder_decode_jpeg_grayscale": PICTURES,
    "test_image_decoder_decode_jpeg_rgb": PICTURES,
    "test_image_decoder_decode_png_rgb": PICTURES,
    "test_image_decoder_decode_pnm_rgb": PICTURES,
    "test_image_decoder_decode_tiff_rgb": PICTURES,
    "test_image_decoder_decode_webp_rgb": PICTURES,
    "test_momentum": TRAINING,
    "test_momentum_multiple": TRAINING,
    "test_nesterov_momentum": TRAINING,
    "test_training_dropout": RANDOM,
    "test_training_dropout_default": RANDOM,
    "test_training_dropout_default_mask": RANDOM,
    "test_training_dropout_mask": RANDOM,
}

COUNTS = {"node": 1800, "simple": 20, "pytorch-converted": 80, "pytorch-operator": 30}


@cache
def run_all(kind: str) -> dict[str, str]:
    """What each case of a kind fails with; '' where it passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX's own cases overflow on purpose
        found = {}
        for name, case in cases_of(kind).items():
            torch.manual_seed(0)
            try:
                run_case(case)
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"[:300] or "failed"
            else:
                found[name] = ""
    return found


@pytest.mark.parametrize("kind", COUNTS)
def test_cases_give_the_expected_outputs(kind: str) -> None:
    results = run_all(kind)
    assert len(results) >= COUNTS[kind]
    failed = {name: why for name, why in results.items() if why and name not in EXCLUDED}
    assert not failed, "\n".join(f"{name}: {why}" for name, why in failed.items())


@pytest.mark.parametrize("kind", COUNTS)
def test_no_excluded_case_passes(kind: str) -> None:
    passing = [name for name, why in run_all(kind).items() if not why and name in EXCLUDED]
    assert not passing


def test_every_exclusion_is_a_case() -> None:
    known = {name for kind in COUNTS for name in cases_of(kind)}
    assert set(EXCLUDED) <= known


def test_nearly_all_node_cases_of_the_default_domain_pass() -> None:
    cases = cases_of("node")
    results = run_all("node")
    default = [
        name
        for name, case in cases.items()
        if all(opset.domain in ("", "ai.onnx") for opset in case.model.opset_import)
    ]
    passed = sum(not results[name] for name in default)
    assert len(default) > 1800
    assert passed >= 0.98 * len(default)
