"""PyTorch modules and exported programs become ONNX files that give the same outputs."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as trees

from packlight.errors import UnusableModel, UnusableOutput, WrongUsage
from packlight.graph.model import Model, load_model
from packlight.graph.torch.archive import load_program
from packlight.graph.walk import walk_graphs
from packlight.runtime import Process

OPSET = 18
"""The operator set that PyTorch's exporter writes without conversion."""

TOLERANCE = 1e-3
"""Largest difference to the module's own outputs, as a part of their largest value."""

Source = torch.nn.Module | torch.export.ExportedProgram | Path | str


def from_torch(
    source: Source, example_inputs: Any, path: Path | str, *, process: Process | None = None
) -> Model:
    """Write a module, an exported program or a .pt2 file as ONNX to `path`, and load it.

    example_inputs: a tensor, or a tuple of what the module's forward takes; None has them made up
    for an exported program, whose shapes are known. Their first axis
    becomes a batch of any size where the module allows that. The file's outputs are compared
    with the module's own, of the examples and of another batch. process: to run the file in; by
    default one of its own. A .pt2 file is read without running code that it may hold.
    The file appears when all that is done.

    Raises UnusableModel where the module cannot be exported, or computes something else in
    ONNX, WrongUsage for examples that are no tensors, UnusableOutput where `path` cannot be
    written.
    """
    path = Path(path)
    if isinstance(source, Path | str):
        source = load_program(Path(source))
    if example_inputs is None and isinstance(source, torch.export.ExportedProgram):
        example_inputs = _examples_of(source)
    inputs = _as_inputs(example_inputs)
    with _in_inference(source) as run, torch.no_grad():
        wide = _with_two_rows(inputs)
        try:
            _check_runs(run, wide)
            feeds = wide
        except Exception:
            feeds = inputs  # the module holds its batch
        with contextlib.ExitStack() as stack:
            # Next to its place, so that it appears there whole and compared, or not at all.
            folder = stack.enter_context(_scratch_folder(path))
            draft = Path(folder) / path.name
            _export(source, feeds, draft)
            model = load_model(draft)
            cases = [inputs]
            if _any_batch(model):
                cases.append(_with_two_rows(_with_two_rows(inputs)))
            where = process or stack.enter_context(Process())
            session = stack.enter_context(contextlib.closing(where.load(draft)))
            names = [spec.name for spec in model.inputs]
            for case in cases:
                _compare(path, session, names, case, _flat(run(*case)))
            draft.replace(path)
    return load_model(path)


