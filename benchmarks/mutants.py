"""Plant one fault at a time in the code where a fault hides best; do tests notice?

Each mutant is a copy of the package in which one operator, number, condition, argument
or statement is another. A process forked from this one, which has Keras and PyTorch
loaded, runs the tests that should notice. Those that nobody noticed are printed.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import ast
import copy
import importlib
import itertools
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# files of the package, and the tests that know them best, the quickest first
GENERATION = [
    "tests/generation/test_generate.py",
    "tests/generation/test_controls.py",
    "tests/generation/test_beam.py",
    "tests/generation/test_lookup.py",
    "tests/generation/test_text.py",
    "tests/test_language_model.py",
]
TESTS = {
    "layers/attention.py": [
        "tests/layers/test_attention.py",
        "tests/layers/test_every_layer.py",
        "tests/layers/test_block.py",
        "tests/test_model.py",
        "tests/generation/test_generate.py",
    ],
    "generation/sampling.py": ["tests/generation/test_sampling.py", *GENERATION],
    "generation/truncation.py": ["tests/generation/test_sampling.py", *GENERATION],
    "generation/generate.py": GENERATION,
    "generation/programs.py": GENERATION,
    "generation/rows.py": GENERATION,
    "generation/run.py": GENERATION,
    "data/packing.py": [
        "tests/data/test_packing.py",
        "tests/data/test_examples.py",
        "tests/data/test_batches.py",
    ],
    "training/state.py": [
        "tests/training/test_state.py",
        "tests/training/test_lora.py",
        "tests/training/test_preference.py",
        "tests/journeys/test_resume.py",
    ],
}
# loaded before the processes part; not what the mutants are copies of
PRELOADED = ("keras", "torch", "pytest", "tokenizers", "grain", "tensorflow")

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


# whose first two arguments may change places
SYMMETRIC = ("equal", "logical_and", "logical_or", "max", "maximum", "min", "minimum")


def is_symmetric(call):
    """Whether a call means the same with its first two arguments swapped."""
    return ast.unparse(call.func).split(".")[-1] in SYMMETRIC


def faults(node):
    """Yield functions, each of which plants one fault in a copy of the node."""
    if type(getattr(node, "op", None)) in SWAPS:
        yield lambda n: setattr(n, "op", SWAPS[type(n.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda n: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]())
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        is_flag = isinstance(node.value, bool)
        yield lambda n: setattr(n, "value", not n.value if is_flag else n.value + 1)
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.Call) and len(node.args) > 1 and not is_symmetric(node):
        yield lambda n: n.args.insert(0, n.args.pop(1))
    if isinstance(getattr(node, "body", None), list):
        for i, statement in enumerate(node.body):
            if is_droppable(statement):
                yield lambda n, i=i: n.body.__setitem__(i, ast.Pass())


def is_droppable(statement):
    """Whether the code still reads without it: no definition, no docstring."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.AugAssign | ast.Raise | ast.Continue | ast.Break)


def is_read_only(node, parent):
    """Whether a node is a type or stands in one."""
    return isinstance(parent, ast.AnnAssign | ast.arg) and node is parent.annotation


def mutants_of(name):
    """All mutants of a file: `(name, line, before, after, source)`."""
    tree = ast.parse(read(name))
    before = ast.unparse(tree).splitlines()
    nodes = [tree]
    for node in nodes:  # grows
        children = ast.iter_child_nodes(node)
        nodes += [child for child in children if not is_read_only(child, node)]
    found = []
    for node in nodes:
        if node is tree:
            continue
        for plant in faults(node):
            kept = copy.copy(node.__dict__)
            lists = {k: list(v) for k, v in kept.items() if isinstance(v, list)}
            plant(node)
            mutant = ast.unparse(ast.fix_missing_locations(tree))
            node.__dict__.update({**kept, **lists})
            changed = [
                (old.strip(), new.strip())
                for old, new in zip(before, mutant.splitlines(), strict=False)
                if old != new
            ]
            if changed:  # else two equal arguments changed places
                found.append((name, node.lineno, *changed[0], mutant))
    return found


