"""What holds for the package as a whole, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import trifed
from trifed import make_config, run
from trifed.config.run import to_toml
from trifed.deployment.site_process import SiteProcess
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_transport import SiteTransport
from trifed.federation.preparation import quiet
from trifed.federation.run_folder import RunFolder
from trifed.methods import METHODS

SOURCE = Path(trifed.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = [
    {"common"},
    {"data", "adapters", "similarity"},
    {"methods"},
    {"config"},
    {"tasks", "privacy"},
    {"federation"},
    {"deployment", "export"},
    {"reports"},
    {"experiments", "attacks"},
    {"cli"},
]
"""From the bottom to the top. A part may import itself and the layers below its own, nothing beside or above."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def place(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, inside functions too; relative ones made absolute."""
    package = ["trifed", *path.relative_to(SOURCE).parent.parts]
    names: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (home, node.module) if part)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def test_imports_point_one_way():
    wrong = []
    for path in FILES:
        if path == SOURCE / "__init__.py":
            continue  # gives out names from everywhere, and imports them on first use only
        part = part_of(path)
        assert part in RANK, f"{part}: a new part of the package; say in LAYERS where it belongs"
        for name in imports(path):
            pieces = name.split(".")
            if pieces[0] != "trifed" or len(pieces) < 2 or pieces[1] not in RANK or pieces[1] == part:
                continue
            if RANK[pieces[1]] >= RANK[part]:
                wrong.append(f"{place(path)} imports {name}")
    assert wrong == []


def test_the_layers_name_parts_that_exist():
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts - set(RANK) == set()
    assert {"similarity", "methods", "federation", "deployment", "cli"} <= parts


def test_training_knows_of_no_rounds_and_messages():
    """`federation/training/` imports nothing of the rest of `federation/`, so it can be read alone."""
    home, own = "trifed.federation", "trifed.federation.training"
    paths = [path for path in FILES if place(path).startswith("federation/training/")]
    found = [name for path in paths for name in imports(path) if name.startswith(home)]
    assert found
    assert [name for name in found if name != home and not name.startswith(own)] == []


def parts_below() -> dict[str, set[str]]:
    """By part of the package, the other parts that it imports."""
    below: dict[str, set[str]] = {part_of(path): set() for path in FILES if path != SOURCE / "__init__.py"}
    for path in FILES:
        if path != SOURCE / "__init__.py":
            below[part_of(path)] |= {n.split(".")[1] for n in imports(path) if n.startswith("trifed.")}
    return {part: (found & set(below)) - {part} for part, found in below.items()}


def test_the_package_has_few_parts_on_few_layers():
    """A layer is a step of the longest chain of imports between parts."""
    below = parts_below()
    assert len(below) <= 16

    @cache
    def height(part: str) -> int:
        return 1 + max((height(other) for other in below[part]), default=0)

    assert max(map(height, below)) <= 10


def spoken(node: ast.expr) -> Iterator[str]:
    """Strings that a comparison compares with, also inside a tuple, list or set."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from spoken(item)


def decisions(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text wherever a file compares, matches or looks up something by a string."""
    for node in ast.walk(tree(path)):
        found: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            found = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            found = [node.value]
        elif isinstance(node, ast.Dict):
            found = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = node.args if node.func.attr in ("startswith", "endswith") else []
        for item in found:
            for text in spoken(item):
                yield node.lineno if hasattr(node, "lineno") else 0, text


def test_only_a_methods_own_file_knows_its_name():
    wrong = [
        f"{place(path)}:{line} decides by '{text}'"
        for path in FILES
        if part_of(path) != "methods"
        for line, text in decisions(path)
        if text in METHODS
    ]
    assert wrong == []


def test_the_check_on_method_names_sees_what_it_should(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        'if config.method.name == "local": pass\nif m in ("x", "ce-lora"): pass\nT = {"fedavg-lora": 1}\n'
        'match m:\n    case "local": pass\n',
        encoding="utf-8",
    )
    assert sorted(text for _, text in decisions(bad) if text in METHODS) == [
        "ce-lora", "fedavg-lora", "local", "local",
    ]  # fmt: skip


def test_flower_is_imported_in_two_files():
    users = {place(path) for path in FILES for name in imports(path) if name.split(".")[0] == "flwr"}
    assert users <= {"deployment/flower.py", "deployment/flower_connection.py"}
    partitioners = {part_of(p) for p in FILES for name in imports(p) if name.split(".")[0] == "flwr_datasets"}
    assert partitioners <= {"data"}


def test_similarity_methods_and_privacy_import_no_torch():
    for part in ("similarity", "methods", "privacy"):
        for path in (SOURCE / part).glob("*.py"):
            assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers", "peft"}, path


def test_no_file_is_long():
    lengths = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > 350} == {}


class InProcess:
    """Carries requests to sites in this process. A node's number says nothing of its client's place."""

    def __init__(self, sites):
        self.sites = dict(enumerate(reversed(sites), start=5))

    def nodes(self):
        return set(self.sites)

    def ask(self, requests, seconds, missing=None):
        return {node: self.sites[node].answer(request) for node, request in requests.items()}


