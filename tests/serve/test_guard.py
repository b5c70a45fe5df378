"""Every route and method is held to host, origin, key, kind of content, and the headers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.routing import Route

from packlight.serve.app import ROUTES
from packlight.serve.guard import HEADERS

JSON = {"content-type": "application/json"}
ID = "0" * 32

EVERY = [
    (method, re.sub(r"{\w+:path}", "page.js", re.sub(r"{k:int}|{\w+}", ID, route.path)))
    for route in ROUTES
    for method in sorted(route.methods or ())
]
BEHIND = [one for one in EVERY if one != ("GET", f"/open/{ID}")]


def address(path: str) -> str:
    return path.replace(f"/files/{ID}/{ID}", "/files/model/0").replace(f"/try/{ID}", "/try/0")


def ask(browser: Any, method: str, path: str, **headers: str) -> Any:
    return browser.client.request(
        method, address(path), headers={**JSON, **headers}, follow_redirects=False
    )


def test_all_routes_of_the_application_are_in_this_test(browser: Any) -> None:
    routes = browser.app.app.routes
    assert all(isinstance(route, Route) for route in routes)
    assert {route.path for route in routes} == {route.path for route in ROUTES}
    assert len(EVERY) >= len(routes)


def test_each_route_is_reached_by_its_own_page(browser: Any, no_child: Any) -> None:
    for method, path in EVERY:
        status = ask(browser, method, path).status_code
        assert status not in (401, 403, 405, 415, 421, 500), (method, path, status)


def test_no_route_answers_without_the_key(browser: Any, no_child: Any) -> None:
    for cookie in (None, "", "x" * 43, browser.door.session[:-1]):
        browser.client.cookies.clear()
        if cookie is not None:
            browser.client.cookies.set(browser.door.cookie, cookie)
        for method, path in [*BEHIND, ("GET", "/nowhere"), ("OPTIONS", "/api/jobs")]:
            answer = ask(browser, method, path)
            assert answer.status_code == 401, (method, path)
            if method != "HEAD":
                assert "Open the link that packlight serve printed" in answer.text
    assert not no_child


def test_no_route_answers_under_another_name(browser: Any, no_child: Any) -> None:
    for host in ("evil.example:8765", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8765.evil", ""):
        for method, path in EVERY:
            assert ask(browser, method, path, host=host).status_code == 421, (host, method, path)
    assert ask(browser, "GET", "/", host="LOCALHOST:8765").status_code == 200


def test_no_route_answers_another_origin(browser: Any, no_child: Any) -> None:
    for name, value in (
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:9999"),
        ("origin", "http://localhost:8765"),  # another origin than that of the Host sent
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ):
        for method, path in EVERY:
            assert ask(browser, method, path, **{name: value}).status_code == 403, (value, path)
    assert ask(browser, "GET", "/", origin="http://127.0.0.1:8765").status_code == 200
    assert not no_child


def test_two_hosts_are_none(browser: Any) -> None:
    twice = [("host", "127.0.0.1:8765"), ("host", "evil.example")]
    assert browser.client.request("GET", "/", headers=twice).status_code == 421


def test_a_form_of_another_site_changes_nothing(browser: Any, no_child: Any) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        for method, path in EVERY:
            if method not in ("GET", "HEAD"):
                answer = ask(browser, method, path, **{"content-type": kind})
                assert answer.status_code == 415, (method, path, kind)
    assert not no_child


def test_every_answer_has_the_headers(browser: Any, no_child: Any) -> None:
    answers = [ask(browser, method, path) for method, path in EVERY]
    answers += [ask(browser, "GET", "/nowhere"), ask(browser, "PUT", "/api/jobs")]
    answers += [ask(browser, "GET", "/", host="evil.example")]
    browser.client.cookies.clear()
    answers.append(ask(browser, "GET", "/"))
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (answer.url, name)


def test_a_fault_has_the_headers_too_and_no_traceback(
    browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("packlight.serve.about.targets", fail)
    answer = browser.get("/api/about")
    assert answer.status_code == 500
    assert answer.json()["error"] == "This is a fault in packlight (RuntimeError)."
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_the_link_is_good_for_one_use(browser: Any) -> None:
    browser.client.cookies.clear()
    told: list[str] = []
    browser.door.used = told.append
    link = f"/open/{browser.door.link}"
    # Programs that look at links before people do must not use it up.
    assert ask(browser, "HEAD", link).status_code == 401
    first = ask(browser, "GET", link)
    assert first.status_code == 303
    assert first.headers["location"] == "/"
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "domain" not in cookie
    # Whoever holds the key may come again; another browser may not.
    assert ask(browser, "GET", link).status_code == 303
    browser.client.cookies.clear()
    again = ask(browser, "GET", link)
    assert again.status_code == 401
    assert "used already" in again.text
    assert "set-cookie" not in again.headers
    # The next link is another one, and was told.
    assert told == [browser.door.link]
    assert ask(browser, "GET", f"/open/{told[0]}").status_code == 303


def test_keys_and_links_differ_from_server_to_server(open_browser: Callable[..., Any]) -> None:
    first = open_browser().door
    second = open_browser().door
    assert len({first.session, first.link, second.session, second.link}) == 4


def test_files_of_the_page_are_those_that_were_listed(browser: Any, state: Any) -> None:
    assert browser.get("/").text == "this is index.html"
    assert browser.get("/").headers["content-type"] == "text/html; charset=utf-8"
    wasm = browser.get("/ort/ort.wasm")
    assert wasm.headers["content-type"] == "application/wasm"
    for path in (
        "/assets/../../state/history.sqlite",
        "/assets/%2e%2e/index.html",
        "/assets/..%2f..%2fstate/lock",
        "/assets//etc/passwd",
        "/assets/page.js%00",
        "/assets/",
        "/index.html",
    ):
        assert browser.get(path).status_code == 404, path


def test_no_web_socket_is_answered(browser: Any) -> None:
    from starlette.websockets import WebSocketDisconnect

    with (
        pytest.raises(WebSocketDisconnect),
        browser.client.websocket_connect("ws://127.0.0.1:8765/api/jobs"),
    ):
        pass
