"""What goes into the wheel and the source archive, as hatchling itself would choose it."""

from pathlib import PurePosixPath

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.house.tree import PACKAGES, ROOT, expect_none, files


def chosen(builder: type[WheelBuilder] | type[SdistBuilder]) -> set[str]:
    return {PurePosixPath(file.distribution_path).as_posix() for file in builder(str(ROOT)).recurse_included_files()}


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else() -> None:
    ours = {name for name in files() if name.split("/")[0] in PACKAGES}
    boxed = chosen(WheelBuilder)
    expect_none(ours - boxed, "not in the wheel")
    expect_none(boxed - ours, "in the wheel and not ours")


def test_the_wheel_holds_the_page_and_the_embedded_model() -> None:
    boxed = chosen(WheelBuilder)
    assert "gateway/web/index.html" in boxed
    assert [name for name in boxed if name.startswith("worker/embedded/") and name.endswith(".safetensors")] != []


def test_the_source_archive_holds_all_that_make_needs() -> None:
    boxed = chosen(SdistBuilder)
    unneeded = {".gitattributes", ".editorconfig"}
    always = {"pyproject.toml", ".gitignore"}  # the builder adds these by itself
    wanted = set(files()) - unneeded - always
    expect_none(wanted - boxed, "not in the source archive")
    expect_none(boxed - set(files()) - {"PKG-INFO"}, "in the source archive and not ours")
