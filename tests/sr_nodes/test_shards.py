"""Shards: each picture once an epoch, in an order that is a function of position, whoever reads it."""

from __future__ import annotations

import itertools
import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sr_nodes.assets import graphs
from sr_nodes.pictures import UnreadablePicture
from sr_nodes.shard_files import make_shard, scanned, shard_parts
from sr_nodes.shards import Shards, open_shards, shard_crops
from sr_pipeline.check import with_settings
from sr_pipeline.graph import Graph
from sr_pipeline.registry import Registry
from sr_pipeline.run import run
from sr_pipeline.sockets import Reporter, SeedSource
from sr_pipeline.world import World

SEED = SeedSource(3, "crops")


class Notes(Reporter):
    """Keeps what a node reports."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done: list[tuple[int, int]] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, done: int, total: int) -> None:
        self.done.append((done, total))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


HEAD = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))


def numbered(number: int) -> bytes:
    """A PNG of 8x8 pixels that are all its number; every third one is longer."""
    rows = (b"\0" + number.to_bytes(3, "big") * 8) * 8
    return HEAD + chunk(b"IDAT", zlib.compress(rows, 0 if number % 3 else 1)) + chunk(b"IEND", b"")


def numbers(batch: Tensor) -> list[int]:
    """Of the pictures that the crops of a batch are from; it fails if a crop mixes two."""
    levels = (batch * 255).round().to(torch.int64).flatten(2)
    assert torch.equal(levels.amin(2), levels.amax(2))
    return (levels[:, :, 0] @ torch.tensor([65536, 256, 1])).tolist()


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, BytesIO(data))


def shards_of(folder: Path, *counts: int) -> Shards:
    """Shards of another tool, with numbered pictures: so many in each."""
    folder.mkdir(exist_ok=True)
    number = itertools.count()
    for shard, count in enumerate(counts):
        tar(folder / f"{shard}.tar", {f"{n:06d}.png": numbered(n) for n in itertools.islice(number, count)})
    return open_shards(str(folder))


def packed(folder: Path, output: Path, **options: Any) -> Shards:
    for part in shard_parts((str(folder),), str(output), **options):
        make_shard(part)
    return open_shards(str(output))


@pytest.mark.parametrize("count", [9_999, pytest.param(100_000, marks=pytest.mark.full)])
def test_each_picture_once_an_epoch_over_three_ranks(tmp_path: Path, count: int) -> None:
    """From files to crops, over uneven shards; a batch in the middle lies in two epochs."""
    for number in range(count):
        path = tmp_path / "in" / f"{number // 1000:03d}" / f"{number:06d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(numbered(number))
    shards = packed(tmp_path / "in", tmp_path / "out", shard_mb=0.17, shard_count=1100, min_size=8)
    assert len(shards) == count
    assert len(set(np.diff(shards.first))) > 2
    batch = 600
    steps = -(-2 * count // batch)
    streams = [shard_crops(shards, 8, batch, steps, buffer=2048, seed=SEED, world=World(rank, 3)) for rank in range(3)]
    seen = [n for parts in zip(*streams, strict=True) for part in parts for n in numbers(part)]
    first, second = seen[:count], seen[count : 2 * count]
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second
    for epoch in (first, second):
        assert sum(a + 1 == b for a, b in itertools.pairwise(epoch)) < 0.01 * count  # neighbours are apart


def noisy(folder: Path, *counts: int) -> Shards:
    """Shards of pictures of which no two crops are alike."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for shard, count in enumerate(counts):
        files = {}
        for number in range(count):
            out = BytesIO()
            PIL.Image.fromarray(draws.integers(0, 256, (14, 18, 3), dtype=np.uint8)).save(out, "PNG")
            files[f"{number}.png"] = out.getvalue()
        tar(folder / f"{shard}.tar", files)
    return open_shards(str(folder))


