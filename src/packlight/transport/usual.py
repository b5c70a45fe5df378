r"""What the files of a packed folder usually say: the page that the model of text reads first.

It is part of the format: another page is another version. Written as protobuf writes ONNX
("\n" and a length before an input, "\x12" before an output, ...).
"""

from __future__ import annotations

USUAL = (
    b"\nrecipe.yaml\x01# What packlight did to each layer. Run it again with: packlight compress "
    b"MODEL --recipe recipe.yaml\n# Choices: float32, int8, int7, int6, int5, int4, int3, int2, i"
    b"nt8-wide, int8-dynamic, weights-int8, weights-int8-blocks, weights-int4, weights-coded1, we"
    b"ights-shared4, float16\nschema: 1\ntarget: laptop\nseed: 0\nranges: squared-error\nrounding"
    b": compensated\nbias_correction: true\nbias_correction: false\nequalize: true\nequalize: fal"
    b"se\npair_limit: true\nlayers:\n  /layer1/layer1.0/conv1/Conv: int8\n  /fc1/Gemm: weights-co"
    b"ded1\n  /fc2/Gemm: float32\n  /encoder/layer.0/attention/self/query/MatMul: int8-dynamic\nm"
    b"odel.onnx\x08\n\x12\tpacklight\x1a\x050.1.0:\n\x05image\n\x05input\n\ninput_ids\n\x0eattent"
    b"ion_mask\nj\n\x0f/Flatten_output_0\n\x0bfc1.weight_dq_out\n\x08fc1.bias\x12\x12/fc1/Gemm_ou"
    b'tput_0\x1a\t/fc1/Gemm"\x04Gemm*\x0f\n\x05alpha\x15\x00\x00\x80?\xa0\x01\x01*\x0e\n\x04beta'
    b"\x15\x00\x00\x80?\xa0\x01\x01*\r\n\x06transA\x18\x00\xa0\x01\x02*\r\n\x06transB\x18\x01\xa0"
    b'\x01\x02\n?\n\x12/fc1/Gemm_output_0\x12\x0e/Relu_output_0\x1a\x05/Relu"\x04Relu\n\x10/Conc'
    b'at_output_0\x12\x11/Reshape_output_0\x1a\x08/Reshape"\x07Reshape*\x10\n\tallowzero\x18\x00'
    b'\xa0\x01\x02"\x06Concat*\x0b\n\x04axis\x18\x01\xa0\x01\x02"\x05Shape"\x05Slice"\x06Gath'
    b'er"\tUnsqueeze"\x07Squeeze\n\xcc\x01\n\x0e/Relu_output_0_dq_out\n\x12conv1.weight_dq_out'
    b'\n\x17conv1.weight_bias_dq_out\x12\x14/conv1/Conv_output_0\x1a\x0b/conv1/Conv"\x04Conv*'
    b"\x12\n\tdilations@\x01@\x01\xa0\x01\x07*\x0c\n\x05group\x18\x01\xa0\x01\x02*\x15\n\x0ckerne"
    b"l_shape@\x03@\x03\xa0\x01\x07*\x11\n\x04pads@\x01@\x01@\x01@\x01\xa0\x01\x07*\x10\n\x07stri"
    b"des@\x01@\x01\xa0\x01\x07*\x10\n\x07strides@\x02@\x02\xa0\x01\x07*\x11\n\x04pads@\x00@\x00@"
    b'\x00@\x00\xa0\x01\x07"\x07MaxPool*\x10\n\tceil_mode\x18\x00\xa0\x01\x02"\x0bAveragePool"'
    b'\x11GlobalAveragePool"\x03Add"\x03Mul"\x03Sub"\x03Div"\x07Flatten*\x0b\n\x04axis\x18'
    b'\x01\xa0\x01\x02"\x07Softmax*\x1b\n\x04axis\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01'
    b'\xa0\x01\x02"\x06MatMul"\tTranspose*\r\n\x04perm@\x00@\x02@\x01@\x03\xa0\x01\x07"\x12Lay'
    b"erNormalization*\x11\n\x07epsilon\x15\xac\xc5'7\xa0\x01\x01\"\x04Cast*\t\n\x02to\x18\x01"
    b'\xa0\x01\x02"\x04Gelu"\x03Erf"\x07Sigmoid"\x04Tanh"\x04Clip"\x12BatchNormalization"'
    b"\x05Where\ny\n\x0e/Relu_output_0\n\x14/Relu_output_0_scale\n\x19/Relu_output_0_zero_point"
    b'\x12\x14/Relu_output_0_q_out\x1a\x10/Relu_output_0_q"\x0eQuantizeLinear\n\x83\x01\n\x14/Re'
    b"lu_output_0_q_out\n\x14/Relu_output_0_scale\n\x19/Relu_output_0_zero_point\x12\x15/Relu_out"
    b'put_0_dq_out\x1a\x11/Relu_output_0_dq"\x10DequantizeLinear\n}\n\x10fc1.weight_codes\n\x10f'
    b'c1.weight_scale\x12\x11fc1.weight_dq_out\x1a\rfc1.weight_dq"\x10DequantizeLinear*\x0b\n'
    b"\x04axis\x18\x00\xa0\x01\x02\n\x8b\x01\n\x0ffc1.weight_bias\n\x15fc1.weight_bias_scale\x12"
    b'\x16fc1.weight_bias_dq_out\x1a\x12fc1.weight_bias_dq"\x10DequantizeLinear*\x0b\n\x04axis'
    b'\x18\x00\xa0\x01\x02\n"\n\x05image\x12\x05/Gemm_2_output_0\x12\x06output\x12\x06logits\x12'
    b"\nmain_graph*\x1e\x10\x01B\x14/Relu_output_0_scaleJ\x04*!\x10\x02B\x19/Relu_output_0_zero_p"
    b"ointJ\x01*\xa6\xa2\x01\x08\xac\x02\x08\x90\x06\x10\x03B\x10fc1.weight_codesJ\x80\xa2\x01*"
    b"\xdf\x01\x08d\x10\x01B\x10fc1.weight_scaleJ\xb0\t*\xde\x01\x080\x10\x06B\x0ffc1.weight_bias"
    b"J\xc0\x01*\xe4\x01\x08@\x10\x01B\x15fc1.weight_bias_scaleJ\xc0\x01*\x13\x08\n\x10\x01B\x08f"
    b"c3.biasJ(*\x9c\x02\x08@\x08 \x08\x03\x08\x03\x10\x01B\x0cconv1.weightJ\x80\x02*\x1d\x08\x02"
    b"\x10\x07B\x12/Constant_output_0J\x10Z$\n\x05image\x12\x1b\n\x19\x08\x01\x12\x15\n\x07\x12"
    b"\x05batch\n\x02\x08\x03\n\x02\x08 \n\x02\x08 b\x1d\n\x06logits\x12\x13\n\x11\x08\x01\x12\r"
    b"\n\x07\x12\x05batch\n\x02\x08\nB\x04\n\x00\x10\x15B\x04\n\x00\x10\x11"
)
