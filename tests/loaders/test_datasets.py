"""Every layout is found, listed in the same order everywhere, and refused with a reason when it is broken."""

import os
import pickle
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders import engines, identity, soundness
from loaders.datasets import (
    KNOWN,
    Dataset,
    LeftOut,
    check_same_classes,
    holdout,
    merge_folders,
    open_dataset,
    open_splits,
    open_unlabelled,
    placeholder,
    read_batch,
)
from loaders.errors import DataError
from loaders.images import check
from loaders.options import LoaderOptions


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def names(dataset: Dataset) -> list[tuple[str, str]]:
    return [
        (dataset.classes[label], os.path.basename(path))
        for path, label in zip(dataset.files, dataset.labels, strict=True)
    ]


def test_folder_of_class_folders(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/b.JPEG", "cat/a.jpg", "cat/deep/c.jpg", "cat/.hidden.jpg", "cat/readme.txt"):
        image(tmp_path / name) if name.endswith(("g", "G")) else (tmp_path / name).write_text("")
    dataset = open_dataset(tmp_path)
    assert names(dataset) == [("cat", "a.jpg"), ("cat", "b.JPEG"), ("cat", "c.jpg"), ("dog", "2.png")]
    assert dataset.split == "all"
    assert open_dataset(tmp_path, "val").files == dataset.files


def test_flat_folder_is_one_class(tmp_path: Path) -> None:
    image(tmp_path / "b.jpg")
    image(tmp_path / "a.jpg")
    dataset = open_dataset(tmp_path)
    assert [os.path.basename(path) for path in dataset.files] == ["a.jpg", "b.jpg"]
    assert dataset.labels == (0, 0)
    assert len(dataset.classes) == 1


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "val.X"])
def test_train_and_val_folders(tmp_path: Path, val: str) -> None:
    for name in ("n01", "n02"):
        image(tmp_path / "train" / name / "t.JPEG")
        image(tmp_path / val / name / "v.JPEG")
    assert names(open_dataset(tmp_path, "train")) == [("n01", "t.JPEG"), ("n02", "t.JPEG")]
    assert names(open_dataset(tmp_path, "val")) == [("n01", "v.JPEG"), ("n02", "v.JPEG")]
    assert [dataset.split for dataset in open_splits(tmp_path)] == ["train", "val"]


def test_train_spread_over_several_folders_is_merged(tmp_path: Path) -> None:
    for part, name in (("train.X1", "b"), ("train.X2", "a"), ("train.X3", "c"), ("train.X3", "a")):
        image(tmp_path / part / name / f"{part}.jpg")
    for name in "abc":
        image(tmp_path / "val.X" / name / "v.jpg")
    train, val = open_splits(tmp_path)
    assert names(train) == [("a", "train.X2.jpg"), ("a", "train.X3.jpg"), ("b", "train.X1.jpg"), ("c", "train.X3.jpg")]
    assert train.classes == val.classes == ("a", "b", "c")
    named = merge_folders([tmp_path / f"train.X{i}" for i in (1, 2, 3)])
    assert named.files == train.files
    assert merge_folders([tmp_path / "train.X1", tmp_path / "train.X2"]).classes == ("a", "b")


def test_classes_that_differ_between_train_and_val_are_named(tmp_path: Path) -> None:
    image(tmp_path / "train" / "cat" / "1.jpg")
    image(tmp_path / "val" / "dog" / "1.jpg")
    for split in ("train", "val"):
        with pytest.raises(DataError, match="only in the first: cat; only in the second: dog"):
            open_dataset(tmp_path, split)
    with pytest.raises(DataError, match="differ"):
        check_same_classes(merge_folders([tmp_path / "train"]), merge_folders([tmp_path / "val"]))


def test_a_test_folder_of_other_classes_beside_a_good_val_is_refused(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "cat"), ("test", "dog")):
        image(tmp_path / split / name / "1.jpg")
    with pytest.raises(DataError, match="only in the first: cat; only in the second: dog"):
        open_splits(tmp_path)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    image(tmp_path / "train" / "cat" / "1.jpg")
    assert len(open_dataset(tmp_path, "train")) == 1
    with pytest.raises(DataError, match="no folder for split val"):
        open_dataset(tmp_path, "val")
    with pytest.raises(DataError, match="unknown split 'eval'; known: train, val, test"):
        open_dataset(tmp_path, "eval")


