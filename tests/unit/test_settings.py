"""Settings: where they come from, in which order, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import serve
from gateway.settings import Settings, api_key, load
from shared.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "replicast.toml"
    path.write_text('port = 1001\nmodel = ["stub", "other=stub?steps=2"]\nlog_level = "debug"\n')
    return path


def test_a_flag_goes_over_a_variable_over_the_file_over_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load({}).port == 8000
    assert load({}, config).port == 1001
    monkeypatch.setenv("REPLICAST_PORT", "1002")
    assert load({}, config).port == 1002
    assert load({"port": 1003}, config).port == 1003
    assert load({"port": None}, config).log_level == "debug"


def test_the_file_may_be_named_by_a_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICAST_CONFIG", str(config))
    assert load({}).port == 1001


def test_models_come_as_a_list_or_as_words(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [model.id for model in load({}, config).models()] == ["stub", "other"]
    monkeypatch.setenv("REPLICAST_MODEL", "stub, mine=stub?step_seconds=0.5&poison=x")
    first, second = load({}).models()
    assert (first.id, second.id) == ("stub", "mine")
    assert second.options == {"step_seconds": 0.5, "poison": "x"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prot = 1", "'prot' in .* is no setting; did you mean 'port'"),
        ("[models]\nx = 1", "'models' .* did you mean 'model'"),
        ("port = 99999", "--port"),
        ('port = "many"', "--port"),
        ("port = ", "not TOML"),
        ('device = "tpu"', "--device"),
        ('public_url = "ftp://x"', "--public-url: expected http"),
        ('public_url = "http://user:secret@x"', "--public-url: expected http"),
        ('public_url = "https://x/?a=b"', "--public-url: expected http"),
        ('public_url = "https://"', "--public-url"),
        ('allowed_hosts = ["img.example:8000"]', "'img.example:8000' is no name of a host"),
        ('allowed_hosts = ["http://img.example"]', "no name of a host"),
        ('allowed_hosts = ["img.*"]', "no name of a host"),
        ('allowed_origins = ["*"]', r"'\*' is no origin"),
        ('allowed_origins = ["null"]', "'null' is no origin"),
        ('allowed_origins = ["https://a.example/app"]', "is no origin"),
        ("key_max_requests = 0", "--key-max-requests"),
        ("key_images_per_minute = -1", "--key-images-per-minute"),
        ("suspect_after_pings = 9", "suspect_after_pings"),
        ("model = []", "no model"),
    ],
)
def test_a_wrong_file_is_told_by_name(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load({}, path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, tmp_path / "none.toml")


def test_a_mistyped_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICAST_NUM_GPU", "2")
    with pytest.raises(ConfigError, match="did you mean 'num_gpus'"):
        load({})


def test_names_and_sites_are_kept_as_a_browser_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICAST_ALLOWED_HOSTS", "Img.Example., *.LAB.example *")
    monkeypatch.setenv("REPLICAST_ALLOWED_ORIGINS", "https://App.example:443/ http://[::1]:3000 http://a.example:443")
    chosen = load({"public_url": "HTTPS://Gpu.Example:443/Images/"})
    assert chosen.allowed_hosts == ("img.example", "*.lab.example", "*")
    assert chosen.allowed_origins == ("https://app.example", "http://[::1]:3000", "http://a.example:443")
    assert chosen.public_url == "https://gpu.example/Images"
    assert load({"public_url": "http://10.0.0.1:8000"}).public_url == "http://10.0.0.1:8000"


def test_a_clients_key_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_key() is None
    monkeypatch.setenv("REPLICAST_API_KEY", " rc_abc\n")
    load({})
    assert api_key() == "rc_abc"
    monkeypatch.setenv("REPLICAST_API_KEY", "two words")
    with pytest.raises(ConfigError, match="does not hold a key"):
        api_key()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({}).port = 1  # type: ignore[misc]


@pytest.mark.parametrize("source", ["shape", "/nowhere", "a=", "stub?x", "tests"])
def test_a_source_that_is_none_is_told(source: str) -> None:
    with pytest.raises(ConfigError):
        load({"model": (source,)}).models()


def test_the_nearest_source_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        load({"model": ("shape",)}).models()


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="name=source"):
        load({"model": ("stub", "stub?steps=2")}).models()


def test_a_diffusers_folder_is_served_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-klein"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    (model,) = load({"model": (str(folder),)}).models()
    assert (model.id, model.backend, model.source) == ("my-klein", "diffusion", str(folder))


def test_pretended_devices_play_every_model_by_the_stub() -> None:
    (model,) = load({"device": "stub:3"}).models()
    assert (model.id, model.backend) == ("shapes", "stub")


def test_every_flag_of_serve_is_a_setting() -> None:
    flags = set(serve.__annotations__) - {"return", "config"}
    assert flags <= set(Settings.model_fields)
