from __future__ import annotations

import pytest

from packlight.runtime.refusal import first_sentence, speaks_of_memory, words_of_openvino

FAILED = "[ONNXRuntimeError] : 1 : FAIL : "
RUNNING = FAILED + "Non-zero status code returned while running {} node. Name:'{}' Status Message: "
HELPER = (
    "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91 "
    "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, "
    "onnxruntime::TensorShapeVector&, bool) input_shape_size == requested_shape_size was false. "
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from /a b/m.onnx failed:"
            "Protobuf parsing failed.",
            "Protobuf parsing failed.",
        ),
        (
            RUNNING.format("Reshape", "flat")
            + HELPER
            + "The input tensor cannot be reshaped to the requested shape. "
            + "Input shape:{3,3}, requested shape:{7}\n",
            "Reshape node 'flat': The input tensor cannot be reshaped to the requested shape. "
            "Input shape:{3,3}, requested shape:{7}.",
        ),
        (
            RUNNING.format("MatMul", "") + "matmul_helper.h:59 Compute MatMul dimension mismatch",
            "MatMul node: Compute MatMul dimension mismatch.",
        ),
        (
            RUNNING.format("ConstantOfShape", "")
            + "/onnxruntime_src/onnxruntime/core/common/safeint.h:17 static void "
            + "SafeIntExceptionHandler<onnxruntime::OnnxRuntimeException>::SafeIntOnOverflow() "
            + "Integer overflow\n",
            "ConstantOfShape node: Integer overflow.",
        ),
        (
            FAILED + "/src/core/op_kernel.cc:87 virtual OrtValue* onnxruntime::Context::Output"
            "(int, const std::function<void (int)>&) const [ONNXRuntimeError] : 1 : FAIL : "
            "Calculation for Tensor storage size overflowed\n",
            "Calculation for Tensor storage size overflowed.",
        ),
        (
            FAILED + "Fatal error: zz:Foo(-1) is not a registered function/op",
            "it has no implementation of the operator 'Foo' of the domain 'zz'; export the "
            "model with standard operators.",
        ),
        ("", "No reason was given."),
        ("bell \a and\x1b[31m colour", "bell and [31m colour."),
    ],
)
def test_the_useful_words_remain(text: str, expected: str) -> None:
    assert first_sentence(text) == expected


def test_a_long_message_is_cut_at_a_sentence_or_shortened() -> None:
    assert first_sentence("One thing. " + "Another " * 100) == "One thing."
    assert len(first_sentence("word " * 1000)) < 260


def test_lack_of_memory_is_recognised() -> None:
    assert speaks_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
    assert speaks_of_memory("Failed to allocate memory for requested buffer of size 274877906944")
    assert speaks_of_memory("ggml.c:1624: GGML_ASSERT(ctx->mem_buffer != NULL) failed")
    assert speaks_of_memory("libllama.so: cannot map zero-fill pages")
    assert not speaks_of_memory("llama.cpp:1: GGML_ASSERT(ids.size() == words.size()) failed")
    assert not speaks_of_memory("Got invalid dimensions for input: memory")


OPENVINO = (
    "Exception from src/inference/src/cpp/core.cpp:84:\n"
    "Check 'false' failed at src/frontends/common/unconverted_ops_report.cpp:151:\n"
    "FrontEnd API failed with OpConversionFailure:\nModel wasn't fully converted."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            OPENVINO + "\nSummary:\n-- No conversion rule found for operations: zz.Foo, Bar-21\n\n",
            "It has no implementation of the operator 'Foo' of the domain 'zz', 'Bar'.",
        ),
        (
            OPENVINO + " Failed operations detailed log:\n-- com.microsoft.Lstm with a message:\n"
            "While validating ONNX node '<Node(Lstm): y>': Check 'size >= 11' failed at "
            "src/common.cpp:99:\nFrontEnd API failed with OpConversionFailure:\nexpected 11 "
            "inputs, got: 1\n\nSummary:\n-- Conversion is failed for: com.microsoft.Lstm\n\n",
            "It cannot read the operator 'Lstm' of the domain 'com.microsoft': expected 11 "
            "inputs, got: 1",
        ),
        (
            "Exception from src/a.cpp:224:\nException from src/node.cpp:794:\n[CPU] Reshape node "
            "with name 'y' Check 'a <= 1 && b == c' failed at src/reshape.cpp:77:\n[cpu]reshape: "
            "the shape of input data (9) conflicts with the reshape pattern (3.7)\n\n\n",
            "[CPU] Reshape node with name 'y' [cpu]reshape: the shape of input data (9) conflicts "
            "with the reshape pattern (3.7)",
        ),
        ("FQ stripping failed", "FQ stripping failed"),
    ],
)
def test_openvino_is_understood(text: str, expected: str) -> None:
    assert words_of_openvino(text) == expected