def test_tiny_imagenet(tmp_path: Path) -> None:
    for name in ("n02", "n01"):
        image(tmp_path / "train" / name / "images" / f"{name}_0.JPEG")
    lines = [f"val_{i}.JPEG\t{name}\t0\t0\t62\t62" for i, name in enumerate(("n02", "n01", "n02"))]
    for i in range(3):
        image(tmp_path / "val" / "images" / f"val_{i}.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    train, val = open_splits(tmp_path)
    assert names(train) == [("n01", "n01_0.JPEG"), ("n02", "n02_0.JPEG")]
    assert val.labels == (1, 0, 1)
    assert train.classes == val.classes
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    with pytest.raises(DataError, match="line 1"):
        open_dataset(tmp_path, "val")


def write_cifar10(folder: Path, images: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (6 * images, 3072), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        chosen = rows[part * images : (part + 1) * images]
        batch = {b"data": chosen, b"labels": [i % 10 for i in range(images)], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {b"label_names": [f"name{i}".encode() for i in range(10)], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return rows


def test_cifar10_batches(tmp_path: Path) -> None:
    rows = write_cifar10(tmp_path / "cifar-10-batches-py")
    train, test = open_splits(tmp_path)
    assert (len(train), len(test)) == (100, 20)
    assert train.classes == tuple(f"name{i}" for i in range(10))
    assert train.pixels is not None
    np.testing.assert_array_equal(train.pixels[7], rows[7].reshape(3, 32, 32).transpose(1, 2, 0))
    assert train.labels[:12] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1)
    chosen = train.select([5, 7])
    assert chosen.labels == (5, 7)
    assert chosen.pixels is not None
    np.testing.assert_array_equal(chosen.pixels[1], train.pixels[7])
    with pytest.raises(DataError, match="dali reads image files.*use packed, resident, pil or torchvision"):
        train.need_files("dali")


def test_cifar100_batches(tmp_path: Path) -> None:
    for name, images in (("train", 200), ("test", 100)):
        data = np.zeros((images, 3072), np.uint8)
        batch = {b"data": data, b"fine_labels": [i % 100 for i in range(images)], b"coarse_labels": [0] * images}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {b"fine_label_names": [f"fine{i:02d}".encode() for i in range(100)]}
    (tmp_path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    train, test = open_splits(tmp_path)
    assert (len(train), len(test), len(train.classes)) == (200, 100, 100)


def test_missing_cifar_part_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(DataError, match="lacks data_batch_4"):
        open_dataset(tmp_path)


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Payload(f"touch {trace}")}, protocol=2))
    with pytest.raises(DataError, match=r"refused to read .*data_batch_1: .*system.*not run"):
        open_dataset(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2])])
def test_a_broken_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"f\.pkl"):
        read_batch(tmp_path / "f.pkl")


@pytest.mark.parametrize(
    "call", [np.load, eval, exec, open, __import__, getattr, os.listdir, pickle.loads], ids=lambda f: f.__name__
)
def test_only_arrays_may_be_unpickled(tmp_path: Path, call: object) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return call, ("x",)

    (tmp_path / "f.pkl").write_bytes(pickle.dumps({b"data": Call()}))
    with pytest.raises(DataError, match="not run"):
        read_batch(tmp_path / "f.pkl")


def test_missing_and_empty_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist.*bench data make"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="no images in"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        open_dataset(image(tmp_path / "x.jpg"))
    (tmp_path / "full").mkdir()
    image(tmp_path / "set" / "full" / "1.jpg")
    (tmp_path / "set" / "hollow").mkdir()
    with pytest.raises(DataError, match="class folder hollow.*holds no images"):
        open_dataset(tmp_path / "set")


def test_listing_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    for root, order in (("one", range(20)), ("two", reversed(range(20)))):
        for i in order:
            image(tmp_path / root / f"c{i % 3}" / f"{i}.jpg")
    assert names(open_dataset(tmp_path / "one")) == names(open_dataset(tmp_path / "two"))


def test_placeholder_counts_without_files() -> None:
    dataset = placeholder(10, 3)
    assert len(dataset) == 10
    assert len(dataset.classes) == 3
    assert dataset.files == ()


