"""What a wheel holds, and what starting the command line loads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ivgcli import __version__
from ivgcli.recipes import shipped_guides

ROOT = Path(__file__).parent.parent


def python(*arguments: str, cwd: Path = ROOT) -> str:
    """Run Python, which has to end well, and return what it printed."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the project, built without a network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    python("-m", "pip", "wheel", *quiet, "--no-index", "--wheel-dir", str(folder), ".")
    [built] = folder.glob("*.whl")
    return built


def test_a_wheel_holds_the_package_and_its_recipes_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in ours} == {"ivgcli"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "ivgcli").rglob("*.py")}
    assert sources <= ours
    for guide in shipped_guides():
        assert f"ivgcli/shipped_recipes/guides/{guide}.yaml" in ours
    assert "ivgcli/shipped_recipes/critics/prompts.jsonl" in ours
    assert not [name for name in ours if "test" in name or "__pycache__" in name]


def test_a_wheel_finds_its_guides_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import ivgcli, ivgcli.recipes as r; print(ivgcli.__file__, *r.shipped_guides());"
        "r.load(r.GenerateRecipe, flags={'base.model': 'b', 'mode': 'ivg'}, guides=['tulu'])"
    )
    place, *guides = python("-c", code, cwd=tmp_path).split()
    assert Path(place).resolve() == (tmp_path / "ivgcli/__init__.py").resolve()
    assert tuple(guides) == shipped_guides()


def test_a_wheel_says_its_version_and_its_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    assert f"Version: {__version__}\n" in archive.read(metadata).decode()
    [entry] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
    assert "ivg = ivgcli.cli:main" in archive.read(entry).decode()


def test_help_is_written_before_anything_heavy_is_loaded() -> None:
    code = (
        "import sys\nsys.argv = ['ivg', 'generate', '--help']\nfrom ivgcli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'yaml', 'ivgcli.recipes'}\n"
        "print('loaded:', *sorted(heavy & set(sys.modules)))"
    )
    assert python("-c", code).splitlines()[-1] == "loaded:"


def test_what_is_installed_is_this_version() -> None:
    try:
        installed = importlib.metadata.version("ivgcli")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package runs from its folder, without being installed")
    assert installed == __version__
