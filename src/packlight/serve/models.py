"""Routes of models and their samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from packlight.report.visible import visible
from packlight.samples.folders import PICTURES, SOUNDS
from packlight.serve.bodies import read_json, receive_file
from packlight.serve.errors import Refused
from packlight.serve.history import GivenModel, now
from packlight.serve.settings import read_settings
from packlight.serve.site import Site, site_of
from packlight.serve.state import make_id, remove
from packlight.serve.work import MODEL

ARRAYS = (".npz", ".npy")
MOST_SAMPLES = 20_000
_MOST_NAME = 200
_MOST_LABEL_BYTES = 60


async def give_model(request: Request) -> Response:
    """POST /api/models: a model file."""
    site = site_of(request)
    name = name_of(request)
    if Path(name).suffix.lower() != ".onnx":
        raise Refused(
            422,
            f"{name} is no .onnx file, which is what this page takes: export the model to ONNX "
            "first, or use packlight compress for other kinds.",
            field="model",
        )
    model = _make_model(site, name)
    try:
        path = site.state.model(model.id) / MODEL
        await receive_file(request, path, limit=site.upload_limit, field="model")
    except BaseException:
        _forget(site, model)
        raise
    return await _describe(site, model)


async def give_model_path(request: Request) -> Response:
    """POST /api/models/path: a file on this machine, which is copied."""
    site = site_of(request)
    path = site.check_path((await read_json(request)).get("path"), "model")
    model = _make_model(site, visible(path.name, limit=_MOST_NAME))
    folder = site.state.model(model.id)
    asked = {"do": "adopt", "path": str(path), "folder": str(folder), "limit": site.upload_limit}
    try:
        about = await site.ask({**asked, "names": {str(folder / MODEL): model.name}})
    except BaseException:
        _forget(site, model)
        raise
    return _found(site, model, about)


async def give_data(request: Request) -> Response:
    """POST /api/models/{id}/files: external data that the model names."""
    site = site_of(request)
    model = site.given_model(request)
    missing = model.about.get("missing", [])
    name = request.query_params.get("name", "").rsplit("/", 1)[-1]
    if name not in missing:
        wanted = ", ".join(missing) or "nothing"
        raise Refused(
            422, f"{name_of(request)} is not asked for by {model.name}: it needs {wanted}.",
            field="model", missing=missing,
        )  # fmt: skip
    # The name is the model's own, which was checked to be a plain one.
    path = site.state.model(model.id) / missing[missing.index(name)]
    await receive_file(request, path, limit=site.upload_limit, field="model")
    return await _describe(site, model)


async def show_model(request: Request) -> Response:
    """GET /api/models/{id}."""
    return JSONResponse(model_to_json(site_of(request).given_model(request)))


async def give_sample(request: Request) -> Response:
    """POST /api/models/{id}/samples: one file of samples, with its class as ?label=."""
    site = site_of(request)
    model = site.given_model(request)
    name = name_of(request)
    suffix = Path(name).suffix.lower()
    if suffix not in (*ARRAYS, *PICTURES, *SOUNDS):
        raise Refused(
            422,
            f"{name} is of no kind that can be read as samples; give .npz, .npy, pictures "
            f"({', '.join(PICTURES)}) or sounds ({', '.join(SOUNDS)}).",
            field="samples",
        )
    samples = model.samples
    number = samples["next"]
    if number > MOST_SAMPLES:
        raise Refused(
            413, f"A model gets at most {MOST_SAMPLES} files of samples.", field="samples"
        )
    site.history.give_samples(model.id, {**samples, "path": None, "next": number + 1})
    file = f"{_class_folder(request.query_params.get('label', ''))}{number:06d}{suffix}"
    path = site.state.samples(model.id, samples["set"]) / file
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    left = site.upload_limit - sum(one["bytes"] for one in samples["files"])
    size = await receive_file(request, path, limit=left, field="samples")
    # Others may have come meanwhile.
    model = site.known_model(model.id)
    if model.samples["set"] != samples["set"]:
        raise Refused(409, "The samples were removed meanwhile.", field="samples")
    files = [*model.samples["files"], {"name": name, "file": file, "bytes": size}]
    files.sort(key=lambda one: str(one["file"]))
    return _with_samples(site, model, {**model.samples, "files": files})


async def remove_samples(request: Request) -> Response:
    """DELETE /api/models/{id}/samples."""
    site = site_of(request)
    model = site.given_model(request)
    remove(site.state.samples(model.id, model.samples["set"]))
    return _with_samples(site, model, no_samples())


async def give_samples_path(request: Request) -> Response:
    """POST /api/models/{id}/samples/path: a file or folder on this machine, read where it is."""
    site = site_of(request)
    path = site.check_path((await read_json(request)).get("path"), "samples")
    model = site.given_model(request)
    return _with_samples(site, model, {**no_samples(), "path": str(path)})


async def check_samples(request: Request) -> Response:
    """POST /api/models/{id}/samples/check: open them as `preprocess` says, and run one."""
    site = site_of(request)
    preprocess = read_settings(await read_json(request)).get("preprocess")
    model = site.given_model(request)
    path, data = model_file(site, model), samples_path(site, model)
    asked = {"do": "check", "model": str(path), "data": data, "preprocess": preprocess}
    found = await site.ask({**asked, "names": names_of(site, model)})
    return JSONResponse({**found, "inputs": model.about["inputs"]})


def model_to_json(model: GivenModel) -> dict[str, Any]:
    """A model as the page sees it."""
    samples = _samples_to_json(model.samples)
    return {"id": model.id, "name": model.name, **model.about, "samples": samples}


def model_file(site: Site, model: GivenModel) -> Path:
    """The file of a model that is whole. Raises Refused, 409."""
    if "inputs" not in model.about:
        missing = ", ".join(model.about.get("missing", [])) or "itself"
        raise Refused(409, f"{model.name} is not whole: give {missing} first.", field="model")
    return site.state.model(model.id) / MODEL


def samples_path(site: Site, model: GivenModel) -> str | None:
    """What `compress` gets as data; None for no samples. Raises Refused, 422."""
    samples = model.samples
    if samples["path"] is not None or not samples["files"]:
        return samples["path"]  # type: ignore[no-any-return]
    folder = site.state.samples(model.id, samples["set"])
    files = [one["file"] for one in samples["files"]]
    arrays = [file for file in files if file.endswith(ARRAYS)]
    if not arrays:
        return str(folder)
    if len(files) > 1:
        raise Refused(
            422, "Give one .npz or .npy file alone, or pictures or sounds.", field="samples"
        )
    return str(folder / arrays[0])


def names_of(site: Site, model: GivenModel) -> dict[str, str]:
    """What people know the files of a model by, so that no path of the state folder is told."""
    folder = site.state.samples(model.id, model.samples["set"])
    files = model.samples["files"]
    said = {str(folder / one["file"]): one["name"] for one in files}
    return {**said, str(folder): "your files", **name_of_model(site, model)}


def name_of_model(site: Site, model: GivenModel) -> dict[str, str]:
    """What people know the file of a model by."""
    return {str(site.state.model(model.id) / MODEL): model.name}


def name_of(request: Request) -> str:
    """What a file is called, for people only: made visible, and cut. Raises Refused."""
    name = visible(request.query_params.get("name", "").rsplit("/", 1)[-1], limit=_MOST_NAME)
    if not name.strip():
        raise Refused(422, "The file has no name: give it as ?name=.")
    return name


def _class_folder(label: str) -> str:
    """The folder of a class, with the stroke; '' for none. Their order is that of the labels."""
    if not label:
        return ""
    coded = label.encode("utf-8", "replace")
    if len(coded) > _MOST_LABEL_BYTES:
        raise Refused(
            422, f"A label has at most {_MOST_LABEL_BYTES} bytes: shorten it.", field="samples"
        )
    if label.isascii() and label.isdecimal():
        return f"n{int(label):0{_MOST_LABEL_BYTES}d}/"
    return f"x{coded.hex()}/"


def no_samples() -> dict[str, Any]:
    """A new, empty set of samples."""
    return {"set": make_id(), "files": [], "path": None, "next": 1}


def _make_model(site: Site, name: str) -> GivenModel:
    model = GivenModel(make_id(), name, now(), {}, no_samples())
    site.state.model(model.id).mkdir(mode=0o700)
    site.history.add_model(model)
    return model


def _forget(site: Site, model: GivenModel) -> None:
    site.history.forget_model(model.id)
    remove(site.state.model(model.id))


async def _describe(site: Site, model: GivenModel) -> Response:
    path = site.state.model(model.id) / MODEL
    try:
        about = await site.ask(
            {"do": "inspect", "model": str(path), "names": name_of_model(site, model)}
        )
    except BaseException:
        _forget(site, model)
        raise
    return _found(site, model, about)


def _found(site: Site, model: GivenModel, about: dict[str, Any]) -> Response:
    site.history.describe_model(model.id, about)
    if "missing" in about:
        wanted = ", ".join(about["missing"])
        raise Refused(
            422,
            f"{model.name} keeps weights in other files: give {wanted} too.",
            field="model",
            id=model.id,
            missing=about["missing"],
        )
    return JSONResponse(model_to_json(replace(model, about=about)))


def _with_samples(site: Site, model: GivenModel, samples: dict[str, Any]) -> Response:
    site.history.give_samples(model.id, samples)
    return JSONResponse(_samples_to_json(samples))


def _samples_to_json(samples: dict[str, Any]) -> dict[str, Any]:
    files = samples["files"]
    return {
        "count": len(files),
        "bytes": sum(one["bytes"] for one in files),
        "files": [one["name"] for one in files],
        "path": samples["path"],
    }