def test_engines_agree(toy_values, site_tables):
    """Same seed, same numbers to the last bit: one client after the other in a simulation, and between sites."""
    values = toy_values(method="own-prior", rounds=2, data={"labels": ["billing", "delivery", "login"]})
    alone = {**values, "training": {**values["training"], "clients_at_once": 1}}  # more differ by rounding errors
    simulated = run(make_config(alone), site_tables / "simulated").path / "clients"
    names = sorted(path.name for path in simulated.iterdir())
    sites = [
        SiteProcess(
            SiteSettings(name=name, data={"source": str(site_tables / f"{name}.csv")}, folder=site_tables / name)
        )
        for name in names
    ]
    config = make_config({**values, "deployment": {"clients": len(sites), "join_seconds": 2}})
    folder = RunFolder.create(site_tables / "server")
    folder.write_text("config.toml", to_toml(config))
    SiteTransport(config, InProcess(sites), folder, quiet, sleep=lambda seconds: None).run()
    for name in names:
        (own,) = (site_tables / name).rglob("model/adapter_model.safetensors")
        assert own.read_bytes() == (simulated / name / "adapter_model.safetensors").read_bytes()


BORDER = {"federation", "deployment", "similarity/summary.py", "privacy/masking.py"}
"""Where messages are read: what follows may rely on what it is given."""


def test_what_crosses_a_boundary_is_checked_there_and_nowhere_else():
    """Only files at the border refuse a message, or turn bytes of another process into arrays."""
    wrong = []
    for path in FILES:
        if {part_of(path), place(path)} & BORDER:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Raise) and "MessageError" in ast.unparse(node):
                wrong.append(f"{place(path)}:{node.lineno} refuses a message")
        wrong += [
            f"{place(path)} imports {name}"
            for name in imports(path)
            if name in {"safetensors.numpy.load", "safetensors.torch.load"} or name.endswith(".messages.decode")
        ]
    assert wrong == []


UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_nothing_is_unpickled():
    wrong = []
    for path in FILES:
        for name in imports(path):
            if name.split(".")[0] in UNPICKLERS:
                wrong.append(f"{place(path)} imports {name}")
        for node in ast.walk(tree(path)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"torch.load", "torch.save", "eval", "exec"} or called.endswith("read_pickle"):
                wrong.append(f"{place(path)}:{node.lineno} calls {called}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                wrong.append(f"{place(path)}:{node.lineno} sets {node.arg}")
    assert wrong == []


LOADERS = {"from_pretrained", "from_config"}


def code_of_models(module: ast.Module) -> Iterator[str]:
    """Uses of transformers' loaders that may run a model's code, or read its weights from a pickle."""
    safe = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if options.get("trust_remote_code") == "False":
                safe.add(node.func)
            bad = {"trust_remote_code": "False", "use_safetensors": "True", "weights_only": "True"}
            yield from (f"{node.lineno} {n}" for n, only in bad.items() if options.get(n, only) != only)
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name == "pipeline":
                yield f"{node.lineno} pipeline"
    for node in ast.walk(module):
        used = isinstance(node, ast.Attribute) and node.attr in LOADERS and node not in safe
        if used and ast.unparse(node.value) != "PeftModel":  # which has no code of a folder to run
            yield f"{node.lineno} {node.attr}"


def test_no_code_of_a_model_is_run():
    assert [f"{place(path)}:{use}" for path in FILES for use in code_of_models(tree(path))] == []


def test_the_check_on_code_of_models_sees_what_it_should():
    text = (
        "AutoModel.from_pretrained(x)\nAutoModel.from_pretrained(x, trust_remote_code=True)\n"
        "load = AutoConfig.from_pretrained\nAutoModel.from_config(c, trust_remote_code=flag)\npipeline('x')\n"
        "AutoModel.from_pretrained(x, trust_remote_code=False, use_safetensors=False)\n"
        "AutoModel.from_pretrained(x, trust_remote_code=False)\nPeftModel.from_pretrained(x)\n"
    )
    assert {use.split()[0] for use in code_of_models(ast.parse(text))} == {"1", "2", "3", "4", "5", "6"}


GLOBAL_SEEDS = {
    "torch.manual_seed", "torch.default_generator.manual_seed", "torch.cuda.manual_seed_all", "np.random.seed",
    "random.seed", "set_seed",
}  # fmt: skip


def global_seeds(node: ast.AST, forked: bool = False) -> Iterator[int]:
    """Lines that seed a global generator outside of a fork of it."""
    if isinstance(node, ast.With):
        forked = forked or any("fork_rng" in ast.unparse(item) for item in node.items)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in GLOBAL_SEEDS and not forked:
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from global_seeds(child, forked)


def test_nothing_is_seeded_globally():
    assert [f"{place(path)}:{line}" for path in FILES for line in global_seeds(tree(path))] == []


def test_the_check_on_seeds_tells_a_fork_from_the_global_generator():
    text = "torch.manual_seed(0)\nwith torch.random.fork_rng(devices=[]):\n    torch.manual_seed(1)\n"
    assert list(global_seeds(ast.parse(text))) == [1]


def test_users_errors_are_not_asserts():
    wrong = [place(path) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    assert wrong == []


def logs_the_traceback(handler):
    calls = (node.func for node in ast.walk(handler) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr == "exception" for call in calls)


def test_nothing_swallows_every_exception():
    """But for a site's way out, where the exception is logged, because its text must not reach the server."""
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                border = path.name in {"flower.py", "site_process.py"} and logs_the_traceback(node)
                if caught in {"everything", "Exception", "BaseException"} and not border:
                    wrong.append(f"{place(path)}:{node.lineno} catches {caught}")
    assert wrong == []
