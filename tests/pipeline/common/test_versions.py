"""A distribution that is not installed has a text instead of a version, not an error."""

import importlib.metadata

from pipeline.common.versions import PROJECT, installed_version, installed_versions


def test_an_installed_distribution_has_its_own_version():
    assert installed_version("numpy") == importlib.metadata.version("numpy")


def test_a_distribution_that_is_not_installed_says_so(monkeypatch):
    assert installed_version("a-package-that-nobody-has") == "(not installed)"
    assert installed_versions(["numpy", "a-package-that-nobody-has"])["a-package-that-nobody-has"] == "(not installed)"
    monkeypatch.setattr("pipeline.common.versions.PROJECT", "a-package-that-nobody-has")
    assert installed_version("a-package-that-nobody-has") == "(run from a checkout, not installed)"
    assert installed_version() == importlib.metadata.version(PROJECT)
