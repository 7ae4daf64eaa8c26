"""Files of fewer bits: float16 and int8.

Which operators are computed in float16 is decided by measuring. Each one is computed twice on real
pictures, once from what was before it in float32 and once from the same values rounded; where the
result differs by more than rounding can do, or does not fit, it stays float32. Norms, softmax and
all that follows the layers of the network, the arithmetic of boxes above all, stay so in any case.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray]

#: Operators that move values and do not compute.
_MOVING = ('Concat', 'Flatten', 'Reshape', 'Split', 'Squeeze', 'Transpose', 'Unsqueeze')
#: Operators that may be computed in float16; all others stay float32.
HALF_OPERATORS = frozenset(
    (
        *('Add', 'BatchNormalization', 'Conv', 'ConvTranspose', 'Div', 'Erf', 'Gemm', 'MatMul'),
        *('MaxPool', 'Mul', 'Relu', 'Sigmoid', 'Sub', *_MOVING),
    )
)
#: Largest difference of an operator's output, of its largest value. Rounding is 0.0005 at most, and
#: a sum of some hundred products comes out with several times that.
TOLERANCE = 0.01
#: With weights, which is where int8 saves time and space.
INT8_OPERATORS = ('Conv', 'Gemm')


def half_precision(model: Any, feeds: Sequence[Feed]) -> tuple[Any, dict[str, float]]:
    """A model in float16, with inputs and outputs in float32.

    Args:
        model: ``onnx.ModelProto`` in float32.
        feeds: Inputs made of real pictures.

    Returns:
        The new model, and the operators that a measurement keeps in float32 with their differences.
    """
    differences = rounding_differences(model, feeds)
    kept = {name: value for name, value in differences.items() if not value <= TOLERANCE}
    return _in_half(model, set(differences) - set(kept)), kept


def _in_half(model: Any, chosen: set[str]) -> Any:
    """The model with the chosen nodes, and what moves values between them, in float16.

    All other values stay float32. The converter of ONNX Runtime rounds these too, between any two
    operators, which moves boxes by sixteenths of a pixel.
    """
    from onnx import TensorProto, helper, numpy_helper

    converted = _copy(model)
    graph = converted.graph
    floats = _float_values(model)
    weights = {each.name: each for each in graph.initializer if each.name in floats}
    single = {each.name for each in graph.input} | {each.name for each in graph.initializer}
    half: set[str] = set()
    nodes: list[Any] = []

    def in_half(name: str) -> str:
        if name not in floats:
            return name
        if name not in half:
            half.add(name)
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, f'{name}.half'))
            else:
                nodes.append(_cast(helper, name, f'{name}.half', TensorProto.FLOAT16))
        return f'{name}.half'

    def in_single(name: str) -> None:
        if name in half and name not in single:
            single.add(name)
            nodes.append(_cast(helper, f'{name}.half', name, TensorProto.FLOAT))

    for node in model.graph.node:
        new = type(node)()
        new.CopyFrom(node)
        moves = node.op_type in _MOVING and _in_a_layer(node) and node.input[0] in half
        if node.name in chosen or (moves and node.output[0] in floats):
            new.input[:] = [in_half(name) for name in node.input]
            new.output[:] = [f'{name}.half' for name in node.output]
            half.update(node.output)
        else:
            for name in node.input:
                in_single(name)
            single.update(node.output)
        nodes.append(new)
    for output in graph.output:
        in_single(output.name)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    left = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)
    return converted


def _cast(helper: Any, source: str, target: str, to: int) -> Any:
    return helper.make_node('Cast', [source], [target], name=f'{target}/Cast', to=to)


def _float_values(model: Any) -> set[str]:
    """Names of all values in float32, weights too."""
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {
        value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT
    } | {each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT}


def rounding_differences(model: Any, feeds: Sequence[Feed]) -> dict[str, float]:
    """How far float16 takes the output of each operator that may be computed in it.

    Args:
        model: ``onnx.ModelProto`` in float32.
        feeds: Inputs; the largest difference over all counts.

    Returns:
        Node -> difference, of the largest value of its output; infinite where it does not fit.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    measured = _copy(model)
    graph = measured.graph
    floats = _float_values(model)
    candidates = [
        node
        for node in graph.node
        if node.op_type in HALF_OPERATORS.difference(_MOVING)
        and _in_a_layer(node)
        and node.output[0] in floats
    ]
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), 'precision.all'))
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), 'precision.zero'))
    rounded: set[str] = set()

    def add(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def half(name: str) -> str:
        if name not in rounded:
            rounded.add(name)
            add('Cast', [name], f'{name}.half', to=TensorProto.FLOAT16)
            add('Cast', [f'{name}.half'], f'{name}.rounded', to=TensorProto.FLOAT)
        return f'{name}.rounded'

    def largest(name: str) -> str:
        # A value of its own, as some outputs have none.
        add('Reshape', [name, 'precision.all'], f'{name}.flat')
        add('Abs', [f'{name}.flat'], f'{name}.abs')
        add('Concat', [f'{name}.abs', 'precision.zero'], f'{name}.filled', axis=0)
        return add('ReduceMax', [f'{name}.filled'], f'{name}.largest', keepdims=0)

    outputs = []
    for node in candidates:
        twin = type(node)()
        twin.CopyFrom(node)
        output = f'{node.output[0]}.twin'
        twin.name = output
        twin.input[:] = [half(name) if name in floats else name for name in node.input]
        twin.output[:] = [output, *(f'{name}.twin' for name in node.output[1:])]
        graph.node.append(twin)
        difference = add('Sub', [half(output), node.output[0]], f'{output}.difference')
        for value in (largest(difference), largest(node.output[0])):
            outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, []))
    del graph.output[:]
    graph.output.extend(outputs)
    session = onnxruntime.InferenceSession(
        measured.SerializeToString(), _quiet(onnxruntime), providers=['CPUExecutionProvider']
    )
    differences = {node.name: 0.0 for node in candidates}
    for feed in feeds:
        values = iter(session.run(None, dict(feed)))
        for node, difference, magnitude in zip(candidates, values, values, strict=True):
            relative = float(difference) / max(float(magnitude), 1e-12)
            differences[node.name] = max(
                differences[node.name], relative if relative == relative else np.inf
            )
    return differences