def test_a_batch_depends_on_seed_and_position_alone(tmp_path: Path) -> None:
    """Whatever the start, the workers and the ranks; also after a way through pickle, as to workers elsewhere."""
    shards = noisy(tmp_path / "in", 5, 0, 11, 1, 6)

    def crops(**options: Any) -> Iterator[Tensor]:
        return shard_crops(pickle.loads(pickle.dumps(shards)), 10, 6, 9, buffer=7, **{"seed": SEED} | options)

    expected = list(crops())
    assert len(expected) == 9
    assert all(batch.shape == (6, 3, 10, 10) for batch in expected)
    for workers, start, size in itertools.product((0, 2), (0, 1, 5), (1, 2, 3)):
        ranks = [crops(workers=workers, start=start, world=World(rank, size)) for rank in range(size)]
        found = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
        assert len(found) == 9 - start
        assert all(torch.equal(a, b) for a, b in zip(found, expected[start:], strict=True))
    for other in (SeedSource(4, "crops"), SeedSource(3, "crops2")):
        assert not torch.equal(next(crops(seed=other)), expected[0])
    with pytest.raises(ValueError, match="a batch of 6 does not divide by 4 processes"):
        next(crops(world=World(0, 4)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(1, 12), st.integers(1, 40))
def test_the_order_of_an_epoch(tmp_path_factory: Any, counts: list[int], buffer: int, batch: int) -> None:
    """After each block of ``buffer``, files are read to the end, or not at all, or one of them up to somewhere."""
    shards = shards_of(tmp_path_factory.mktemp("shards"), *counts)
    count = sum(counts)
    stream = shard_crops(shards, 8, batch, -(-2 * count // batch), buffer=buffer, seed=SEED)
    seen = [n for part in stream for n in numbers(part)]
    for epoch in (seen[:count], seen[count : 2 * count]):
        assert sorted(epoch) == list(range(count))
        for end in range(buffer, count, buffer):
            read = [[n for n in sorted(epoch[:end]) if a <= n < b] for a, b in itertools.pairwise(shards.first)]
            assert all(part == list(range(a, a + len(part))) for a, part in zip(shards.first, read, strict=False))
            assert sum(0 < len(part) < total for part, total in zip(read, counts, strict=True)) <= 1


def test_epochs_take_shards_and_pictures_in_other_orders(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, *[10] * 10)
    seen = [n for part in shard_crops(shards, 8, 10, 30, buffer=10, seed=SEED) for n in numbers(part)]
    epochs = [[seen[e + s : e + s + 10] for s in range(0, 100, 10)] for e in (0, 100, 200)]
    files = [[block[0] // 10 for block in epoch] for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in files)
    assert len({tuple(order) for order in [*files, list(range(10))]}) == 4
    blocks = [tuple(n % 10 for n in block) for epoch in epochs for block in epoch]
    assert len(set(blocks)) == 30


class Announced(Shards):
    """Keeps what is announced."""

    def announce(self, numbers: Any) -> None:
        super().announce(numbers)
        said.append(numbers.tolist())


said: list[list[int]] = []


def test_what_is_announced_is_what_is_read_in_the_next_block(tmp_path: Path) -> None:
    """By each rank its own, once, a block ahead: so that no process reads what is another's."""
    made = shards_of(tmp_path, 7, 12, 3, 9)
    shards = Announced(made.files, made.index, made.first)
    for rank in range(3):
        said.clear()
        stream = shard_crops(shards, 8, 6, 11, buffer=9, workers=0, seed=SEED, world=World(rank, 3))
        read = [n for part in stream for n in numbers(part)]
        places = [divmod(p, 31) for p in range(66) if p % 6 // 2 == rank]
        assert len(read) == len(places)
        blocks = [
            [n for n, (epoch, place) in zip(read, places, strict=True) if 4 * epoch + place // 9 == block]
            for block in range(8)
        ]  # two epochs of 9, 9, 9 and 4
        assert [sorted(block) for block in said[:7]] == [sorted(block) for block in blocks[1:]]


def test_a_batch_larger_than_the_set(tmp_path: Path) -> None:
    (batch,) = shard_crops(shards_of(tmp_path, 2, 3), 8, 12, 1)
    seen = numbers(batch)
    assert sorted(seen[:5]) == sorted(seen[5:10]) == list(range(5))


def test_the_global_random_numbers_do_not_move(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    list(shard_crops(shards_of(tmp_path, 4), 8, 2, 3))
    assert torch.equal(torch.get_rng_state(), before)


# Shards of others, and damaged ones


def test_every_file_with_a_pictures_suffix_is_one_picture(tmp_path: Path) -> None:
    out = BytesIO()
    PIL.Image.new("RGB", (30, 20), (1, 2, 3)).save(out, "WEBP", lossless=True)
    files = {"a/b.png": numbered(9), "a/b.cls": b"7", "a/b.json": b"{}", "c.webp": out.getvalue(), "d.jpg": b"text"}
    tar(tmp_path / "x.tar", files)
    notes = Notes()
    shards = open_shards(str(tmp_path), notes)
    assert [tuple(picture.shape) for picture in (shards[0], shards[1])] == [(3, 8, 8), (3, 20, 30)]
    assert shards.index[:, 2].tolist() == [8, 20]
    assert shards[1][:, 0, 0].tolist() == [1, 2, 3]
    assert notes.warnings == [f"left out: {tmp_path / 'x.tar'}: d.jpg: not a picture, or of a kind unknown to Pillow"]
    assert notes.done == [(1, 1)]


def test_a_picture_smaller_than_a_crop_is_named(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, 2, 5)
    words = r"of 9x9: .*0\.tar: 000000\.png, .*1\.tar: 000002\.png, .* and 2 more; make size smaller, or the shards"
    with pytest.raises(ValueError, match=words):
        next(shard_crops(shards, 9))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, 2, 3)
    offset, length, _ = shards.index[3].tolist()
    with (tmp_path / "1.tar").open("r+b") as file:
        file.seek(offset + length // 2)
        file.write(b"damaged" * 3)
    assert set(shards[2].flatten().tolist()) == {0, 2}
    with pytest.raises(UnreadablePicture, match=r"1\.tar: 000003\.png: damaged"):
        list(shard_crops(shards, 8, 5, 1))


def test_a_shard_that_goes_away_is_named(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, 2)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UnreadablePicture, match=r"0\.tar: byte \d+: No such file"):
        shards[1]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_truncated_shard_is_named(tmp_path: Path, indexed: bool) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.png").write_bytes(numbered(number))
    out = tmp_path / "out"
    whole = packed(tmp_path / "in", out, shard_count=3, min_size=8)
    cut, data = out / "shard-000001.tar", (out / "shard-000001.tar").read_bytes()
    cut.write_bytes(data[: int(whole.index[5, 0]) + 10])
    if not indexed:
        for extra in [out / "shards.json", *out.glob("*.npy")]:
            extra.unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.tar is truncated"):
        open_shards(str(out))
    if indexed:  # the mend of the text
        assert len(packed(tmp_path / "in", out, shard_count=3, min_size=8)) == 6
        assert cut.read_bytes() == data


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{"])
def test_a_damaged_list_or_index_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(numbered(0))
    packed(tmp_path / "in", tmp_path / "out", shard_count=1, min_size=8)
    index = next((tmp_path / "out").glob("*.npy"))
    whole = index.read_bytes()
    for damaged in (content, whole[:100]):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{index.name} is damaged; remove it, and it is made again"):
            open_shards(str(tmp_path / "out"))
    index.write_bytes(whole)
    (tmp_path / "out" / "shards.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"shards\.json is damaged; sr-pipeline shards makes it again"):
        open_shards(str(tmp_path / "out"))


def test_links_in_a_shard_of_others_are_left_out_with_a_word(tmp_path: Path) -> None:
    picture = numbered(1)
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        made.addfile(tarinfo("a.png", len(picture)), BytesIO(picture))
        for name, kind, to in (("b.png", tarfile.LNKTYPE, "a.png"), ("c.png", tarfile.SYMTYPE, "/nowhere/x.png")):
            link = tarinfo(name, 0)
            link.type, link.linkname = kind, to
            made.addfile(link)
    warned: list[str] = []
    assert len(scanned(tmp_path / "a.tar", warned.append)) == 1
    assert [text.split(": ")[2] for text in warned] == ["b.png", "c.png"]


def tarinfo(name: str, size: int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    return made


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no \.tar file in .*; sr-pipeline shards makes them"):
        open_shards(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"a\.tar is truncated, damaged or no tar file"):
        open_shards(str(tmp_path))
    tar(tmp_path / "a.tar", {"a.txt": b"text"})
    with pytest.raises(ValueError, match="hold no picture"):
        open_shards(str(tmp_path))


def test_a_graph_trains_from_shards(registry: Registry, tmp_path: Path) -> None:
    """train_srresnet.json with two nodes of other types; stopped and resumed to the same weights."""
    noisy(tmp_path / "in", 4, 9)
    nodes = json.loads((graphs() / "train_srresnet.json").read_text(encoding="utf-8"))
    nodes["photos"] = {"class_type": "open_shards", "inputs": {"folder": str(tmp_path / "in")}}
    nodes["hr"]["class_type"] = "shard_crops"
    nodes["hr"]["inputs"] |= {"shards": nodes["hr"]["inputs"].pop("photos"), "size": 8, "batch": 2, "buffer": 5}
    for name in ("preview", "validate", "pairs"):
        del nodes[name]
    (tmp_path / "graph.json").write_text(json.dumps(nodes), encoding="utf-8")
    settings = ["generator.blocks=1", "generator.channels=4"]
    graph = with_settings(Graph.load(tmp_path / "graph.json"), registry, settings)
    straight = run(graph, registry=registry, steps=9, run_dir=tmp_path / "a").run_dir
    run(graph, registry=registry, steps=4, run_dir=tmp_path / "b")
    resumed = run(graph, registry=registry, steps=9, run_dir=tmp_path / "b", resume=True).run_dir
    expected, found = (load_file(folder / "generator.safetensors") for folder in (straight, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
