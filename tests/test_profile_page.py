"""The HTML page of a profile: whole, the same every time, and with a section that each cell leads to."""

import re

import pytest

from geosparse.cli import main
from geosparse.profile_page import write_profile_page

from .synthetic import synthetic


@pytest.fixture(scope="module")
def profile():
    return synthetic(layers=3, heads=4)


def test_every_cell_leads_to_a_section(profile, tmp_path):
    page = write_profile_page(tmp_path / "p.html", profile).read_text()
    assert page == write_profile_page(tmp_path / "q.html", profile).read_text()
    links, sections = (
        set(re.findall(r'href="#(l\d+h\d+)"', page)),
        set(re.findall(r'class="head" id="(l\d+h\d+)"', page)),
    )
    assert links == sections
    assert len(sections) == profile.model.layers * profile.model.heads
    assert "http" not in page.split("</head>")[1]
    assert "nan" not in page.lower().replace("nanometre", "")


def test_the_command_writes_it(profile, tmp_path, capsys):
    profile.save(tmp_path / "p.safetensors")
    assert main(["inspect", str(tmp_path / "p.safetensors"), "--html", str(tmp_path / "p.html")]) == 0
    assert "regimes:" in capsys.readouterr().out
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