def test_imagenet_with_flat_validation_images(tmp_path: Path) -> None:
    for name in ("n02", "n01"):
        image(tmp_path / "train" / name / f"{name}_0.JPEG")
    for i in range(3):
        image(tmp_path / "val" / f"ILSVRC2012_val_{i}.JPEG")
    truths = {
        "val.txt": "".join(f"ILSVRC2012_val_{i}.JPEG {label}\n" for i, label in enumerate((1, 0, 1))),
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "".join(f"ILSVRC2012_val_{i},{name} 1 2 3 4\n" for i, name in enumerate(("n02", "n01", "n02"))),
        "imagenet_2012_validation_synset_labels.txt": "n02\nn01\nn02\n",
    }
    for name, text in truths.items():
        (tmp_path / name).write_text(text)
        train, val = open_splits(tmp_path)
        assert val.labels == (1, 0, 1), name
        assert [os.path.basename(path) for path in val.files] == [f"ILSVRC2012_val_{i}.JPEG" for i in range(3)]
        assert train.classes == val.classes == ("n01", "n02")
        (tmp_path / name).unlink()
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("0\n1\n0\n")
    with pytest.raises(DataError, match="line 1: expected an image of val and one of 2 classes"):
        open_dataset(tmp_path, "val")


def test_a_half_unpacked_folder_counts_the_empty_classes(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / "train" / name).mkdir(parents=True)
    image(tmp_path / "train" / "a" / "1.jpg")
    with pytest.raises(DataError, match=r"5 of 6 class folders in .*: b, c, d and 2 more; unpack"):
        open_dataset(tmp_path)


def test_a_batch_whose_rows_and_labels_differ_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    cut = {b"data": np.zeros((7, 3072), np.uint8), b"labels": [0] * 20}
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(cut, protocol=2))
    with pytest.raises(DataError, match="data_batch_3 holds 7 images but 20 labels; unpack"):
        open_dataset(tmp_path)


def numbered(images: int, classes: int) -> Dataset:
    pixels = np.arange(images, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    labels = tuple((i * i) % classes for i in range(images))
    return Dataset("numbered", "", "train", (), labels, tuple(map(str, range(classes))), pixels)


@pytest.mark.parametrize("share", [0.1, 0.25, 37, 1.5])
def test_holdout_is_stratified_disjoint_and_the_same_each_time(share: float) -> None:
    dataset = numbered(200, 5)
    rest, held = holdout(dataset, share, seed=3)
    wanted = int(share) if share > 1 else round(share * 200)
    assert (len(rest), len(held)) == (200 - wanted, wanted)
    assert rest.pixels is not None
    assert held.pixels is not None
    ours, theirs = rest.pixels[:, 0, 0, 0].tolist(), held.pixels[:, 0, 0, 0].tolist()
    assert sorted(ours + theirs) == list(range(200))
    assert ours == sorted(ours)
    for label in set(dataset.labels):
        exact = dataset.labels.count(label) * wanted / 200
        assert abs(held.labels.count(label) - exact) <= 1
    again = holdout(dataset, share, seed=3)[1]
    assert again.pixels is not None
    assert again.pixels[:, 0, 0, 0].tolist() == theirs
    if wanted > 1:
        other = holdout(dataset, share, seed=4)[1]
        assert other.pixels is not None
        assert other.pixels[:, 0, 0, 0].tolist() != theirs
    assert (rest.split, held.split, held.classes) == ("train", "val", dataset.classes)


def test_holdout_leaves_every_class_an_image() -> None:
    dataset = Dataset("few", "", "train", tuple("abcd"), (0, 0, 0, 1), ("x", "y"))
    rest, held = holdout(dataset, 0.6)
    assert 1 in rest.labels
    assert len(held) == 2
    for share in (0.0, 1.0, 4, 0.01):
        with pytest.raises(DataError, match="one part empty"):
            holdout(dataset, share)


@pytest.mark.parametrize("planar", [True, False])
def test_unlabelled_pickle(tmp_path: Path, planar: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    data = pixels.transpose(0, 3, 1, 2).reshape(5, -1) if planar else pixels
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({b"data": data, b"ids": np.arange(10, 15)}, protocol=2))
    unlabelled = open_unlabelled(tmp_path / "f.pkl")
    assert unlabelled.pixels is not None
    np.testing.assert_array_equal(unlabelled.pixels, pixels)
    assert unlabelled.ids == ("10", "11", "12", "13", "14")


def test_unlabelled_pickle_without_ids_is_numbered_and_one_with_others_refused(tmp_path: Path) -> None:
    data = np.zeros((2, 3072), np.uint8)
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({b"data": data}, protocol=2))
    assert open_unlabelled(tmp_path / "f.pkl").ids == ("0", "1")
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({b"data": data, b"ids": [b"a"]}, protocol=2))
    with pytest.raises(DataError, match="2 images but 1 ids"):
        open_unlabelled(tmp_path / "f.pkl")
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({b"images": data}, protocol=2))
    with pytest.raises(DataError, match="lacks data; it has: images"):
        open_unlabelled(tmp_path / "f.pkl")
    with pytest.raises(DataError, match="does not exist"):
        open_unlabelled(tmp_path / "g.pkl")