def _scratch_folder(path: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UnusableOutput(
            f"{path} cannot be written ({error.strerror or error}): check that the folder exists "
            "and may be written to."
        ) from error


def _examples_of(program: torch.export.ExportedProgram) -> tuple[torch.Tensor, ...]:
    """Made-up inputs of a program: normal numbers, 0 for integers, 2 along axes of any size."""
    generator = torch.Generator().manual_seed(0)
    wanted = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in wanted:
        value = nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None
        if not isinstance(value, torch.Tensor):
            raise WrongUsage(
                f"The program's input {name!r} is no tensor: give example_inputs of your own."
            )
        shape = [size if isinstance(size, int) else 2 for size in value.shape]
        if value.dtype.is_floating_point:
            found.append(torch.randn(shape, generator=generator).to(value.dtype))
        else:
            found.append(torch.zeros(shape, dtype=value.dtype))
    return tuple(found)


def _as_inputs(example_inputs: Any) -> tuple[Any, ...]:
    if isinstance(example_inputs, torch.Tensor | np.ndarray):
        example_inputs = (example_inputs,)
    if isinstance(example_inputs, Mapping) or not isinstance(example_inputs, Sequence):
        raise WrongUsage(
            "The example inputs of a PyTorch module are a tensor or a tuple of tensors, not "
            f"{type(example_inputs).__name__}."
        )
    found = tuple(
        torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in example_inputs
    )
    if not any(isinstance(one, torch.Tensor) for one in trees.tree_leaves(found)):
        raise WrongUsage("None of the example inputs is a tensor: give what forward takes.")
    return found


@contextlib.contextmanager
def _in_inference(source: Any) -> Iterator[Any]:
    """What to call, computing as in inference; the module is left as it was."""
    if isinstance(source, torch.export.ExportedProgram):
        yield source.module()
        return
    training = [module for module in source.modules() if module.training]
    source.eval()
    try:
        yield source
    finally:
        for module in training:
            module.training = True


def _with_two_rows(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Each tensor twice along its first axis: of a batch of 1, export would make a constant."""

    def twice(one: Any) -> Any:
        return torch.cat([one, one]) if isinstance(one, torch.Tensor) and one.ndim else one

    result: tuple[Any, ...] = trees.tree_map(twice, inputs)
    return result


def _check_runs(run: Any, inputs: tuple[Any, ...]) -> None:
    run(*inputs)


def _any_batch(model: Model) -> bool:
    return bool(model.inputs) and all(
        spec.shape and not isinstance(spec.shape[0], int) for spec in model.inputs
    )


def _export(source: Any, inputs: tuple[Any, ...], path: Path) -> None:
    """Write the ONNX file, with a free batch if that can be, and the sizes of `inputs` if not."""
    batch = torch.export.Dim("batch")
    free = trees.tree_map(
        lambda one: {0: batch} if isinstance(one, torch.Tensor) and one.ndim else None, inputs
    )
    exported = isinstance(source, torch.export.ExportedProgram)
    errors = []
    for shapes in (None,) if exported else (free, None):
        try:
            with _quietly():
                program = torch.onnx.export(
                    source,
                    inputs,
                    dynamo=True,
                    dynamic_shapes=shapes,
                    opset_version=OPSET,
                    verbose=False,
                    optimize=True,
                )
                assert program is not None
                _name_batch(program.model.graph)
                _forget_sources(program.model)
                program.save(path, external_data=False)
            return
        except Exception as error:
            errors.append(error)
    cause = str(errors[0]).strip().splitlines()
    raise UnusableModel(
        "PyTorch's exporter cannot turn this module into ONNX "
        f"({cause[0][:300] if cause else type(errors[0]).__name__}): "
        "export it yourself with torch.onnx.export, and give the file."
    ) from errors[0]


def _name_batch(graph: ir.Graph) -> None:
    """Call the first axis of the inputs "batch" where it has one name in all of them."""
    names = {
        "" if isinstance(size, int) else size.value
        for size in (value.shape[0] for value in graph.inputs if value.shape)
    }
    name = names.pop() if len(names) == 1 else ""
    if not name:
        return
    for value in [*graph.inputs, *graph.outputs]:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value == name and value.shape is not None:
                value.shape[axis] = "batch"


def _forget_sources(model: ir.Model) -> None:
    """Leave out where in its maker's source files each node came from."""
    for _, graph in walk_graphs(model):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's progress and advice, which are for whoever calls it."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _flat(outputs: Any) -> list[NDArray[Any]]:
    return [
        one.detach().cpu().numpy()
        for one in trees.tree_leaves(outputs)
        if isinstance(one, torch.Tensor)
    ]


def _compare(
    path: Path, session: Any, names: Sequence[str], inputs: Any, expected: list[NDArray[Any]]
) -> None:
    tensors = [one for one in trees.tree_leaves(inputs) if isinstance(one, torch.Tensor)]
    if len(tensors) != len(names):
        raise UnusableModel(
            f"The module takes {len(tensors)} tensors, its ONNX file {len(names)}: some are not "
            "used, or are constants. Leave them out of forward, or export it yourself."
        )
    arrays = [one.detach().cpu().numpy() for one in tensors]
    found = list(session.run(dict(zip(names, arrays, strict=True))).values())
    if len(found) != len(expected):
        raise UnusableModel(
            f"The module gives {len(expected)} tensors, its ONNX file {len(found)}: "
            "let forward return each tensor once."
        )
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.shape != other.shape:
            raise UnusableModel(
                f"Output {number} has shape {list(other.shape)} in PyTorch and {list(one.shape)} "
                "in ONNX: the module cannot be exported by itself, do so with torch.onnx.export."
            )
        largest = float(np.abs(other).max()) if other.size else 0.0
        difference = float(np.abs(one.astype(np.float64) - other).max()) if other.size else 0.0
        if not difference <= TOLERANCE * max(largest, 1e-6):
            raise UnusableModel(
                f"Output {number} differs by {difference:.3g} from PyTorch's, whose largest value "
                f"is {largest:.3g}: {path.name} does not compute what the module does. Export it "
                "yourself with torch.onnx.export, and compare."
            )
