"""Host, Origin, content type and method together, on the whole gateway: what gets in, and what is said to the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from tests.http.conftest import Gateway, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATE = "/v1/images/generations"
KINDS = {
    "json": "application/json",
    "text": "text/plain",
    "form": "application/x-www-form-urlencoded",
    "multi": "multipart/form-data; boundary=x",
    "none": "",
}
# What is asked is a generation with an empty prompt: 400 is said by the route itself, which has read the body.
# A page from elsewhere gets no further than 403, under a name that is not ours nobody gets past 421.
TABLE = """
host                origin                     site         GET HEAD json text form multi none PUT OPTIONS
127.0.0.1:8000      -                          -            405 405  400  400  400  415   400  405 204
127.0.0.1:8000      -                          none         405 405  400  400  400  415   400  405 204
127.0.0.1:8000      -                          cross-site   405 405  403  403  403  403   403  403 403
127.0.0.1:8000      http://127.0.0.1:8000      same-origin  405 405  400  415  415  415   415  405 204
127.0.0.1:8000      http://localhost:8000      same-site    403 403  403  403  403  403   403  403 403
127.0.0.1:8000      http://127.0.0.1:3000      same-site    403 403  403  403  403  403   403  403 403
127.0.0.1:8000      http://evil.test           cross-site   403 403  403  403  403  403   403  403 403
127.0.0.1:8000      null                       cross-site   403 403  403  403  403  403   403  403 403
127.0.0.1:8000      null                       -            403 403  403  403  403  403   403  403 403
127.0.0.1:8000      https://public.example     cross-site   405 405  400  415  415  415   415  405 204
127.0.0.1:8000      https://app.example        cross-site   405 405  400  415  415  415   415  405 204
public.example      https://public.example     same-origin  405 405  400  415  415  415   415  405 204
img.example         -                          -            405 405  400  400  400  415   400  405 204
a.lab.example:8000  http://a.lab.example:8000  same-origin  405 405  400  415  415  415   415  405 204
a.lab.example:8000  http://b.lab.example:8000  same-site    403 403  403  403  403  403   403  403 403
[::1]:8000          http://[::1]:8000          same-origin  405 405  400  415  415  415   415  405 204
localhost:8000      http://localhost:8000      same-origin  405 405  400  415  415  415   415  405 204
evil.test:8000      -                          -            421 421  421  421  421  421   421  421 421
evil.test:8000      http://evil.test:8000      same-origin  421 421  421  421  421  421   421  421 421
evil.test:8000      https://app.example        cross-site   421 421  421  421  421  421   421  421 421
"""


def cases() -> Iterator[tuple[str, str, str, str, int]]:
    (_, _, _, *columns), *rows = (line.split() for line in TABLE.strip().splitlines())
    for host, origin, site, *statuses in rows:
        for column, status in zip(columns, statuses, strict=True):
            yield host, origin, site, column, int(status)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(root: Path) -> AsyncIterator[Gateway]:
    async with running(
        root / "gate",
        public_url="https://Public.example:443/images/",
        allowed_hosts=("img.example", "*.lab.example"),
        allowed_origins=("https://app.example/",),
    ) as made:
        yield made


async def test_the_table_is_a_large_one() -> None:
    assert len(list(cases())) >= 150


@pytest.mark.parametrize(("host", "origin", "site", "column", "status"), list(cases()))
async def test_it_is_as_the_table_says(
    gateway: Gateway, host: str, origin: str, site: str, column: str, status: int
) -> None:
    headers = {"host": host, "origin": origin, "sec-fetch-site": site}
    headers = {name: value for name, value in headers.items() if value != "-"}
    if column in KINDS:
        method, headers["content-type"] = "POST", KINDS[column]
    else:
        method = column
    content = b'{"prompt": ""}' if method in ("POST", "PUT") else None
    answer = await gateway.http.request(method, GENERATE, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    if status >= 400 and method != "HEAD":
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert host not in answer.text
    allowed = origin if origin == "https://app.example" and status != 421 else None
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert not gateway.script.runs


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/nowhere"]
)
async def test_no_path_is_there_for_another_name_or_page(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        misled = await gateway.http.request(method, path, headers={"host": "evil.test:8000"})
        assert (misled.status_code, misled.json()["error"]["code"]) == (421, "misdirected_request")
        foreign = await gateway.http.request(method, path, headers={"origin": "http://evil.test"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
        for answer in (misled, foreign):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_an_allowed_page_may_ask_first_and_read_what_went_wrong(gateway: Gateway) -> None:
    page = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}
    first = page | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = await gateway.http.options(GENERATE, headers=first)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-headers"] == "authorization"
    for path, status in ((GENERATE, 400), ("/nowhere", 404)):
        answer = await gateway.http.post(path, json={"prompt": ""}, headers=page)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


async def test_without_allowed_origins_nothing_speaks_of_them(root: Path) -> None:
    async with running(root / "plain") as gateway:
        asked = {"origin": "http://127.0.0.1:8000", "access-control-request-method": "POST"}
        for headers in ({}, asked):
            for method in ("GET", "OPTIONS"):
                answer = await gateway.http.request(method, "/v1/models", headers=headers)
                assert answer.status_code in (200, 204)
                assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


async def test_what_a_proxy_may_add_changes_nothing(gateway: Gateway) -> None:
    added = {"x-forwarded-host": "img.example", "x-forwarded-for": "127.0.0.1", "forwarded": "host=img.example"}
    answer: httpx2.Response = await gateway.http.get("/livez", headers=added | {"host": "evil.test"})
    assert answer.status_code == 421
