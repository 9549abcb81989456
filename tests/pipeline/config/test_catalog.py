"""The catalog agrees with the published tables, and unknown names get a helpful error."""

import csv

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config import catalog


def test_every_data_set_and_mixture_is_there():
    assert len(catalog.datasets()) == 61
    mixtures = catalog._mixtures()
    assert len(mixtures) == 15
    for weights in mixtures.values():
        assert weights.keys() <= catalog.datasets().keys()
        assert all(weight > 0 for weight in weights.values())
    assert sum(catalog.mixture("select").values()) == pytest.approx(1)
    assert catalog.mixture("select_sthsth")["sthsth"] == 0.15


def test_the_catalog_knows_the_channel_order_of_each_camera():
    swapped = {name: entry.bgr for name, entry in catalog.datasets().items() if entry.bgr}
    both = ("image", "wrist_image")
    assert swapped == {
        "stanford_hydra_dataset_converted_externally_to_rlds": both,
        "utaustin_mutex": both,
        "berkeley_fanuc_manipulation": both,
        "berkeley_autolab_ur5": ("hand_image",),
    }


def test_numbered_names_are_the_cameras_of_one_data_set():
    cameras = {catalog.dataset(f"uiuc_d3field{n}").image_key for n in (1, 2, 3, 4)}
    assert cameras == {"image_1", "image_2", "image_3", "image_4"}
    assert {catalog.dataset(f"uiuc_d3field{n}").directory for n in (1, 2, 3, 4)} == {"uiuc_d3field"}


def test_the_catalog_agrees_with_the_published_tables(shared):
    with (shared / "facts" / "datasets.csv").open() as file:
        for row in csv.DictReader(file):
            entry = catalog.dataset(row["name"])
            assert (entry.directory, entry.version, entry.image_key) == (row["directory"], row["version"], row["image_key"])
            assert entry.control_hz == (float(row["control_hz"]) if row["control_hz"] else None)
            assert entry.base_step == float(row["base_step"] or 1)
            assert entry.other_cameras == tuple(row["other_cameras"].split())
            assert entry.success_filter == (row["has_success_filter"] == "True")
    with (shared / "facts" / "mixtures.csv").open() as file:
        first = {}
        for row in csv.DictReader(file):
            first.setdefault((row["mixture"], row["dataset"]), float(row["weight"]))
    assert first == {(m, d): w for m, weights in catalog._mixtures().items() for d, w in weights.items()}


def test_an_unknown_data_set_can_be_described_or_gets_similar_names():
    with pytest.raises(ConfigError, match="nearest: bridge"):
        catalog.dataset("brigde")
    with pytest.raises(ConfigError, match="describe it with --rate, and --camera"):
        catalog.dataset("my_own", camera="cam")
    assert catalog.dataset("my_own", rate=7.0).image_key == "image"
    entry = catalog.dataset("my_own", camera="cam", rate=7.0)
    assert (entry.image_key, entry.control_hz, entry.base_step) == ("cam", 7.0, 7.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="--rate must be"):
        catalog.dataset("bridge", rate=rate)


def test_camera_and_rate_override_the_catalog():
    entry = catalog.dataset("utaustin_mutex", camera="wrist_image", rate=10.0)
    assert (entry.image_key, entry.control_hz, entry.bgr) == ("wrist_image", 10.0, ("image", "wrist_image"))


def test_an_unknown_mixture_gets_the_most_similar_name():
    with pytest.raises(ConfigError, match="did you mean 'select'"):
        catalog.mixture("selct")
