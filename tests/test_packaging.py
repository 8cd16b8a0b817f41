"""PrivLM as others get it: a wheel in an environment of its own, a plain checkout, a library without its extras."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tracked files: a build folder left in the checkout would give back deleted ones."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, "./source"],
        cwd=folder, check=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The interpreter of a new environment that holds the wheel and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    # Only the path: a .pth file is read without those that lie in the folder it names, an editable privlm's among them.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def privlm(python, *argv, cwd, flags=(), **variables):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run(
        [python, *flags, "-m", "privlm", *argv], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.medium
def test_the_wheel_holds_all_runners_configs_and_data(wheel):
    content = set(zipfile.ZipFile(wheel).namelist())
    moved = {"runners": "privlm/runners", "configs": "privlm/configs", "privlm": "privlm"}
    expected = {
        f"{moved[path.parts[0]]}/{'/'.join(path.parts[1:])}" for path in tracked_files() if path.parts[0] in moved
    }
    assert expected <= content, expected - content
    assert any(name.startswith("privlm/report/templates/") for name in content)
    assert "privlm/data/embedded/sms_spam/SMSSpamCollection" in content
    extra = {name for name in content if ".dist-info/" not in name} - expected
    assert not extra


@pytest.mark.medium
def test_the_wheel_works_from_any_folder(installed, tmp_path):
    listed = privlm(installed, "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "ewtune" in json.loads(listed.stdout)["tasks"]
    planned = privlm(installed, "run", "task=ewtune", "model=tiny", "--dry-run", "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["steps"] == 20
    where = subprocess.run(
        [installed, "-c", "import privlm.runners.ewtune as task; print(task.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(installed.parents[1])


@pytest.mark.medium
def test_a_plain_checkout_works_from_any_folder(tmp_path):
    """Only PYTHONPATH names the checkout; -S leaves out what is installed."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_paths()["purelib"]])
    done = privlm(sys.executable, "list", "tasks", "--json", cwd=tmp_path, flags=("-S",), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "ewtune" in json.loads(done.stdout)["tasks"]


LIBRARY = ("privacy", "training", "adapters")
BLOCKED = ("hydra", "wandb", "submitit", "matplotlib", "diffusers")


@pytest.mark.medium
def test_the_core_is_a_plain_library():
    paths = [path.relative_to(ROOT) for part in LIBRARY for path in sorted((ROOT / "privlm" / part).rglob("*.py"))]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED}))\n"  # importing a module that is None raises ImportError
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "privlm.training.trainer" in modules
