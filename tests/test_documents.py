"""What the documents name exists: files and folders of the repository, commands, modules and flags."""

import importlib
import importlib.util
import pathlib
import re
import tomllib

import pytest

from data.mine.sources import SOURCES
from flags import settings_of
from main import COMMANDS
from training.settings import DistillConfig, TrainConfig

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "BUILD.md", "CONTRIBUTING.md", "recipes/README.md", "benchmarks/RESULTS.md",
             "data/sample/README.md")
ROOMS = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and (path / "__init__.py").exists()} | {"recipes"}
PLACEHOLDERS = ("X.py", "NAME.flags", "R.flags")  # of a file that the reader writes or chooses
CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
FILE = re.compile(r"(?<![\w./=-])[\w./*-]+\.(?:py|md|flags)(?![\w.])")
LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([\w-]+))?\)")


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text()


def code_of(document: str) -> list[str]:
    """What stands in backticks, each piece on one line."""
    return [re.sub(r"\\?\s+", " ", piece.strip("`")).strip() for piece in CODE.findall(text_of(document))]


def config_of(command: str):
    module, config, _ = COMMANDS[command]
    return getattr(importlib.import_module(module), config)


def exists(document: str, path: str) -> bool:
    if path.endswith(PLACEHOLDERS):
        path = str(pathlib.Path(path).parent)
    places = (REPOSITORY, (REPOSITORY / document).parent)
    return any(any(place.glob(path)) if "*" in path else (place / path).exists() for place in places)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_folders(document):
    named = set()
    for piece in code_of(document):
        named.update(FILE.findall(piece))
        if re.fullmatch(r"[\w.-]+(/[\w.*-]+)*/?", piece) and "/" in piece and piece.split("/")[0] in ROOMS:
            named.add(piece.rstrip("/"))
    assert [path for path in sorted(named) if not exists(document, path)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document):
    missing = []
    for path, anchor in LINK.findall(text_of(document)):
        if path.startswith(("http:", "https:")):
            continue
        target = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if target.is_file() else []
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        if not target.exists() or (anchor and anchor not in anchors):
            missing.append(f"{path}#{anchor}")
    assert missing == []


def flags_of(arguments: str) -> set[str]:
    own = arguments.split(" -- ")[0]  # what follows goes to another program, such as Apache Beam
    return set(re.findall(r"--(\w+)", own)) - {"flagfile", "help"}


def flags_known(name: str) -> set[str]:
    """Flags of a command of main.py, or of a module that is run with -m."""
    if name in COMMANDS:
        configs = [config_of(name)] + ([TrainConfig, DistillConfig] if name == "sweep" else [])
        configs += [source.settings for source in SOURCES] if name == "mine" else []
        return {setting.name for config in configs for setting in settings_of(config)}
    source = pathlib.Path(importlib.util.find_spec(name).origin).read_text()
    if config := re.search(r"run_(?:benchmark|program)\((?:\"[^\"]*\", )?(\w+),", source):
        return {setting.name for setting in settings_of(getattr(importlib.import_module(name), config[1]))}
    return set(re.findall(r"\"--(\w+)\"", source))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_flags(document):
    wrong = []
    for piece in code_of(document):
        for name, arguments in re.findall(
                r"main\.py (\w+)((?: [^&|#]*?)?)(?= (?:\S*python\S* )?main\.py|$)", piece):
            if name not in COMMANDS:
                wrong.append(f"main.py {name}")
                continue
            wrong += [f"main.py {name} --{flag}" for flag in flags_of(arguments) - flags_known(name)]
        for name, arguments in re.findall(r"-m ((?:benchmarks|evaluation|data)(?:\.\w+)+)([^&|#]*)", piece):
            if importlib.util.find_spec(name) is None:
                wrong.append(f"-m {name}")
                continue
            known = flags_known(name)
            wrong += [f"-m {name} --{flag}" for flag in flags_of(arguments)
                      if flag not in known and flag.removeprefix("no") not in known]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_that_stand_alone(document):
    """`--flag=value` in the running text is a flag of some command."""
    known = {flag for command in COMMANDS for flag in flags_known(command)} | {
        "xla_force_host_platform_device_count", "flagfile", "help"}
    used = {flag for piece in code_of(document) if piece.startswith("--") for flag in re.findall(r"--(\w+)", piece)}
    assert sorted(used - known) == []


def test_benchmarks_of_the_table():
    """The last cells of README's table are benchmarks with their flags."""
    cells = re.findall(r"\| `([a-z_]+)( --[^`]*)?` \|$", text_of("README.md"), re.MULTILINE)
    assert len(cells) >= 4
    for name, arguments in cells:
        assert flags_of(arguments) <= flags_known(f"benchmarks.{name}"), name


def test_every_recipe_is_described():
    text = text_of("recipes/README.md")
    families = [name for name in re.findall(r"`([\w*-]+\.flags)`", text) if name not in PLACEHOLDERS]
    described = {path for name in families for path in (REPOSITORY / "recipes").glob(name)}
    assert described == set((REPOSITORY / "recipes").glob("*.flags"))


def test_every_source_is_described():
    section = text_of("BUILD.md").split("## Mining")[1].split("\n## ")[0]
    assert [source.name for source in SOURCES if f"| `{source.name}` |" not in section] == []


def test_the_dependencies_are_those_of_pyproject():
    """Every package and every extra that pyproject.toml names stands in BUILD.md's tables."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    section = text_of("BUILD.md").split("## Dependencies")[1]
    packages = [re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]]
    assert [name for name in packages if name not in section] == []
    assert [name for name in project["optional-dependencies"] if f"`{name}`" not in section] == []
