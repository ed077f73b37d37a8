"""A library lives in one room: who owns each dependency, and that each is declared, pinned and used only there.

A new dependency enters here, in pyproject.toml and in constraints.txt, in one change.
"""

import re
import sys
import tomllib
from fnmatch import fnmatch

from tests.house.tree import PACKAGES, expect_none, read, sources

# import name -> (name in pyproject.toml, extra or "" for the base, the files that may import it; * crosses folders)
LIBRARIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "fastapi": ("fastapi", "", ("gateway/app.py", "gateway/api/*")),
    "starlette": ("fastapi", "", ("gateway/app.py", "gateway/api/*", "gateway/front.py", "gateway/guard.py")),
    "python_multipart": ("python-multipart", "", ("gateway/api/forms.py",)),
    "uvicorn": ("uvicorn", "", ("gateway/serve.py", "gateway/protocol.py")),
    "uvloop": ("uvloop", "", ("gateway/serve.py",)),
    "limits": ("limits", "", ("gateway/rates.py",)),
    "typer": ("typer", "", ("gateway/cli*",)),
    "click": ("typer", "", ("gateway/cli*",)),
    "zmq": ("pyzmq", "", ("gateway/hub.py", "worker/link.py")),
    "msgpack": ("msgpack", "", ("shared/wire.py",)),
    "pydantic": ("pydantic", "", ("gateway/*", "shared/*", "worker/*")),
    "pydantic_core": ("pydantic", "", ("gateway/*", "shared/*")),
    "pydantic_settings": ("pydantic-settings", "", ("gateway/settings.py",)),
    "structlog": ("structlog", "", ("shared/logs.py",)),
    "orjson": ("orjson", "", ("gateway/*",)),
    "pybase64": ("pybase64", "", ("gateway/responses.py", "gateway/uploads.py")),
    "httpx2": ("httpx2", "", ("gateway/fetch.py", "shared/store/hub.py")),
    "httpcore2": ("httpx2", "", ("gateway/fetch.py",)),
    "itsdangerous": ("itsdangerous", "", ("gateway/results.py",)),
    "prometheus_client": ("prometheus-client", "", ("gateway/metrics.py", "gateway/gauges.py")),
    "opentelemetry": ("opentelemetry-sdk", "telemetry", ("gateway/spans.py",)),
    "sqlalchemy": ("sqlalchemy", "", ("gateway/store/*",)),
    "alembic": ("alembic", "", ("gateway/store/*",)),
    "obstore": ("obstore", "s3", ("shared/store/s3.py",)),
    "huggingface_hub": ("huggingface-hub", "hub", ("shared/store/hub.py",)),
    "pynvml": ("nvidia-ml-py", "", ("shared/devices.py",)),
    "psutil": ("psutil", "", ("gateway/*", "worker/*")),
    "torch": ("torch", "worker", ("worker/*",)),
    "diffusers": ("diffusers", "worker", ("worker/*",)),
    "transformers": ("transformers", "worker", ("worker/*",)),
    "tokenizers": ("transformers", "worker", ("worker/*",)),
    "accelerate": ("accelerate", "worker", ("worker/*",)),
    "peft": ("peft", "worker", ("worker/*",)),
    "gguf": ("gguf", "worker", ("worker/*",)),
    "safetensors": ("safetensors", "worker", ("worker/*",)),
    "numpy": ("numpy", "worker", ("worker/*",)),
    "PIL": ("pillow", "worker", ("worker/images.py", "worker/embedded/*")),
    "isal": ("isal", "worker", ("worker/images.py",)),
}
# Ours, with the same kind of owner.
OURS = {
    "gateway.app": ("gateway/cli*", "gateway/serve.py"),
    "gateway.cli": ("gateway/cli*", "gateway/__main__.py"),
    "gateway.hub": ("gateway/app.py", "gateway/serving.py"),
    "gateway.metrics": ("gateway/*",),
    "worker.session": ("worker/__main__.py",),
}
# Declared, and yet no import of ours names it: who needs it.
UNIMPORTED = {
    "fastapi-swagger": "gateway/api/docs.py serves its files",
    "httptools": "uvicorn takes it",
    "uvloop": "uvicorn takes it",
    "aiosqlite": "sqlalchemy, by the address of the database",
    "gguf": "diffusers",
    "accelerate": "diffusers",
}


def project() -> dict[str, list[str]]:
    """Each extra's requirements by name, the base under ""."""
    table = tomllib.loads(read("pyproject.toml"))["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    return {group: [re.split(r"[\[<>=;~! ]", line)[0] for line in lines] for group, lines in groups.items()}


def may(path: str, owners: tuple[str, ...]) -> bool:
    return any(fnmatch(path, owner) for owner in owners)


def test_each_library_is_imported_only_by_its_owners() -> None:
    strangers, trespassers = set(), set()
    for source in sources():
        for name, line in source.imports():
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in PACKAGES:
                continue
            if top not in LIBRARIES:
                strangers.add(f"{source.path}:{line} {top}")
            elif not may(source.path, LIBRARIES[top][2]):
                trespassers.add(f"{source.path}:{line} {top}")
    expect_none(strangers, "imported, and not in the table of tests/house/test_libraries.py")
    expect_none(trespassers, "imported, and not by an owner in the table of tests/house/test_libraries.py")


def test_nothing_imports_the_top_of_the_house() -> None:
    wrong = {
        f"{source.path}:{line} {name}"
        for source in sources()
        for name, line in source.imports()
        if name in OURS and not may(source.path, OURS[name])
    }
    expect_none(wrong, "imported by a file that may not")


def test_each_library_in_the_table_is_declared_where_the_table_says() -> None:
    declared = project()
    missing = [name for name, (dist, extra, _) in LIBRARIES.items() if dist not in declared[extra]]
    expect_none(missing, "in the table and not declared in pyproject.toml where the table says")


def test_each_declared_library_is_used_or_its_use_is_known() -> None:
    used = {
        LIBRARIES[top][0]
        for source in sources()
        for name, _ in source.imports()
        if (top := name.split(".")[0]) in LIBRARIES
    }
    declared = {dist for extra in ("", "gateway", "worker") for dist in project()[extra]}
    expect_none(declared - used - set(UNIMPORTED), "declared in pyproject.toml and imported by nothing")


def test_each_declared_library_is_pinned_exactly() -> None:
    pins = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    loose = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin)]
    expect_none(loose, "not an exact pin")
    pinned = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    wanted = {dist for names in project().values() for dist in names} - {"replicast"}
    expect_none(wanted - pinned, "declared and not pinned in constraints.txt")
    assert "torch==2.13.0" in pins
