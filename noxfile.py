"""Everything that is run on this repository: `nox -l` lists it."""

import json
import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CORE, SD3, TINY = "core", "plugins/flowfactory-sd3", "plugins/flowfactory-tiny"
PLUGINS = ("grpo", "nft", "awm", "dpo", "crd", "sft", "distill")
GRPO, NFT, AWM, DPO, CRD, SFT, DISTILL = (f"plugins/flowfactory-{name}" for name in PLUGINS)
HUNYUAN_VIDEO = "plugins/flowfactory-hunyuan-video"
CHROMA, LUMINA2, SANA = "plugins/flowfactory-chroma", "plugins/flowfactory-lumina2", "plugins/flowfactory-sana"
KREA, QWEN_IMAGE, Z_IMAGE = "plugins/flowfactory-krea", "plugins/flowfactory-qwen-image", "plugins/flowfactory-z-image"
FLUX, WAN, REWARDS = "flowfactory-flux", "flowfactory-wan", "flowfactory-rewards"
PACKAGES = {  # what is built, by the folder of its tests
    "core": CORE,
    "plugins/grpo": GRPO,
    "plugins/nft": NFT,
    "plugins/awm": AWM,
    "plugins/dpo": DPO,
    "plugins/crd": CRD,
    "plugins/sft": SFT,
    "plugins/distill": DISTILL,
    "plugins/sd3": SD3,
    "plugins/tiny": TINY,
    "plugins/krea": KREA,
    "plugins/chroma": CHROMA,
    "plugins/hunyuan-video": HUNYUAN_VIDEO,
    "plugins/lumina2": LUMINA2,
    "plugins/sana": SANA,
    "plugins/qwen-image": QWEN_IMAGE,
    "plugins/z-image": Z_IMAGE,
    "flux": FLUX,
    "wan": WAN,
    "rewards": REWARDS,
}
TESTING = ["hatchling", "httpx2", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist"]
PYTEST = ["pytest", "-n", "2", "--dist", "loadfile"]

os.environ["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
nox.needs_version = ">=2024.4"

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


LICENCES = (  # what a project under Apache-2.0 may depend on, as packages write it
    *(
        "0BSD OR CC0-1.0",
        "3-Clause BSD License",
        "Apache 2.0 License",
        "Apache License 2.0",
        "Apache Software License",
        "Apache-2.0",
    ),
    *("BSD License", "BSD-2-Clause", "BSD-3-Clause", "ISC License (ISCL)", "MIT", "MIT License", "MIT-CMU", "PSF-2.0"),
    *("Apache-2.0 OR BSD-2-Clause", "Apache-2.0 AND CNRI-Python", "MIT AND BSD-3-Clause"),
    *("Apache-2.0 OR BSD-3-Clause", "MIT OR AFL-2.1", "MIT-0", "MPL-2.0 AND (Apache-2.0 OR MIT)"),  # of trackers' libraries
    "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0",  # numpy
    "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT",  # torch
    # of files that stay as they are: used, and not changed
    *("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", "MPL-2.0 AND MIT"),
)
EXTRAS = {CORE: "[bitsandbytes,parquet,serve,tensorboard,video]", REWARDS: "[all]"}
KINDS = ["reward", "model", "algorithm", "dynamics", "tracker", "family"]  # of plugins that have a template
TRACKERS = {  # each takes half a minute and a hundred megabytes, and two go with other versions than constraints.txt has
    "mlflow": "mlflow-skinny==3.17.2",
    "swanlab": "swanlab==0.10.3",
    "trackio": "trackio==0.43.0",
    "wandb": "wandb==0.31.0",
}


def install(session: nox.Session, *extra: str, extras: bool = False) -> None:
    """Torch on its own first, so that nothing else chooses its build; then our packages from source."""
    session.install("torch")
    packages = [package + (EXTRAS.get(package, "") if extras else "") for package in PACKAGES.values()]
    session.install(*(part for package in packages for part in ("-e", package)), *extra)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole default suite; what is given after -- goes to pytest."""
    install(session, *TESTING, extras=True)
    session.run(*PYTEST, *session.posargs, env=ONE_THREAD)


@nox.session
def distributed(session: nox.Session) -> None:
    """The longer tests of several ranks: killed, stopped, raising and resumed ones, and meshes."""
    install(session, *TESTING, extras=True)
    # one at a time: each is as many processes as it has ranks
    session.run("pytest", "-m", "distributed", "tests/distributed", *session.posargs, env=ONE_THREAD)


@nox.session
def soak(session: nox.Session) -> None:
    """A long run, in which nothing grows, and runs that are killed and resumed bitwise; prints what it counted."""
    install(session, *TESTING, extras=True)
    session.run("pytest", "-m", "soak", "tests/soak", "tests/end_to_end", *session.posargs, env=ONE_THREAD)


@nox.session
@nox.parametrize("package", list(PACKAGES), ids=[Path(folder).name for folder in PACKAGES])
def isolated(session: nox.Session, package: str) -> None:
    """One package alone with core (and what it declares) in a clean environment, from built wheels; its own tests."""
    wheels = session.create_tmp()
    session.install("torch", *TESTING)
    for folder in PACKAGES.values():
        session.run_install("pip", "wheel", "-q", "--no-deps", "-w", wheels, f"./{folder}", silent=True)
    wanted = {
        "core": [f"flowfactory{EXTRAS[CORE]}"],
        "rewards": ["flowfactory-rewards[all]", "flowfactory[serve]", "flowfactory-grpo"],
    }
    session.install("--find-links", wheels, *wanted.get(package, [Path(PACKAGES[package]).name]))
    session.run("flowfactory", "plugins", "list")
    if list((ROOT / "tests" / package).rglob("test_*.py")):
        session.run(*PYTEST, f"tests/{package}", *session.posargs, env=ONE_THREAD)


@nox.session
@nox.parametrize("tracker", list(TRACKERS), ids=list(TRACKERS))
def trackers(session: nox.Session, tracker: str) -> None:
    """A tracker with its real library, which the default suite has not; and the licences of what that brings."""
    free = {"PIP_CONSTRAINT": ""}
    session.install("torch==2.13.0")
    session.install("-e", f"./{CORE}[{tracker},video]", "-e", f"./{TINY}", TRACKERS[tracker], *TESTING, env=free)
    session.run("pytest", f"tests/core/runs/trackers/test_{tracker}.py", *session.posargs, env=ONE_THREAD)
    session.install("pip-licenses", env=free)
    check_licences(session)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """The default suite on each version of Python that is installed; nox skips the others."""
    install(session, *TESTING, extras=True)
    session.run(*PYTEST, *session.posargs, env=ONE_THREAD)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The default suite with the lowest version of all that our packages declare; UV_TORCH_BACKEND=cpu for a small torch."""
    session.install("uv")
    uv = ("uv", "pip", "install", "--python", f"{session.bin}/python")
    packages = [f"./{folder}{EXTRAS.get(folder, '')}" for folder in PACKAGES.values()]
    # pip knows no such resolution
    session.run(*uv, "--resolution", "lowest-direct", *(part for package in packages for part in ("-e", package)))
    session.run(*uv, *TESTING)
    session.run("python", "releasing/lowest_versions.py")
    # what is deprecated now was not when they came out
    session.run(*PYTEST, "-W", "ignore::DeprecationWarning", *session.posargs, env=ONE_THREAD)


@nox.session
def upper(session: nox.Session) -> None:
    """The default suite with the newest version of everything, whatever constraints.txt says: what breaks next."""
    session.env["PIP_CONSTRAINT"] = ""
    install(session, *TESTING, extras=True)
    session.run("pip", "list")
    session.run(*PYTEST, *session.posargs, env=ONE_THREAD)


@nox.session
def licences(session: nox.Session) -> None:
    """Every package that ours need, with its licence; fails at one that does not go with Apache-2.0."""
    install(session, extras=True)
    session.install("pip-licenses")
    check_licences(session)


def check_licences(session: nox.Session) -> None:
    """Fails at a licence that is not among LICENCES, of anything that is installed."""
    listed = json.loads(session.run("pip", "list", "--format=json", silent=True) or "[]")
    # torch's CUDA build brings NVIDIA's libraries, whose terms its user accepts
    cuda = [package["name"] for package in listed if package["name"].startswith(("nvidia-", "cuda-"))]
    left_out = ["pip", "pip-licenses", "prettytable", "setuptools", "wcwidth", "wheel", *cuda]
    allowed = ";".join(LICENCES)
    session.run("pip-licenses", "--from=mixed", "--order=license", f"--allow-only={allowed}", "--ignore-packages", *left_out)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.env["PIP_NO_COMPILE"] = "1"  # a minute's work, and nothing of what is installed runs but mypy
    install(session, "mypy", "types-PyYAML", "fastapi", "uvicorn")
    session.run("mypy", *(f"{package}/src" for package in PACKAGES.values()))


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format; import-linter: a room of core imports only from those below it, and in no circle."""
    session.install("ruff", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # as text: nothing of core is imported, nor needs to be installed
    session.run("lint-imports", "pyproject.toml", "--no-cache", "--no-logo", env={"PYTHONPATH": f"{CORE}/src"})


@nox.session
@nox.parametrize("kind", KINDS, ids=KINDS)
def templates(session: nox.Session, kind: str) -> None:
    """The package that `flowfactory plugins new` writes, in a clean environment: installed, linted, typed, tested, checked."""
    parent = Path(session.create_tmp())
    package = parent / f"flowfactory-my-{kind}"
    shutil.rmtree(package, ignore_errors=True)  # of the last time
    session.install("torch==2.13.0")
    session.install(f"./{CORE}", "mypy", "ruff", "types-PyYAML")
    asked = ("model", f"my-{kind}", "--family") if kind == "family" else (kind, f"my-{kind}")
    session.run("flowfactory", "plugins", "new", *asked, "--out", str(parent))
    session.install(f"{package}[test]")
    session.chdir(package)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", "src")
    session.run("pytest")
    if kind == "family":
        session.run("python", "tests/conftest.py", "checkpoint")
    options = ("--set", "path=checkpoint") if kind == "family" else ()
    session.run("flowfactory", "plugins", "check", f"my-{kind}", *options)


@nox.session
def build(session: nox.Session) -> None:
    """A source distribution of every package, and a wheel built from it, in dist/; what they hold is looked at."""
    session.install("build", "hatchling", "twine")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for folder in PACKAGES.values():
        session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist", f"./{folder}", silent=True)
    session.run("twine", "check", "--strict", *sorted(map(str, (ROOT / "dist").iterdir())))
    session.run("python", "releasing/release_archives.py", "dist")


@nox.session
def release(session: nox.Session) -> None:
    """All that a release needs: versions, changelog, archives, and the quickstart from the wheels with no clone in sight.

    What is given after -- is for versions: --tag vX.Y.Z, or --rehearsal, with which the changelog need not have a date yet
    and the quickstart takes two iterations.
    """
    session.run("python", "releasing/release_versions.py", *session.posargs)
    build(session)
    away = Path(session.create_tmp()).resolve() / "away"
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(ROOT / "dist", away / "wheels", ignore=shutil.ignore_patterns("*.tar.gz"))
    session.run("python", "-m", "venv", str(away / "clean"))
    python, command = str(away / "clean/bin/python"), str(away / "clean/bin/flowfactory")
    session.run(python, "-m", "pip", "install", "torch", external=True)
    session.run(python, "-m", "pip", "install", *sorted(map(str, (away / "wheels").iterdir())), external=True)
    session.chdir(away)
    alone = {"PYTHONPATH": None, "FLOWFACTORY_CACHE": str(away / "cache"), "FLOWFACTORY_STATE": str(away / "state")}
    session.run(python, "-m", "pip", "check", external=True)
    session.run(command, "plugins", "list", env=alone, external=True)
    short = ["--set", "training.iterations=2"] if "--rehearsal" in session.posargs else []
    session.run(command, "run", "quickstart", *short, "--out", "run", env=alone, external=True)


@nox.session
def workflows(session: nox.Session) -> None:
    """Whether GitHub takes the workflows and the forms of issues, and whether the workflows give away what they should not."""
    session.install("check-jsonschema", "zizmor")
    github = ROOT / ".github"
    forms = {
        "github-workflows": sorted(github.glob("workflows/*.yml")),
        "github-issue-forms": sorted(path for path in github.glob("ISSUE_TEMPLATE/*.yml") if path.name != "config.yml"),
        "github-issue-config": [github / "ISSUE_TEMPLATE/config.yml"],
        "dependabot": [github / "dependabot.yml"],
    }
    for schema, files in forms.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files))
    session.run("zizmor", "--offline", str(github))


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, in site/; a warning is an error."""
    install(session, "sphinx", "myst-parser", "furo")
    session.run("sphinx-build", "-W", "-b", "html", "docs", "site")


@nox.session
def bench(session: nox.Session) -> None:
    """Three seeds of the quickstart; writes benchmarks/results/quickstart.json and the curve."""
    install(session)
    session.run("python", "benchmarks/quickstart.py", *session.posargs)


@nox.session
def quickstart(session: nox.Session) -> None:
    """`flowfactory run quickstart`; what is given after -- goes to it."""
    install(session)
    session.run("flowfactory", "run", "quickstart", *session.posargs)
