"""What messages say to install can be installed: the package is on no index."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

from fptq_onnx import install_advice
from fptq_onnx.install_advice import find_checkout

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = ("export", "serve", "lm-eval", "kserve", "ray")


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_checkout_is_named(extra: str) -> None:
    said = install_advice.install_advice(extra)
    assert said.endswith(f"pip install '{REPOSITORY}[{extra}]'")
    assert f"{extra} = [" in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def test_torch_for_cpus_comes_first() -> None:
    said = install_advice.install_advice("export")
    wanted = r"pip install 'torch==[\d.]+' --index-url https://download\.pytorch\.org/whl/cpu, then"
    assert re.match(wanted, said)
    assert "torch" not in install_advice.install_advice("serve")


def test_without_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As from a wheel: imported from site-packages, and nobody knows where the sources are."""
    monkeypatch.setattr(install_advice, "__file__", str(tmp_path / "fptq_onnx" / "x.py"))

    class Installed:
        url = ""

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return self.url and f'{{"url": "{self.url}"}}'

        requires = ()

    found = Installed()
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    said = install_advice.install_advice("serve")
    assert said == "pip install '.[serve]' in the checkout of fptq-onnx"
    found.url = (tmp_path / "gone").as_uri()
    assert find_checkout() is None
    place = tmp_path / "mit Leerzeichen ä"
    place.mkdir()
    (place / "pyproject.toml").write_text('[project]\nname = "fptq-onnx"\n', encoding="utf-8")
    found.url = place.as_uri()  # with %20 in it
    assert find_checkout() == place


def test_nothing_says_what_no_index_has() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    wrong = re.compile(r"pip install\s+(--?\S+\s+)*['\"`]?fptq-onnx")
    found = [
        str(path)
        for path in names
        if path.suffix in (".py", ".md", ".toml", ".txt", "")
        and (REPOSITORY / path).is_file()
        and wrong.search((REPOSITORY / path).read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found
