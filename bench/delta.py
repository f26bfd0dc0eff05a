"""Bytes, time and memory of deltas against the peers, on pairs of model files.

    python bench/delta.py OLD NEW [OLD NEW …] [--layers N] [--peer PYTHON] [--json FILE]

`--layers N` keeps the first N transformer blocks of GGUF files and no embedding: peers
with suffix arrays take minutes on a whole model. `--peer` is a Python that has bsdiff4,
hdiffpatch and fastcdc; ``zstd`` and ``xdelta3`` are taken from the path. Peers that are
not there are left out. CPU seconds and peak RSS are of a child process, interpreter
included. Every result is compared with the new file.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measure import Column, print_table, write_json

from slmops.workshop.gguf_file import read_header
from slmops.workshop.gguf_writer import write_gguf

_RUN = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, rss = used.ru_utime + used.ru_stime, used.ru_maxrss >> 10
print(json.dumps([done.returncode, seconds, rss]))
"""
_OURS_MAKE = """
import sys
from pathlib import Path
from slmops.deltas.make import make_delta
make_delta(*map(Path, sys.argv[1:4]))
"""
_MODULE_MAKE = {
    "bsdiff4": "import bsdiff4 as m, sys; m.file_diff(*sys.argv[1:4])",
    "hdiffpatch": (
        "import hdiffpatch as m, sys; r = lambda p: open(p, 'rb').read();"
        "open(sys.argv[3], 'wb').write("
        "m.diff(r(sys.argv[1]), r(sys.argv[2]), compression='zstd'))"
    ),
}
_MODULE_APPLY = {
    "bsdiff4": "import bsdiff4 as m, sys; m.file_patch(*[sys.argv[i] for i in (1, 3, 2)])",
    "hdiffpatch": (
        "import hdiffpatch as m, sys; r = lambda p: open(p, 'rb').read();"
        "open(sys.argv[3], 'wb').write(m.apply(r(sys.argv[1]), r(sys.argv[2])))"
    ),
}
_CHUNKS = """
import sys
from fastcdc import fastcdc
def chunks(path):
    return {c.hash: c.length for c in fastcdc(path, 2048, 8192, 32768, hf=__import__("hashlib").sha256)}
old, new = chunks(sys.argv[1]), chunks(sys.argv[2])
open(sys.argv[3], "wb").truncate(sum(n for h, n in new.items() if h not in old))
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """Commands with {old} {new} {delta} {out}; `apply` may be missing."""

    name: str
    make: list[str]
    apply: list[str] | None


def _tools(peer: str | None, digest: str) -> list[Tool]:
    own = sys.executable
    files = ["{old}", "{new}", "{delta}"]
    back = ["{old}", "{delta}", "{out}"]
    tools = [
        Tool(
            "slmops",
            [own, "-c", _OURS_MAKE, *files],
            [own, "-m", "slmops.deltas", *back, digest],
        )
    ]
    if shutil.which("zstd"):
        patch = ["zstd", "-q", "-f", "--long=30", "--patch-from={old}"]
        tools.append(
            Tool(
                "zstd --patch-from -19",
                [*patch, "-19", "{new}", "-o", "{delta}"],
                [*patch, "-d", "{delta}", "-o", "{out}"],
            )
        )
    if shutil.which("xdelta3"):
        make = ["xdelta3", "-f", "-9", "-B", "536870912", "-e", "-s"]
        undo = ["xdelta3", "-f", "-B", "536870912", "-d", "-s"]
        tools.append(Tool("xdelta3 -9", [*make, *files], [*undo, *back]))
    if peer:
        tools += [
            Tool(name, [peer, "-c", make, *files], [peer, "-c", undo, *back])
            for (name, make), undo in zip(
                _MODULE_MAKE.items(), _MODULE_APPLY.values(), strict=True
            )
        ]
        tools.append(
            Tool("content-defined chunks", [peer, "-c", _CHUNKS, *files], None)
        )
    return tools


def _run(command: list[str], paths: dict[str, str]) -> tuple[float, int]:
    filled = [command[0], *(_filled(part, paths) for part in command[1:])]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *filled],
        capture_output=True,
        text=True,
        check=True,
    )
    status, seconds, rss = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{filled[0]}: {done.stderr[-500:]}")
    return seconds, rss


def _filled(part: str, paths: dict[str, str]) -> str:
    for name, path in paths.items():
        part = part.replace("{" + name + "}", path)
    return part


def _first_layers(source: Path, target: Path, layers: int) -> Path:
    header = read_header(source)
    prefixes = tuple(f"blk.{index}." for index in range(layers))
    tensors = [t for t in header.tensors if t.name.startswith(prefixes)]
    metadata = [e for e in header.metadata if e.key != "general.alignment"]
    with source.open("rb") as file, target.open("wb") as sink:

        def data(at: int, size: int) -> list[bytes]:
            file.seek(at)
            return [file.read(size)]

        pieces = (data(tensor.offset, tensor.bytes) for tensor in tensors)
        write_gguf(sink, metadata, tensors, pieces)
    return target


def _rows(
    old: Path, new: Path, peer: str | None, folder: Path
) -> list[dict[str, object]]:
    digest = "sha256:" + hashlib.sha256(new.read_bytes()).hexdigest()
    rows: list[dict[str, object]] = []
    for tool in _tools(peer, digest):
        delta, out = folder / "delta", folder / "out"
        delta.unlink(missing_ok=True)
        out.unlink(missing_ok=True)
        paths = {"old": old, "new": new, "delta": delta, "out": out}
        names = {name: str(path) for name, path in paths.items()}
        seconds, rss = _run(tool.make, names)
        row: dict[str, object] = {
            "tool": tool.name,
            "bytes": delta.stat().st_size,
            "percent": 100 * delta.stat().st_size / new.stat().st_size,
            "make_s": seconds,
            "make_mib": rss,
        }
        if tool.apply:
            row["apply_s"], row["apply_mib"] = _run(tool.apply, names)
            if out.read_bytes() != new.read_bytes():
                raise SystemExit(f"{tool.name}: another file came back")
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--peer")
    parser.add_argument("--json", type=Path)
    said = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for old, new in zip(said.files[::2], said.files[1::2], strict=True):
            pair = f"{old.stem} → {new.stem}"
            first, second = old, new
            if said.layers:
                first = _first_layers(old, folder / "old", said.layers)
                second = _first_layers(new, folder / "new", said.layers)
            rows += [
                {"pair": pair, **row} for row in _rows(first, second, said.peer, folder)
            ]
    columns = [
        Column(title="pair", width=36),
        Column(title="tool", width=24),
        *(
            Column(title=title, width=12)
            for title in ("bytes", "%", "make CPU s", "make MiB")
        ),
        *(Column(title=title, width=12) for title in ("apply CPU s", "apply MiB")),
    ]
    print_table(columns, [_cells(row) for row in rows])
    write_json(said.json, rows)


def _cells(row: dict[str, object]) -> list[str]:
    forms = {"bytes": ",d", "percent": ".3f", "make_s": ".2f", "apply_s": ".2f"}
    names = (
        "pair",
        "tool",
        "bytes",
        "percent",
        "make_s",
        "make_mib",
        "apply_s",
        "apply_mib",
    )
    return [
        format(row[name], forms.get(name, "")) if name in row else "" for name in names
    ]


if __name__ == "__main__":
    main()
