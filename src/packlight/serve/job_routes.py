"""Routes of jobs: asking for one, watching it, and what it wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from packlight.report.html import POLICY
from packlight.serve.bodies import read_json
from packlight.serve.errors import Refused
from packlight.serve.history import GivenModel, Job
from packlight.serve.models import model_file, names_of, samples_path
from packlight.serve.settings import read_settings
from packlight.serve.site import Site, site_of
from packlight.serve.state import plain_file
from packlight.serve.zipped import zip_folder
from packlight.strict_json import read_json as read_json_file

_MOST_REPORT_BYTES = 64 << 20
_REPORT_POLICY = f"{POLICY}; frame-ancestors 'none'; sandbox"


async def forecast(request: Request) -> Response:
    """POST /api/forecast."""
    site = site_of(request)
    _, _, found = await _forecast(site, await read_json(request))
    return JSONResponse(found)


async def add_job(request: Request) -> Response:
    """POST /api/jobs: what is asked is judged first, so that what is wrong is said at once."""
    site = site_of(request)
    model, settings, _ = await _forecast(site, await read_json(request))
    model = site.known_model(model.id)  # its samples may have changed meanwhile
    job = site.jobs.add(model, settings, samples_path(site, model), names_of(site, model))
    return JSONResponse({"id": job.id}, 201)


async def list_jobs(request: Request) -> Response:
    """GET /api/jobs."""
    jobs = site_of(request).jobs
    return JSONResponse([jobs.show(job, whole=False) for job in jobs.list()])


async def show_job(request: Request) -> Response:
    """GET /api/jobs/{id}: with the report, once there is one."""
    site = site_of(request)
    job = find_job(request)
    shown = site.jobs.show(job)
    if job.state == "done":
        path = plain_file(site.state.result(job.id) / "report.json", site.state.folder)
        shown["evidence"] = await asyncio.to_thread(read_json_file, path, _MOST_REPORT_BYTES)
    return JSONResponse(shown)


async def watch_job(request: Request) -> Response:
    """GET /api/jobs/{id}/events: server-sent events until the job is over."""
    jobs = site_of(request).jobs
    job = find_job(request)

    async def events() -> AsyncIterator[str]:
        async for shown in jobs.watch(job.id):
            # A comment shows that the connection lives.
            yield ": \n\n" if shown is None else f"event: job\ndata: {json.dumps(shown)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def cancel_job(request: Request) -> Response:
    """POST /api/jobs/{id}/cancel."""
    await read_json(request)
    jobs = site_of(request).jobs
    return JSONResponse(jobs.show(await jobs.cancel(find_job(request))))


async def remove_job(request: Request) -> Response:
    """DELETE /api/jobs/{id}."""
    await site_of(request).jobs.remove(find_job(request))
    return Response(status_code=204)


async def show_report(request: Request) -> Response:
    """GET /api/jobs/{id}/report: the page that was written, which runs nothing."""
    site = site_of(request)
    job = find_done(request)
    path = plain_file(site.state.result(job.id) / "report.html", site.state.folder)
    headers = {"Content-Security-Policy": _REPORT_POLICY}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


async def download(request: Request) -> Response:
    """GET /api/jobs/{id}/download: the folder that was written, as a zip file."""
    site = site_of(request)
    job = find_done(request)
    folder = site.state.result(job.id)
    plain_file(folder / "report.json", site.state.folder)
    stem = job.name.removesuffix(".onnx")
    safe = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_") else "_"
                   for sign in stem)[:80] or "model"  # fmt: skip
    disposition = (
        f'attachment; filename="{safe}.packed.zip"; '
        f"filename*=UTF-8''{quote(stem[:80], safe='')}.packed.zip"
    )
    return StreamingResponse(
        zip_folder(folder, f"{safe}.packed"),
        media_type="application/zip",
        headers={"Content-Disposition": disposition},
    )


def find_job(request: Request) -> Job:
    """The job that a path names. Raises Refused, 404."""
    return site_of(request).jobs.find(request.path_params["id"])


def find_done(request: Request) -> Job:
    """The same, if it wrote something. Raises Refused, 404 or 409."""
    job = find_job(request)
    if job.state != "done":
        raise Refused(409, f"This job wrote nothing: it is {job.state}.")
    return job


async def _forecast(
    site: Site, body: dict[str, Any]
) -> tuple[GivenModel, dict[str, Any], dict[str, Any]]:
    model = site.known_model(body.get("model"))
    settings = read_settings(body.get("settings", {}))
    path, data = model_file(site, model), samples_path(site, model)
    asked = {"do": "forecast", "model": str(path), "data": data, "settings": settings}
    return model, settings, await site.ask({**asked, "names": names_of(site, model)})