def test_unlabelled_folder(tmp_path: Path) -> None:
    image(tmp_path / "b.jpg")
    image(tmp_path / "deep" / "a.png")
    unlabelled = open_unlabelled(tmp_path)
    assert unlabelled.ids == ("b.jpg", os.path.join("deep", "a.png"))
    assert unlabelled.pixels is None
    assert [os.path.basename(path) for path in unlabelled.files] == ["b.jpg", "a.png"]


def test_an_unlabelled_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content = {b"data": np.zeros((1, 3072), np.uint8), b"ids": Payload(f"touch {trace}")}
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=r"refused to read .*f\.pkl: .*system.*not run"):
        open_unlabelled(tmp_path / "f.pkl")
    assert not trace.exists()


def test_published_figures_are_in_units_of_0_to_1() -> None:
    assert KNOWN["cifar10"].images == (50_000, 10_000)
    assert all(0 < value < 1 for known in KNOWN.values() for value in (*known.mean, *known.std))


def left_out(dataset: Dataset) -> dict[str, int]:
    return {each.reason: each.files for each in dataset.left_out}


def test_what_is_passed_over_is_counted_with_its_reason(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/deep/2.jpg", "dog/1.png", "loose.png", "cat/.hidden.jpg", ".cache/3.jpg"):
        image(tmp_path / name)
    for name in ("cat/a.xyz", "cat/deep/b.XYZ", "dog/noending", "dog/c.averylongending", "notes.abc"):
        (tmp_path / name).write_text("text")
    (tmp_path / "cat" / "gone.link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 3
    assert left_out(dataset) == {
        **{"ending .xyz": 2, "ending .abc": 1, "another ending or none": 2, "hidden": 2, "link that leads nowhere": 1},
        "image beside the class folders": 1,
        "neither file nor folder": 1,
    }
    examples = tuple(str(tmp_path / "cat" / name) for name in ("a.xyz", "deep/b.XYZ"))
    assert LeftOut("ending .xyz", 2, examples) in dataset.left_out
    for path in (*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")):
        path.unlink()
    with pytest.raises(DataError, match=r"no images in .* \(.*ending .xyz: 2.* left out\)"):
        open_dataset(tmp_path)


def test_an_empty_class_says_what_was_left_out_of_it(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "1.jpg")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.xyz").write_text("")
    with pytest.raises(DataError, match=r"class folder dog in .* holds no images \(ending .xyz: 1 left out\)"):
        open_dataset(tmp_path)


def test_each_file_is_listed_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / "set" / "cat" / f"{number}.jpg")
        image(tmp_path / "set" / "dog" / f"{number}.jpg")
        image(tmp_path / "store" / f"{number}.jpg")
    cat = tmp_path / "set" / "cat"
    (cat / "again.jpg").symlink_to("1.jpg")
    (cat / "loop").symlink_to(cat)
    (cat / "up").symlink_to(tmp_path / "set")
    (cat / "itself").symlink_to("itself")
    (cat / "stored").symlink_to(tmp_path / "store")
    (cat / "stored2").symlink_to(tmp_path / "store")
    for number in range(3):
        (tmp_path / "set" / "dog" / f"linked{number}.jpg").symlink_to(tmp_path / "store" / f"{number}.jpg")
    (tmp_path / "set" / "dog" / "gone.jpg").symlink_to("nowhere")
    dataset = open_dataset(tmp_path / "set")
    # An image by its name that cannot be read is not passed over: whoever reads it says so.
    assert [dataset.labels.count(label) for label in (0, 1)] == [6, 7]
    assert left_out(dataset) == {
        "link to an image that is listed already": 1,
        "folder that is listed already": 3,
        "link that leads nowhere": 1,
    }
    assert len(merge_folders([tmp_path / "set", tmp_path / "set"])) == 13


def test_a_folder_named_like_an_image_is_entered(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "album.jpg" / "1.png")
    assert names(open_dataset(tmp_path)) == [("cat", "1.png")]


def test_what_lies_beside_the_splits_is_counted(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        image(tmp_path / split / "cat" / f"{split}.jpg")
    for name in ("loose.jpg", "readme.txt", "extra/cat/1.jpg"):
        image(tmp_path / name) if name.endswith("g") else (tmp_path / name).write_text("")
    (tmp_path / "test").symlink_to("nowhere")
    train, val = open_splits(tmp_path)
    assert left_out(train) == {
        "folder beside those of the splits": 2,
        "image beside the folders of the splits": 1,
        "file named like a split or a batch": 1,
    }
    assert [os.path.basename(path) for path in val.files] == ["val.jpg"]


def test_an_empty_val_folder_does_not_hide_the_test_images(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for split in ("train", "test"):
        image(tmp_path / split / "cat" / f"{split}.jpg")
    train, val = open_splits(tmp_path)
    assert names(val) == [("cat", "test.jpg")]
    assert left_out(train) == {"folder beside those of the splits": 1}


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("remains", ["nothing", "an empty folder", "the images"])
def test_tiny_imagenet_whose_val_was_sorted(tmp_path: Path, inner: str, remains: str) -> None:
    lines = []
    for number, name in enumerate(("n02", "n01", "n02")):
        image(tmp_path / "train" / name / "images" / f"{name}_{number}.JPEG")
        image(tmp_path / "val" / name / inner / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n")
        if remains == "the images":
            image(tmp_path / "val" / "images" / f"val_{number}.JPEG")
    if remains == "an empty folder":
        (tmp_path / "val" / "images").mkdir()
    # What the text says counts no longer: it may name images that are not there, or nothing.
    for text in ("".join(lines), "val_9.JPEG\tn03\n", ""):
        (tmp_path / "val" / "val_annotations.txt").write_text(text)
        train, val = open_splits(tmp_path)
        assert train.classes == val.classes == ("n01", "n02")
        assert names(val) == [("n01", "val_1.JPEG"), ("n02", "val_0.JPEG"), ("n02", "val_2.JPEG")]
        assert (train.name, val.name) == ("tiny-imagenet/train", "tiny-imagenet/val")
        assert left_out(val)["ending .txt"] == 1
        assert ("folder beside the class folders" in left_out(val)) == (remains != "nothing")


def test_class_folders_of_val_that_are_still_empty_leave_the_text_in_force(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        image(tmp_path / "train" / name / "images" / f"{name}_0.JPEG")
        (tmp_path / "val" / name / "images").mkdir(parents=True)
        image(tmp_path / "val" / "images" / f"val_{name}.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_n01.JPEG\tn01\nval_n02.JPEG\tn02\n")
    assert open_dataset(tmp_path, "val").labels == (0, 1)


def test_imagenets_text_beside_a_sorted_val_plays_no_part(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            image(tmp_path / split / name / f"{split}_{name}.JPEG")
    for name in ("LOC_val_solution.csv", "val.txt", "val/val_annotations.txt"):
        (tmp_path / name).write_text("nothing of use\n")
    assert names(open_dataset(tmp_path, "val")) == [("n01", "val_n01.JPEG"), ("n02", "val_n02.JPEG")]


def flat_val(root: Path, images: int = 3) -> Path:
    for name in ("n01", "n02"):
        image(root / "train" / name / f"{name}_0.JPEG")
    for number in range(images):
        image(root / "val" / f"val_{number}.JPEG")
    return root


def test_a_text_that_fits_is_found_behind_one_that_does_not(tmp_path: Path) -> None:
    flat_val(tmp_path)
    (tmp_path / "val.txt").write_text("val/val_0.JPEG\nval/val_1.JPEG\n")
    with pytest.raises(DataError, match="val.txt line 1"):
        open_dataset(tmp_path, "val")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nval_0,n02 1 2\nval_2,n01 1 2\n")
    val = open_dataset(tmp_path, "val")
    assert names(val) == [("n02", "val_0.JPEG"), ("n01", "val_2.JPEG")]
    assert left_out(val) == {"image without a class in LOC_val_solution.csv": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("imagenet_2012_validation_synset_labels.txt", "n02\nn01\n", "has 2 classes for the 3 images of val"),
        ("val.txt", "val_0.JPEG 0\nval_0.JPEG 1\n", "line 2: val_0 has a class already"),
        ("val.txt", b"\xff\xfe", "cannot read .*val.txt"),
    ],
)
def test_a_text_that_would_mislabel_images_is_refused(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    (flat_val(tmp_path) / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, "val")


def test_class_folders_count_more_than_the_batches_they_were_made_from(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert len(open_dataset(tmp_path)) == 100, "nothing is in the folders"
    image(tmp_path / "train" / "cat" / "1.png")
    image(tmp_path / "train" / "dog" / "1.png")
    dataset = open_dataset(tmp_path)
    assert names(dataset) == [("cat", "1.png"), ("dog", "1.png")]
    assert left_out(dataset) == {"file named like a split or a batch": 7}


def test_folders_beside_batches_are_counted(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    image(tmp_path / "pictures" / "a" / "1.png")
    assert len(open_dataset(tmp_path)) == 100
    assert left_out(open_dataset(tmp_path)) == {"folder beside the batches": 1}


@pytest.mark.parametrize("files", [("data_batch_1",), ("train", "meta", "test")])
def test_a_text_called_like_a_batch_does_not_make_class_folders_cifar(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).write_text("1.png\n")
    with pytest.raises(DataError):
        open_dataset(tmp_path)
    for name in ("cat", "dog"):
        image(tmp_path / name / "1.png")
    assert names(open_dataset(tmp_path)) == [("cat", "1.png"), ("dog", "1.png")]


def test_a_data_set_is_called_by_its_folder_however_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(tmp_path / "pets" / "cat" / "1.png")
    monkeypatch.chdir(tmp_path / "pets")
    assert open_dataset(".").name == open_dataset("../pets/").name == open_dataset("cat/..").name == "pets"


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    def fill(*folders: str) -> Path:
        root = tmp_path / "-".join(folders)
        for folder in folders:
            (root / folder).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / folder / "1.png")
        return root

    for folders in (("car", "test", "train", "val"), ("trainer", "train"), ("bus", "train.freight", "train.people")):
        dataset = open_dataset(fill(*folders))
        assert (dataset.classes, dataset.split, len(dataset)) == (tuple(sorted(folders)), "all", len(folders))
        assert len(open_splits(dataset.root)) == 1
    # Images that nobody has sorted are no classes.
    for folders in (("train", "val"), ("train", "test1"), ("Test_set", "train"), ("train",)):
        with pytest.raises(DataError):
            open_dataset(fill(*folders))
    # Folders of classes inside make it the split, whatever lies beside it.
    root = fill("mixed/train/a", "mixed/train/b", "mixed/car")
    assert open_dataset(root / "mixed").split == "train"


def test_a_pipe_called_like_an_image_is_left_out(tmp_path: Path) -> None:
    """Whoever opens it waits for good."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(b"")
    os.mkfifo(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to("1.png")
    (tmp_path / "a" / "3.png").symlink_to("../b")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2 + 1
    assert {(one.reason, one.files) for one in dataset.left_out} == {("neither file nor folder", 2)}


def test_names_that_are_not_utf8_are_read_by_every_engine_and_can_be_written(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number, label in enumerate((b"caf\xe9", b"tea")):
            folder = os.path.join(os.fsencode(tmp_path / "\udcff" / part), label)
            os.makedirs(folder)
            for name in (b"1.png", b"\xfc.png", b"3.jpg"):
                with open(os.path.join(folder, name), "wb") as file:
                    Image.new("RGB", (16, 16), (90 * number, 5, len(name))).save(file, "PNG")
    parts = open_splits(tmp_path / "\udcff")
    assert parts[0].classes == (r"caf\udce9", "tea")
    assert parts[0].name == r"\udcff/train"
    assert all(os.path.exists(path) for path in parts[0].files)
    assert len(identity.identify(parts[0]).fingerprint(parts[0].classes)) == 16
    assert "hold no" not in " ".join(soundness.doubts(parts[0]))
    assert check(parts[0]) == []
    options = LoaderOptions(batch=2, size=16, threads=0, train=False)
    for engine in ("dali", "pil", "resident", "torchvision"):
        if engines.missing(engine) is None:
            with closing(engines.build(engine, parts[0], options)) as loader:
                assert sum(len(labels) for _, labels in loader) == 6
    bad = Path(parts[0].files[0])
    bad.write_bytes(b"")
    if engines.missing("dali") is None:
        with (
            pytest.raises(DataError, match=re.escape(f"cannot decode {bad}: empty file")),
            closing(engines.build("dali", parts[0], options)) as loader,
        ):
            list(loader)