def choose(names, count, seed):
    """Choose mutants, as many of each group of files as of the others while it has any.

    Returns:
        The mutants, and of how many they were chosen.
    """
    groups = {}
    for name in names:
        groups.setdefault(tuple(TESTS[name]), []).extend(mutants_of(name))
    for mutants in groups.values():
        random.Random(seed).shuffle(mutants)
    turns = itertools.zip_longest(*groups.values())
    mixed = [mutant for turn in turns for mutant in turn if mutant]
    return mixed[:count], len(mixed)


def read(name):
    """The source of a file of the package."""
    return (ROOT / "keras_gpt" / name).read_text(encoding="utf-8")


def test_in_copy(name, source, folder):
    """In a process of its own: run the tests of a file with another source of it."""
    import pytest

    package = Path(folder) / "keras_gpt"
    shutil.copytree(ROOT / "keras_gpt", package)
    (package / name).write_text(source, encoding="utf-8")
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder
    os.chdir(ROOT)
    with (Path(folder) / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        import keras_gpt

        if Path(keras_gpt.__file__).parent != package:
            return 99
    except Exception:  # noqa: BLE001  # a mutant that can't be imported is noticed
        return 1
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return int(pytest.main([*options, *TESTS[name]]))


def start(mutant):
    """Fork a process for a mutant: `(process id, time, folder)`."""
    folder = tempfile.mkdtemp(prefix="mutant")
    process = os.fork()
    if process == 0:
        os.setsid()
        try:
            status = test_in_copy(mutant[0], mutant[-1], folder)
        except BaseException:  # noqa: BLE001  # whatever ends the tests ends them
            status = 1
        os._exit(status)
    return process, time.monotonic(), folder


def run(mutants, num_workers, time_limit):
    """Test each mutant; yield `(mutant, status)` as they end. Status 0: unnoticed."""
    waiting, running = list(mutants), {}
    while waiting or running:
        while waiting and len(running) < num_workers:
            mutant = waiting.pop(0)
            process, began, folder = start(mutant)
            running[process] = mutant, began, folder
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            time.sleep(0.05)
            for process, (_, began, _) in running.items():
                if time.monotonic() - began > time_limit:
                    os.killpg(process, 9)
            continue
        mutant, _, folder = running.pop(process)
        shutil.rmtree(folder, ignore_errors=True)
        yield mutant, os.waitstatus_to_exitcode(status)


def main():
    """Print a table of what was noticed, and the mutants that were not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--files", nargs="*", default=list(TESTS), metavar="NAME")
    parser.add_argument("--limit", type=float, default=0.9, help="least part noticed")
    arguments = parser.parse_args()
    chosen, number_of_all = choose(arguments.files, arguments.count, arguments.seed)
    for name in PRELOADED:
        importlib.import_module(name)
    clean = {tuple(TESTS[name]): name for name in arguments.files}.values()
    whole = [(name, 0, "", "", read(name)) for name in clean]
    for (name, *_), status in run(whole, arguments.workers, 1e9):
        if status != 0:
            sys.exit(f"The tests of {name} fail without a mutant. Status: {status}.")
    caught, survivors = dict.fromkeys(arguments.files, 0), []
    for number, (mutant, status) in enumerate(
        run(chosen, arguments.workers, arguments.time_limit), 1
    ):
        caught[mutant[0]] += status != 0
        if status == 0:
            survivors.append(mutant)
            print(f"unnoticed: {mutant[:4]}", file=sys.stderr, flush=True)
        if number % 10 == 0:
            print(f"{number} of {len(chosen)}", file=sys.stderr, flush=True)
    print(f"\n{number_of_all} mutants, {len(chosen)} tried, seed {arguments.seed}\n")
    print("| file | tried | noticed |\n|---|---|---|")
    for name in arguments.files:
        tried = sum(mutant[0] == name for mutant in chosen)
        print(f"| {name} | {tried} | {caught[name]} |")
    print("\n| unnoticed | line | it says | the mutant says |\n|---|---|---|---|")
    for name, line, before, after, _ in sorted(survivors):
        print(f"| {name} | {line} | `{before}` | `{after}` |")
    if sum(caught.values()) < arguments.limit * len(chosen):
        sys.exit(1)


if __name__ == "__main__":
    main()
