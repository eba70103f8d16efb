"""The report: one file, everything in it, every link leads somewhere."""

import re

import pytest

import lab
import tinygrad_ds as tg
from lab.checking import check
from lab.report_page import Report, examples, layer_parts, primitive_part


def test_a_primitives_part_links_to_everything():
    curves = {curve.name: curve for curve in check("rmsnorm").curves}
    text = primitive_part("rmsnorm", curves, examples())
    assert 'id="rmsnorm"' in text and 'href="#file-layers-norm.py"' in text
    assert 'href="#example-01_first_gradient"' in text and 'href="#exercise-rmsnorm"' in text
    assert "Error against step size" in text and "Reference and fused" in text


def test_layers_link_back():
    text = "\n".join(layer_parts())
    assert 'id="file-layers-mla.py"' in text and 'href="#concatenate"' in text


def test_a_notebook_shows_the_page_in_a_frame(tmp_path):
    report = Report('<section id="a"><p>a "quoted" word</p></section>')
    assert "1 parts" in repr(report)
    assert '<iframe srcdoc="&lt;section id=&quot;a&quot;' in report._repr_html_()
    assert report.write(tmp_path / "new" / "page.html").read_text() == report.text


@pytest.mark.slow
def test_the_page_is_whole_and_needs_no_network(tmp_path):
    page = lab.report().write(tmp_path / "page.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    own = [name for name in ids if not re.fullmatch(r"[a-zA-Z]\w*_\d+|[pmC]?[0-9a-f]{8,}\w*|DejaVu.*", name)]
    assert set(tg.primitives) <= set(own)
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert {link for link in links if link not in set(ids)} == set()
    assert not re.search(r'(?:src|href)="(?!#)', page) and "@import" not in page
    assert len(page) < 8_000_000
    assert all(f'id="exercise-{name}"' in page for name in lab.ladder().done)
