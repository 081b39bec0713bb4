"""Nothing that is loaded can run code: the source is searched for calls that could, and real payloads are tried."""

from __future__ import annotations

import ast
import gzip
import io
import os
import pickle
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

import minidet
from minidet.data.archive import unpack
from minidet.data.images import FORMATS, read_image
from minidet.data.voc import read_voc
from minidet.detectors.imagenet import load_backbone_weights
from minidet.detectors.tensor_files import read_tensor_file
from minidet.errors import MinidetError
from minidet.layers.resnet import ResNet
from minidet.training.checkpoint import load_checkpoint

PACKAGE = Path(minidet.__file__).parent

# ---- what the source may not hold ------------------------------------------------------------------------------------

# Modules that run or unpickle what they are given, or start programs. `pickle` is here for one reader, checked below.
MODULES = {
    "cloudpickle",
    "code",
    "codeop",
    "ctypes",
    "dill",
    "imp",
    "joblib",
    "marshal",
    "pty",
    "runpy",
    "shelve",
    "subprocess",
    "torch.package",
    "xml.dom",
    "xml.sax",
    "xmlrpc",
    "yaml",
}
BUILTINS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
ATTRIBUTES = {
    "os.system",
    "os.popen",
    "os.startfile",
    "importlib.import_module",
    "torch.jit.load",
    "torch.export.load",
    "torch.hub.load",
    "shutil.unpack_archive",
}
METHODS = {"extractall", "extract"}  # of archives: they believe the names inside
SAFE_FLAGS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
DOWNLOADS = {
    "load_state_dict_from_url",
    "get_state_dict",
}  # torch.hub's unpickles whatever lies in its cache unless told not to
XML = {
    "ET.parse",
    "ET.iterparse",
    "ET.XML",
    "ET.fromstring",
    "ET.fromstringlist",
}  # safe with a parser that knows no doctype


def name_of(node: ast.AST) -> str:
    """`torch.hub.load` of the expression that says so; empty for anything that is no dotted name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ""


def unsafe(source: str) -> list[str]:
    """Every place of a module that could run what it reads."""
    tree = ast.parse(source)
    found = []

    def note(node: ast.AST, what: str) -> None:
        found.append(f"line {node.lineno}: {what}")

    bases = {id(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            whole = [alias.name for alias in node.names]
            names = (
                whole if isinstance(node, ast.Import) else [node.module or "", *(f"{node.module}.{n}" for n in whole)]
            )
            for name in names:
                if any(name == module or name.startswith(module + ".") for module in MODULES):
                    note(node, f"imports {name}")
            if isinstance(node, ast.ImportFrom) and node.module in (
                "pickle",
                "os",
                "torch",
                "numpy",
                "importlib",
                "zipfile",
            ):
                for name in whole:
                    if f"{node.module}.{name}" in ATTRIBUTES | SAFE_FLAGS.keys() or node.module == "pickle":
                        note(node, f"imports {node.module}.{name} by itself, out of this test's sight")
        elif isinstance(node, ast.Attribute) and name_of(node).startswith("pickle."):
            # The error, and the base of a reader that decides itself what a file may name.
            if node.attr != "UnpicklingError" and id(node) not in bases:
                note(node, name_of(node))
        elif isinstance(node, ast.Call):
            name, flags = name_of(node.func), {word.arg: word.value for word in node.keywords}
            last = node.func.attr if isinstance(node.func, ast.Attribute) else name

            def has(flag: str, value: bool, flags: dict = flags) -> bool:
                return isinstance(flags.get(flag), ast.Constant) and flags[flag].value is value

            if name in BUILTINS or name in ATTRIBUTES or last in METHODS or name.startswith(("os.exec", "os.spawn")):
                note(node, name or last)
            if name in SAFE_FLAGS and not has(*SAFE_FLAGS[name]):
                note(node, f"{name} without {'='.join(map(str, SAFE_FLAGS[name]))}")
            if last in DOWNLOADS and not has("weights_only", True):
                note(node, f"{last} without weights_only=True")
            if name in XML and "parser" not in flags:
                note(node, f"{name} without a parser that refuses document types")
            if name.endswith("Image.open") and "formats" not in flags:
                note(node, "Image.open without formats: some of them start an interpreter")
            if has("shell", True):
                note(node, "shell=True")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_can_run_what_it_reads(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "import torch\ntorch.load(p, weights_only=flag)",
        "from torch import load",
        "import numpy as np\nnp.load(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import pickle\npickle.loads(b)",
        "import pickle\nread = pickle.Unpickler",
        "from pickle import loads",
        "import marshal",
        "from yaml import load",
        "import yaml.loader",
        "import subprocess",
        "import os\nos.system(command)",
        "import os\nos.execvp(a, b)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "import importlib\nimportlib.import_module(name)",
        "archive.extractall(folder)",
        "import xml.etree.ElementTree as ET\nET.fromstring(text)",
        "from torch.hub import load_state_dict_from_url as f\nx.load_state_dict_from_url(u)",
        "weights.get_state_dict(check_hash=True)",
        "run(command, shell=True)",
        "from PIL import Image\nImage.open(path)",
        "import torch\ntorch.jit.load(p)",
    ],
)
def test_the_search_finds_each_way(source):
    assert unsafe(source) != []


# ---- payloads --------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that exists once a payload ran."""
    marker = tmp_path / "it_ran"
    yield marker
    assert not marker.exists()