def int8(model: Any, feeds: Sequence[Feed]) -> Any:
    """A model whose convolutions and fully connected layers are computed in int8.

    Args:
        model: ``onnx.ModelProto`` in float32.
        feeds: Inputs made of real pictures, from which the ranges of values are taken.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    outside = [node.name for node in model.graph.node if not _in_a_layer(node)]
    with TemporaryDirectory() as folder:
        source, target = Path(folder, 'float.onnx'), Path(folder, 'int8.onnx')
        onnx.save(model, source)
        logging.getLogger('root').disabled = True  # it advises to fold constants first
        try:
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(INT8_OPERATORS),
                per_channel=True,
                nodes_to_exclude=outside,
            )
        finally:
            logging.getLogger('root').disabled = False
        return onnx.load(target)


def feeds_of(paths: Iterable[Path], description: Any) -> list[dict[str, np.ndarray]]:
    """Inputs of a file made of pictures.

    Args:
        paths: Picture files.
        description: :class:`overlock_mm.runtime.ModelDescription` of the file.

    Raises:
        ValueError: A picture cannot be read, or the description does not say how to prepare it.
    """
    from overlock_mm.runtime.pictures import read_picture
    from overlock_mm.runtime.preprocessing import prepare

    feeds = []
    for path in paths:
        image = read_picture(path, description.channels, description.exif)
        prepared = prepare(image, description)
        feed = {'image': prepared.values[None]}
        if description.task == 'detection':
            feed['image_size'] = np.array([prepared.counted], np.int64)
        feeds.append(feed)
    return feeds


def _in_a_layer(node: Any) -> bool:
    """Whether a node belongs to a layer of the network, by the name that the exporter gives it."""
    return node.name.count('/') > 1


def _copy(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _quiet(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
