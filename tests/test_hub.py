"""The hub is asked once and briefly; the cache first; its silence is a reason, not a wait."""

import threading
from pathlib import Path

import pytest

from privlm import hub

pytestmark = pytest.mark.torch_free

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, online."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path


def put_snapshot(cache: Path) -> Path:
    repo = cache / "models--someone--something"
    snapshot = repo / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    return snapshot


def refuse(url, timeout):
    raise ConnectionError("no network")


def test_complete_cache_is_taken_without_the_network(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    snapshot = put_snapshot(cache)
    assert hub.find_snapshot("someone/something", "model", lambda folder: True) == snapshot


def test_incomplete_cache_without_network_is_not_at_hand(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    put_snapshot(cache)
    with pytest.raises(hub.NotAtHandError, match="ConnectionError"):
        hub.find_snapshot("someone/something", "model", lambda folder: False)


def test_offline_mode_never_asks(cache, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: asked.append(url))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(hub.NotAtHandError, match="HF_HUB_OFFLINE"):
        hub.find_snapshot("someone/something", "model", lambda folder: True)
    assert not asked


def test_silent_resolver_is_not_waited_for(cache, monkeypatch):
    released = threading.Event()

    def wait_and_refuse(url, timeout):
        released.wait()
        refuse(url, timeout)

    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", wait_and_refuse)
    try:
        with pytest.raises(hub.NotAtHandError, match="no answer"):
            hub.find_snapshot("someone/something", "model", lambda folder: True)
    finally:
        released.set()