def payloads(marker: Path) -> dict[str, bytes]:
    calls = {
        "a file is opened": (open, (str(marker), "w")),
        "a shell": (os.system, (f"touch '{marker}'",)),
        "Python": (exec, (f"open({str(marker)!r}, 'w')",)),
    }
    made = {}
    for name, call in calls.items():
        content = {"model": {"w": Payload(call)}}
        for protocol in (0, 2, 4):
            made[f"{name}, protocol {protocol}"] = pickle.dumps(content, protocol)
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=new)
            made[f"{name}, torch {'zip' if new else 'legacy'}"] = buffer.getvalue()
    return made


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".safetensors", ""])
def test_programs_in_pickles_do_not_run_whatever_reads_them(tmp_path, marker, suffix):
    path, backbone = tmp_path / f"weights{suffix}", ResNet("resnet18")
    for content in payloads(marker).values():
        path.write_bytes(content)
        with _whatever():  # of a legacy file, a harmless number in front of the program is read
            read_tensor_file(path)
        for read in (minidet.load_model, load_checkpoint):
            with pytest.raises(MinidetError):
                read(path)
        for name in ("yolox-nano", "yolof-r18-c5"):
            with pytest.raises(MinidetError):
                minidet.load_official(name, path)
        with pytest.raises(MinidetError):
            load_backbone_weights(backbone, path)
        assert not marker.exists()


def test_the_payloads_are_real(tmp_path):
    marker = tmp_path / "it_ran"
    for name, content in payloads(marker).items():
        if "torch" not in name:
            pickle.loads(content)
            assert marker.exists(), name
            marker.unlink()


def test_a_program_in_the_place_of_downloaded_weights_does_not_run(tmp_path, marker, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    path.parent.mkdir()
    backbone = ResNet("resnet18")
    for content in payloads(marker).values():
        path.write_bytes(content)
        with pytest.raises(MinidetError, match="could not download"):
            load_backbone_weights(backbone)
        assert not marker.exists()


def test_an_archive_reaches_nothing_outside_its_folder(tmp_path):
    outside, archive = tmp_path / "outside", tmp_path / "archive"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as content:
        link = tarfile.TarInfo("here")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        content.addfile(link)
        file = tarfile.TarInfo("here/kept")
        file.size = 5
        content.addfile(file, io.BytesIO(b"yours"))
    for made in (buffer.getvalue(), gzip.compress(buffer.getvalue())):
        archive.write_bytes(made)
        with pytest.raises(MinidetError, match="link or a device"):
            unpack(archive, tmp_path / "out", progress=False)
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("../outside/kept", "yours")
    with pytest.raises(MinidetError, match="leads out"):
        unpack(archive, tmp_path / "out", progress=False)
    assert (outside / "kept").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "outside"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_entity_bomb_is_refused_at_once_and_in_little_memory(tmp_path, encoding):
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    start = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY l0 "ha">{entities}]>'
    text = start + "<annotation>&l11;</annotation>"
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(MinidetError, match="entity bomb"):
        read_voc(tmp_path / "a.xml")
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 2**25  # a real annotation may have 16 MiB, expanded it were 200 GB
    tracemalloc.stop()


def test_an_external_entity_is_neither_read_nor_asked_for(tmp_path):
    secret, pipe = tmp_path / "secret", tmp_path / "pipe"
    secret.write_text("the secret")
    os.mkfifo(pipe) if hasattr(os, "mkfifo") else pipe.touch()  # opening it would wait for ever
    for target in (secret, pipe):
        for declaration in (f'<!ENTITY x SYSTEM "{target.as_uri()}">', f'<!ENTITY % x SYSTEM "{target.as_uri()}"> %x;'):
            (tmp_path / "a.xml").write_text(f"<!DOCTYPE a [{declaration}]><annotation>&x;</annotation>")
            raised: list[Exception] = []

            def read(raised: list[Exception] = raised) -> None:
                try:
                    read_voc(tmp_path / "a.xml")
                except MinidetError as error:
                    raised.append(error)

            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            thread.join(5)
            assert not thread.is_alive()
            assert "document type" in str(raised[0])
            assert "the secret" not in str(raised[0])


def test_a_header_of_100_gigabytes_takes_no_memory(tmp_path):
    for length in (100 * 10**9, 2**63, 99_000_000):
        (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        tracemalloc.start()
        for read in (read_tensor_file, minidet.load_model):
            with pytest.raises(MinidetError, match="whole safetensors"):
                read(tmp_path / "w.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


def test_a_pickle_cannot_ask_for_memory_that_its_file_does_not_fill(tmp_path):
    for content in (
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
        b"\x80\x02K\x01J\xff\xff\xff\x7f\x85.",
    ):
        (tmp_path / "w.pkl").write_bytes(content)
        tracemalloc.start()
        with _whatever():
            read_tensor_file(tmp_path / "w.pkl")
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


class _whatever:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, MinidetError)


def test_only_formats_that_are_decoded_by_pillow_itself_are_opened():
    assert not set(FORMATS) & {"EPS", "PDF", "WMF", "FPX", "MIC", "PSD", "GRIB", "HDF5", "BUFR", "MPEG"}


def test_pillows_guards_are_up(tmp_path):
    from PIL import ImageFile

    import minidet.cli  # noqa: F401 - whatever it sets, it sets now

    assert Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS <= 200_000_000
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    Image.new("1", (40_000, 20_000)).save(tmp_path / "bomb.png")  # 800 million pixels in a few kilobytes
    tracemalloc.start()
    with pytest.raises(MinidetError, match="more pixels than a picture"):
        read_image(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
