"""GET /api/about: what this packlight and this machine can do."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from packlight.api import targets
from packlight.measure.device import device_of
from packlight.plan.goal import PRESETS
from packlight.serve.site import site_of
from packlight.version import __version__


async def show_about(request: Request) -> Response:
    """Version, devices, presets, and limits."""
    site = site_of(request)
    devices = []
    for target in targets():
        device = device_of(target)
        devices.append(
            {
                "name": target.name,
                "title": target.title,
                "runtime": target.runtime,
                "fast": target.fast,
                "avoid": target.avoid,
                "note": target.note,
                "measured_here": device.measured,
                "why_not_here": device.note,
            }
        )
    return JSONResponse(
        {
            "version": __version__,
            "devices": devices,
            "presets": [{"name": one.name, "about": one.about} for one in PRESETS],
            "upload_limit_bytes": site.upload_limit,
            "paths": site.paths,
        }
    )
