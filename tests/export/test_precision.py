"""Files of fewer bits: what is rounded, what stays float32, and what measures it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from overlock_mm.export.precision import half_precision, int8, rounding_differences

#: A convolution, a product that overflows, a difference that rounding leaves nothing of, and, out
#: of the layers, a sum.
NODES = (
    ('Conv', ['image', 'weight'], 'conv', '/net/conv/Conv'),
    ('Mul', ['conv', 'large'], 'product', '/net/scale/Mul'),
    ('Div', ['product', 'large'], 'quotient', '/net/scale/Div'),
    ('Add', ['quotient', 'thousand'], 'shifted', '/net/shift/Add'),
    ('Sub', ['shifted', 'thousand'], 'back', '/net/shift/Sub'),
    ('Add', ['back', 'thousand'], 'out', '/Add'),
)


@pytest.fixture
def model():
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32) / 10
    constants = {'weight': weight, 'large': np.float32(1e6), 'thousand': np.float32(1000)}
    initializers = [numpy_helper.from_array(np.array(v), n) for n, v in constants.items()]
    nodes = [helper.make_node(kind, i, [o], name=name) for kind, i, o, name in NODES]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, s, s])
        for name, c, s in (('image', 3, 10), ('out', 4, 8))
    ]
    graph = helper.make_graph(nodes, 'small', values[:1], values[1:], initializers)
    opset = helper.make_opsetid('', 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


@pytest.fixture
def feeds():
    generator = np.random.default_rng(1)
    return [{'image': generator.standard_normal((1, 3, 10, 10)).astype(np.float32)}] * 2


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, feed)[0]


def test_each_operator_is_measured(model, feeds):
    differences = rounding_differences(model, feeds)
    assert set(differences) == {name for *_, name in NODES if name.count('/') > 1}
    assert differences['/net/conv/Conv'] < 0.002
    assert differences['/net/scale/Mul'] == np.inf
    assert differences['/net/shift/Sub'] > 0.05  # 1000 and a bit, minus 1000


def test_what_rounding_spoils_stays_float32(model, feeds):
    converted, kept = half_precision(model, feeds)
    onnx.checker.check_model(converted, full_check=True)
    assert {'/net/scale/Mul', '/net/scale/Div', '/net/shift/Sub'} <= set(kept)
    assert '/net/conv/Conv' not in kept
    types = {each.name: each.data_type for each in converted.graph.initializer}
    assert types['weight.half'] == TensorProto.FLOAT16
    assert 'weight' not in types  # not twice in the file
    inputs = {node.name: list(node.input) for node in converted.graph.node}
    assert inputs['/net/conv/Conv'] == ['image.half', 'weight.half']
    assert inputs['/Add'] == ['back', 'thousand']
    assert converted.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_results_of_half_precision(model, feeds):
    del model.graph.node[3:]  # what loses digits by design
    model.graph.output[0].name = 'quotient'
    converted, _ = half_precision(model, feeds)
    expected = run(model, feeds[0])
    difference = np.abs(run(converted, feeds[0]) - expected).max()
    assert 0 < difference < 0.002 * np.abs(expected).max()


def test_results_of_int8(model, feeds):
    del model.graph.node[3:]
    model.graph.output[0].name = 'quotient'
    converted = int8(model, feeds)
    kinds = [node.op_type for node in converted.graph.node]
    assert 'QuantizeLinear' in kinds
    expected = run(model, feeds[0])
    assert 0 < np.abs(run(converted, feeds[0]) - expected).max() < 0.05 * np.abs(expected).max()
