"""What adding to a family takes, from git's history; and how many functions a config goes through, from the code.

    uv run python scripts/files_to_touch.py            # as the code is committed now
    uv run python scripts/files_to_touch.py COMMIT     # as it was

Of each family the first commit that added a name to its table, once that was there, and the files of jaxdiff/ that it
touched. Then the functions with a parameter `config`, and those of them that give a config back, by module; those of
interop/ are of other projects' configs, and not counted.
"""

import ast
import io
import subprocess
import sys
import tarfile
from collections import Counter

FAMILIES = """
schedules/__init__.py SCHEDULES; samplers/__init__.py METHODS; times.py SPACINGS; process.py PREDICTIONS;
losses/__init__.py WEIGHTINGS; losses/__init__.py _TIME_SAMPLINGS; guidance.py RULES; denoisers.py THRESHOLDS;
models/__init__.py NETWORKS; conditioning/__init__.py CONDITIONERS; codecs/__init__.py CODECS;
objectives/__init__.py OBJECTIVES; data/sources.py DATASETS; training/optimizer.py OPTIMIZERS;
training/optimizer.py LEARNING_RATES; evaluation/measure.py METRICS; training/loggers.py LOGGERS
"""


def git(*words: str) -> bytes:
    """What a command of git prints."""
    return subprocess.run(["git", *words], capture_output=True, check=True).stdout


def names(commit: str, path: str, table: str) -> set[str]:
    """The keys of the first dict in the assignment to a table."""
    for node in ast.parse(git("show", f"{commit}:{path}")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            held = next((n for n in ast.walk(node) if isinstance(n, ast.Dict)), ast.Dict([], []))
            return {str(key.value) for key in held.keys if isinstance(key, ast.Constant)}
    return set()


def first_addition(end: str, path: str, table: str) -> str | None:
    """The first commit up to `end` that added to the table, and did not make it."""
    before: set[str] = set()
    commits = git("log", "--no-merges", "--topo-order", "--reverse", "--diff-filter=AM", "--format=%h", end, "--", path)
    for commit in commits.decode().split():
        now = names(commit, path, table)
        if before and now - before:
            return commit
        before = now or before
    return None


def takes_config(node: ast.AST) -> bool:
    """Whether it is a function with a parameter config."""
    return isinstance(node, ast.FunctionDef) and "config" in {
        a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)
    }


if __name__ == "__main__":
    end = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    print("| family | commit | files of jaxdiff/ |\n|---|---|---|")
    for path, table in map(str.split, FAMILIES.split(";")):
        commit = first_addition(end, f"jaxdiff/{path}", table)
        shown = git("show", "--format=", "--name-only", commit, "--", "jaxdiff") if commit else b""
        print(f"| {table} | {commit or 'none since'} | {', '.join(shown.decode().split())} |")
    rooms, returns = Counter[str](), 0
    with tarfile.open(fileobj=io.BytesIO(git("archive", end, "jaxdiff"))) as tar:
        for member in (m for m in tar if m.name.endswith(".py") and "/interop/" not in m.name):
            tree = ast.parse(tar.extractfile(member).read())  # type: ignore
            for node in filter(takes_config, ast.walk(tree)):
                rooms[member.name.removeprefix("jaxdiff/")] += 1
                returns += "Config" in ast.unparse(node.returns or ast.Constant(None))  # type: ignore
    print(f"\n{sum(rooms.values())} functions take a parameter config, {returns} of them give one back:")
    print(", ".join(f"{name} {count}" for name, count in rooms.most_common()))
