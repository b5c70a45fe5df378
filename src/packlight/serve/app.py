"""The server as an application: every route that there is, behind the guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from packlight.errors import PacklightError
from packlight.serve import about, job_routes, models, page, trying
from packlight.serve.errors import Refused
from packlight.serve.guard import Door, Guard, answer_refused
from packlight.serve.history import History
from packlight.serve.jobs import Jobs
from packlight.serve.site import Site
from packlight.serve.state import State, remove

ROUTES = (
    Route("/open/{token}", page.open_door, methods=["GET"]),
    Route("/", page.show_page, methods=["GET"]),
    Route("/assets/{name:path}", page.show_page, methods=["GET"]),
    Route("/ort/{name:path}", page.show_page, methods=["GET"]),
    Route("/api/about", about.show_about, methods=["GET"]),
    Route("/api/models", models.give_model, methods=["POST"]),
    Route("/api/models/path", models.give_model_path, methods=["POST"]),
    Route("/api/models/{id}", models.show_model, methods=["GET"]),
    Route("/api/models/{id}/files", models.give_data, methods=["POST"]),
    Route("/api/models/{id}/samples", models.give_sample, methods=["POST"]),
    Route("/api/models/{id}/samples", models.remove_samples, methods=["DELETE"]),
    Route("/api/models/{id}/samples/check", models.check_samples, methods=["POST"]),
    Route("/api/models/{id}/samples/path", models.give_samples_path, methods=["POST"]),
    Route("/api/forecast", job_routes.forecast, methods=["POST"]),
    Route("/api/jobs", job_routes.add_job, methods=["POST"]),
    Route("/api/jobs", job_routes.list_jobs, methods=["GET"]),
    Route("/api/jobs/{id}", job_routes.show_job, methods=["GET"]),
    Route("/api/jobs/{id}", job_routes.remove_job, methods=["DELETE"]),
    Route("/api/jobs/{id}/events", job_routes.watch_job, methods=["GET"]),
    Route("/api/jobs/{id}/cancel", job_routes.cancel_job, methods=["POST"]),
    Route("/api/jobs/{id}/report", job_routes.show_report, methods=["GET"]),
    Route("/api/jobs/{id}/download", job_routes.download, methods=["GET"]),
    Route("/api/jobs/{id}/try", trying.show_trying, methods=["GET"]),
    Route("/api/jobs/{id}/try/{k:int}", trying.show_golden, methods=["GET"]),
    Route("/api/jobs/{id}/files/{which}.onnx", trying.send_model, methods=["GET"]),
    Route("/api/jobs/{id}/files/{which}/{k:int}", trying.send_data, methods=["GET"]),
)


def make_app(
    state: State,
    door: Door,
    *,
    upload_limit: int,
    paths: bool = True,
    files: dict[str, Path] | None = None,
    started: Callable[[], None] = lambda: None,
) -> Guard:
    """An application on a state folder. files: of the page. started: called once it can work."""

    @contextlib.asynccontextmanager
    async def live(app: Starlette) -> AsyncIterator[None]:
        history = History(state.history)
        _tidy(state, history)
        jobs = Jobs(state, history)
        app.state.site = Site(state, history, jobs, upload_limit, paths)
        jobs.start()
        started()
        yield
        await jobs.stop()
        history.close()

    app = Starlette(
        routes=list(ROUTES),
        exception_handlers={
            Refused: _answer,
            PacklightError: _answer_error,
            HTTPException: _answer_http,
            Exception: _answer_fault,
        },
        lifespan=live,
    )
    app.router.redirect_slashes = False
    app.state.door, app.state.page = door, page.list_page() if files is None else files
    # Around all of it, so that answers to faults pass it too.
    return Guard(app, door)


def _tidy(state: State, history: History) -> None:
    """Remove what no job needs, and what a server left that died."""
    for model in history.unused_models():
        history.forget_model(model)
        remove(state.model(model))
    jobs = history.jobs()
    known = {"models": {job.model for job in jobs}, "jobs": {job.id for job in jobs}}
    for room, names in known.items():
        for path in (state.folder / room).iterdir():
            if path.name not in names:
                remove(path)
    for job in jobs:
        remove(state.job(job.id) / "work")
        if job.state != "queued":
            remove(state.job_samples(job.id))


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return answer_refused(request, error)


async def _answer_error(request: Request, error: Exception) -> Response:
    return answer_refused(request, Refused(409, str(error)))


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {
        404: "There is nothing at that address.",
        405: f"{request.method} is not possible there.",
    }.get(error.status_code, error.detail)
    return answer_refused(request, Refused(error.status_code, sentence))


async def _answer_fault(request: Request, error: Exception) -> Response:
    sentence = f"This is a fault in packlight ({type(error).__name__})."
    return answer_refused(request, Refused(500, sentence))
