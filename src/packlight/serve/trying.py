"""Routes by which the page runs the original and the compressed model itself."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from packlight.proof.golden import GoldenSample, read_golden
from packlight.proof.manifest import GOLDEN, MANIFEST, MOST_BYTES, PAGE, Manifest, read_manifest
from packlight.samples.naming import is_audio, picture_layout, waveform_axis
from packlight.samples.preprocess import parse_preprocess
from packlight.serve.errors import Refused
from packlight.serve.history import Job
from packlight.serve.job_routes import find_done
from packlight.serve.site import Site, site_of
from packlight.serve.state import plain_file
from packlight.serve.work import MODEL
from packlight.tensors import TensorSpec

_BYTES = "application/octet-stream"
_NO_DATA = {MODEL, GOLDEN, PAGE, "recipe.yaml", "report.html", "report.json"}
_WINDOWS = re.compile(r"windows? of (\d+) samples at (\d+) Hz")


async def show_trying(request: Request) -> Response:
    """GET /api/jobs/{id}/try: inputs and outputs, what they take, and where the files are."""
    site = site_of(request)
    job = find_done(request)
    model = site.known_model(job.model)
    manifest = await asyncio.to_thread(_manifest, site, job)
    evidence = job.outcome or {}
    return JSONResponse(
        {
            "inputs": model.about["inputs"],
            "outputs": model.about["outputs"],
            "samples": manifest.golden.samples if manifest.golden else 0,
            "why_no_samples": manifest.note,
            "kinds": {
                one["name"]: _kind(
                    TensorSpec(one["name"], one["dtype"], tuple(one["shape"])),
                    evidence.get("samples", ""),
                )
                for one in model.about["inputs"]
            },
            "files": {
                which: {
                    "url": f"/api/jobs/{job.id}/files/{which}.onnx",
                    "data": [
                        {"path": path.name, "url": f"/api/jobs/{job.id}/files/{which}/{number}"}
                        for number, path in enumerate(_data(site, job, which))
                    ],
                }
                for which in ("original", "model")
            },
        }
    )


async def show_golden(request: Request) -> Response:
    """GET /api/jobs/{id}/try/{k}: what went in, and what each model gave where it was measured."""
    site = site_of(request)
    job = find_done(request)
    samples = await asyncio.to_thread(_golden, site, job)
    number = request.path_params["k"]
    if number >= len(samples):
        raise Refused(404, f"There are {len(samples)} samples to try, counted from 0.")
    one = samples[number]
    parts = {"inputs": one.feeds, "original": one.original, "compressed": one.compressed}
    return JSONResponse(
        {
            part: {name: _array(array) for name, array in arrays.items()}
            for part, arrays in parts.items()
        }
    )


async def send_model(request: Request) -> Response:
    """GET /api/jobs/{id}/files/original.onnx and model.onnx."""
    site = site_of(request)
    job = find_done(request)
    path = _folder(site, job, request.path_params["which"]) / MODEL
    return FileResponse(plain_file(path, site.state.folder), media_type=_BYTES)


async def send_data(request: Request) -> Response:
    """GET /api/jobs/{id}/files/original/{k} and model/{k}: external data, by number."""
    site = site_of(request)
    job = find_done(request)
    data = _data(site, job, request.path_params["which"])
    number = request.path_params["k"]
    if number >= len(data):
        raise Refused(404, "The model has no such data.")
    return FileResponse(plain_file(data[number], site.state.folder), media_type=_BYTES)


def _folder(site: Site, job: Job, which: str) -> Path:
    if which == "original":
        return site.state.model(job.model)
    if which == "model":
        return site.state.result(job.id)
    raise Refused(404, "There are two models: original.onnx and model.onnx.")


def _data(site: Site, job: Job, which: str) -> list[Path]:
    """The external data beside a model, in the order of their names."""
    folder = _folder(site, job, which)
    if which == "original":
        return sorted(path for path in folder.iterdir() if path.is_file() and path.name != MODEL)
    names = {file.name for file in _manifest(site, job).files} - _NO_DATA
    return [folder / name for name in sorted(names)]


def _manifest(site: Site, job: Job) -> Manifest:
    path = plain_file(site.state.result(job.id) / MANIFEST, site.state.folder)
    if path.stat().st_size > MOST_BYTES:
        raise Refused(409, "The manifest of this job is too large: compress the model again.")
    return read_manifest(path.read_bytes(), path)


def _golden(site: Site, job: Job) -> tuple[GoldenSample, ...]:
    entry = _manifest(site, job).golden
    if entry is None:
        return ()
    path = plain_file(site.state.result(job.id) / GOLDEN, site.state.folder)
    return read_golden(path, entry)


def _array(array: NDArray[Any]) -> dict[str, Any]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": data}


def _kind(spec: TensorSpec, described: str) -> dict[str, Any]:
    """What an input takes, as far as its shape and the samples that were read say."""
    picture = picture_layout(spec)
    if picture is not None:
        prepared = described.rpartition("prepared as ")[2] if "prepared as " in described else ""
        kind: dict[str, Any] = {
            "kind": "picture",
            "height": picture.height,
            "width": picture.width,
            "channels": picture.channels,
            "channels_first": picture.channels_first,
            "preprocess": None,
            "mean": None,
            "std": None,
        }
        if prepared:
            normalization = parse_preprocess(prepared, channels=picture.channels)
            numbers = {"mean": normalization.mean, "std": normalization.std}
            kind |= {"preprocess": normalization.name, **numbers}
        return kind
    sound = _WINDOWS.search(described)
    if waveform_axis(spec) is not None and (sound is not None or is_audio(spec)):
        length, rate = (int(sound[1]), int(sound[2])) if sound else (None, None)
        return {"kind": "sound", "length": length, "rate": rate}
    return {"kind": "numbers"}
