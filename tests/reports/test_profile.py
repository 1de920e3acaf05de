"""The HTML page of a profile: whole, the same every time, and with a section that each cell leads to."""

import json
import re

import pytest

import geosparse as gs
from geosparse.cli.main import main
from geosparse.geometry.regimes import REGIMES
from geosparse.reports.bands import bands
from geosparse.reports.profile import write_profile_page

from ..artifacts.test_profile import TEXT, model_of
from ..synthetic import synthetic
from ..tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def profile():
    return synthetic(layers=3, heads=4)


@pytest.fixture(scope="module")
def measured():
    """A profile of a tiny model, with what synthetic ones lack: moments."""
    config = gs.ProfileConfig(length=64, windows=2, queries=16, budgets=(1, 4, 16), kinds=())
    return gs.profile_model(model_of(), tiny_tokenizer(), TEXT * 2, config)


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
    page = (tmp_path / "p.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "older than the fits" in page
    assert 'class="band"' not in page


def test_fits_and_envelopes_of_every_head_are_on_the_page(measured, tmp_path):
    found = bands(measured)
    page = write_profile_page(tmp_path / "p.html", measured, found).read_text()
    sections = re.findall(r'<section class="head".*?</section>', page, flags=re.DOTALL)
    assert len(sections) == measured.model.layers * measured.model.heads
    for section in sections:
        assert section.count('class="band"') == 3  # precision, recall, F
        assert re.search(r"A1, stable norms: (holds|does not hold)", section)
        assert {"A2", "A3"} <= set(re.findall(r"<h3>(A\d)", section))
        assert section.count("<dt>MAE</dt>") == section.count("<dt>R²</dt>") == 3
        assert "95 % of the last queries" in section
    assert "Their nominal level is 95 %" in page
    assert "nan" not in page.lower()


def test_json_reaches_what_the_page_shows(measured, tmp_path, capsys):
    measured.save(tmp_path / "p.safetensors")
    assert main(["inspect", str(tmp_path / "p.safetensors"), "--envelopes", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["assumptions"]["heads"] == len(data["heads"]) == 12
    assert data["envelopes"]["level"] == 0.95
    excess = measured.excess_f1().nanmean(0)
    for facts in data["heads"]:
        place = (facts["layer"], facts["head"])
        assert facts["regime"] in REGIMES
        column = measured.budgets.index(facts["operating_n"])
        assert facts["operating_n"] >= 2
        assert facts["operating_excess"] == pytest.approx(float(excess[place][column]), rel=1e-4)
        assert facts["assumptions"]["A2"]["floor"] == pytest.approx(
            float(measured.fits().similarity.floor[place]), rel=1e-4, abs=1e-9
        )
        lower, upper = (facts["envelope"][side]["f1"] for side in ("lower", "upper"))
        assert all(low <= high for low, high in zip(lower, upper, strict=True) if low is not None)
    assert sum(facts["assumptions"]["A1"]["holds"] for facts in data["heads"]) == data["assumptions"]["A1"]
