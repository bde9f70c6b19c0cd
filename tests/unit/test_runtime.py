from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from contract import ROOT

from sqlora.runtime import cut_graphs

MODULES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
MLX = ("mlx", "mlx_lm")


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and top-level package (or sqlora.mlx) of every import."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [(node.lineno, name if name == "sqlora.mlx" else name.split(".")[0]) for name in names]
    return sorted(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_mlx_is_imported_only_behind_the_fast_blas(path: Path) -> None:
    lines = imports(path)
    if path.name == "mlx.py":
        loaders = [line for line, name in lines if name == "sqlora"]
        assert all(line > max(loaders) for line, name in lines if name in MLX)
        return
    assert not [line for line, name in lines if name == "mlx"], "import MLX from sqlora.mlx"
    through_mlx_lm = [line for line, name in lines if name == "mlx_lm"]
    if through_mlx_lm:
        assert next(line for line, name in lines if name == "sqlora.mlx") < min(through_mlx_lm)


def diagnose(**environment: str) -> dict[str, object]:
    code = (
        "import json, os, sqlora.train.run\n"
        "from sqlora.doctor import BLAS, matmul_gflops\n"
        "print(json.dumps({'path': BLAS.path, 'name': BLAS.name, 'speed': matmul_gflops(512, 0.3), "
        "'spin': os.environ.get('GOMP_SPINCOUNT')}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")
def test_the_fast_blas_takes_the_place_of_the_reference_blas_whatever_is_imported_first() -> None:
    fast, slow = diagnose(), diagnose(SQLORA_BLAS="mlx")
    assert fast["path"] is not None
    assert slow["path"] is None
    # Without it a second process on the same cores slows both down a hundredfold.
    assert fast["spin"] == "1000"
    # 20 to 30 times on an idle machine; the same product, one after the other, so noise does not reach three.
    assert float(str(fast["speed"])) > 3 * float(str(slow["speed"]))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")
def test_without_any_fast_blas_there_is_one_clear_warning() -> None:
    code = (
        "import sqlora.runtime as runtime\n"
        "runtime._candidates = lambda: [('nothing', '/does/not/exist.so')]\n"
        "import sqlora.mlx, sqlora.train.run\n"
        "runtime.load_fast_blas()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("no fast BLAS found") == 1
    assert "requirements.txt" in done.stderr


@pytest.mark.parametrize("chosen", [None, "/elsewhere"])
def test_with_cuda_compiled_kernels_outlive_a_reboot(tmp_path: Path, chosen: str | None) -> None:
    code = (
        "import os, sqlora.runtime as runtime\n"
        "runtime.has_cuda = lambda: True\n"
        "assert runtime.load_fast_blas().name == 'cuBLAS'\n"
        "print(os.environ['MLX_ENABLE_CACHE_THRASHING_CHECK'], os.environ['MLX_PTX_CACHE_DIR'])"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | ({"MLX_PTX_CACHE_DIR": chosen} if chosen else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    folder = tmp_path / "sqlora" / f"kernels-mlx-{metadata.version('mlx')}"
    assert done.stdout.strip() == f"0 {chosen or folder}", "MLX ends a process with many shapes unless told otherwise"
    assert folder.is_dir()


@pytest.mark.parametrize("cuda", [False, True])
def test_training_cuts_cuda_graphs_by_number_unless_the_user_has_set_it(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool
) -> None:
    names = ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "MLX_CUDA_GRAPH_CACHE_SIZE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[0], "7")
    monkeypatch.setattr("sqlora.runtime.has_cuda", lambda: cuda)
    # What the function sets goes with the test.
    monkeypatch.setattr("os.environ", dict(os.environ))
    cut_graphs(4)
    assert [os.environ.get(name) for name in names] == (["7", "100000", "2000"] if cuda else ["7", None, None])


@pytest.mark.parametrize(("rows", "most"), [(1, "60"), (3, "60"), (4, "24"), (8, "12"), (500, "12")])
def test_cuda_graphs_of_large_batches_are_shorter(monkeypatch: pytest.MonkeyPatch, rows: int, most: str) -> None:
    monkeypatch.setattr("sqlora.runtime.has_cuda", lambda: True)
    monkeypatch.setattr("os.environ", {})
    cut_graphs(rows)
    assert os.environ["MLX_MAX_OPS_PER_BUFFER"] == most


def test_doctor_prints_what_the_readme_promises() -> None:
    done = subprocess.run([sys.executable, "-m", "sqlora", "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("device", "BLAS", "GFLOP/s", "memory", "mlx-lm", "torch", "dvc"):
        assert name in done.stdout
