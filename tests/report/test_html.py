from __future__ import annotations

import base64
import json
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from mapet.cli.main import main
from mapet.config.settings import hash_of_science
from mapet.errors import CheckpointError
from mapet.report import html
from mapet.report.html import _page_at, write_report
from mapet.report.reading import open_runs
from mapet.runtime.files import write_json
from mapet.runtime.run_directory import RunDirectory
from tests.distributed.ranks import run_code
from tests.report.conftest import result

VOID = {"meta", "img", "wbr"}


class Page(HTMLParser):
    """Checks nesting while it reads, and keeps what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.images, self.headings, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


class Written(NamedTuple):
    """A page about one run, what moved the progress, and the run."""

    run: RunDirectory
    path: Path
    page: Page
    moves: list[str | int]


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory) -> Written:
    """With all figures drawn; not to be changed."""
    run, moves = RunDirectory(shutil.copytree(finished.path, tmp_path_factory.mktemp("written") / "run")), []
    write_json(run.evaluations / "knn.json", asdict(result()))

    @contextmanager
    def recorded(description, total):
        moves.append(total)
        yield SimpleNamespace(note=moves.append, advance=lambda: moves.append(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "progress", recorded)
        path = write_report([run])
    return Written(run, path, read(path), moves)


def test_page_has_all_sections_and_needs_nothing_outside(written):
    run, path, page, _ = written
    assert path == run.report
    assert page.headings[0] == "MaPeT pre-training on digits"
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    assert "Not shown" not in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    linked = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "srcset")]
    assert all(value.startswith("data:image/png;base64,") for value in linked)
    assert "url(" not in path.read_text(encoding="utf-8")
    assert "http" not in path.read_text(encoding="utf-8")


def test_figures_lie_beside_the_page_and_have_alt_texts(written):
    run, page = written.run, written.page
    files = {path.read_bytes() for path in (run.path / "report-figures").glob("*.png")}
    assert {base64.b64decode(image["src"].partition(",")[2]) for image in page.images} == files
    assert len(files) == 11
    assert all(len(image["alt"]) > 40 for image in page.images)


def test_verdict_and_facts_are_written_out(written):
    run, text = written.run, written.page.text
    assert "pre-training lifts the k-NN accuracy from 50.0 to 80.0 % (+30.0 points)." in text
    for fact in ("num_context 4", "Images seen24", "Steps3", run.read_config()["science_hash"], "training.batch_size8"):
        assert fact in text


def test_every_section_moves_the_progress(written):
    headings = [heading for heading in written.page.headings if heading in SECTIONS]
    total, *moves = written.moves
    assert moves.count(1) == total
    assert [note for note in moves if note in SECTIONS] == headings == SECTIONS


@pytest.mark.usefixtures("blank_figures")
def test_a_page_about_several_runs_leaves_the_first_runs_own_alone(run, finished):
    own = write_report([run])
    before = own.read_bytes()
    both = write_report([run, finished])
    assert both == run.path / f"report-with-{finished.path.name}.html"
    assert own.read_bytes() == before
    assert (run.path / f"report-with-{finished.path.name}-figures" / "loss.png").is_file()


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    "missing",
    [
        {"evaluations": "mapet evaluate knn,linear", "metrics.jsonl": "has no entries yet", "environment.json": "at every start"},
        {"checkpoints": "There is no checkpoint"},
        {"tokens": "mapet tokenize"},
    ],
)
def test_what_is_missing_is_left_out_with_a_hint(run, missing):
    for name in missing:
        path = run.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    page = read(write_report([run]))
    assert all(hint in page.text for hint in missing.values())
    assert page.text.count("Not shown") >= len(missing)
    assert set(SECTIONS) <= set(page.headings)
    assert any("Visibility matrix" in image["alt"] for image in page.images)


@pytest.mark.usefixtures("blank_figures")
def test_run_that_has_only_begun(run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run.config, begun)
    page = read(write_report([RunDirectory(begun)]))
    assert "Not evaluated yet." in page.text
    assert "(not finished)" in page.text
    assert page.text.count("Not shown") == 6


@pytest.mark.usefixtures("blank_figures")
def test_images_that_moved_away(run):
    config = run.read_config()
    write_json(run.config, config | {"data": str(run.path / "gone")})
    page = read(write_report([run]))
    assert "There is no file or folder" in page.text
    assert "Loss" in " ".join(image["alt"] for image in page.images)


@pytest.mark.usefixtures("blank_figures")
def test_settings_of_another_version_do_not_stop_it(run):
    config = run.read_config()
    config["science"]["training"]["unknown_setting"] = 1
    write_json(run.config, config | {"science_hash": hash_of_science(config["science"])})
    text = read(write_report([run])).text
    assert "There is no setting 'training.unknown_setting'" in text
    assert "training.unknown_setting1" in text


@pytest.mark.usefixtures("blank_figures")
def test_f15_damaged_files_are_left_out_and_stated(run):
    wrong = asdict(result())
    damaged = {
        "damaged": "{",
        "foreign": '{"a": 1}',
        "list": "[]",
        "figures": json.dumps(wrong | {"figures": {"top1": "much"}}),
        "metric": json.dumps(wrong | {"metric": "miou"}),
        "random": json.dumps(wrong | {"random_figures": {}}),
    }
    for name, content in damaged.items():
        (run.evaluations / f"{name}.json").write_text(content, encoding="utf-8")
    with run.metrics.open("ab") as file:
        file.write(b"\xff\n[]\n")
    (run.path / "warnings.jsonl").write_bytes(b'\xff\n{"step": 1, "name": "a", "message": "Planted."}\n')
    run.environment.write_text("{", encoding="utf-8")
    text = read(write_report([run])).text
    assert "from 50.0 to 80.0 %" in text
    for name in damaged:
        assert f"{name}.json is no evaluation, or a damaged one" in text
    assert "2 lines of" in text
    assert "1 lines of" in text
    assert "environment.json is damaged" in text
    assert "Step 1: Planted." in text


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_fault_of_the_program_is_not_taken_for_a_damaged_file(run, monkeypatch, error):
    def broken(_):
        raise error("planted")

    monkeypatch.setattr(html, "vital_figures", broken)
    with pytest.raises(error, match="planted"):
        write_report([run])


def test_everything_is_escaped_even_in_figures(run, tmp_path):
    odd = RunDirectory(run.path.rename(tmp_path / "<b>&$x_{$ 図"))
    environment = json.loads(odd.environment.read_text(encoding="utf-8"))
    write_json(odd.environment, [environment[0] | {"command": "mapet <script>alert(1)</script>"}])
    path = write_report([odd])
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "mapet <script>alert(1)</script>" in read(path).text
    assert "<b>" in read(path).text


@pytest.mark.usefixtures("blank_figures")
def test_several_runs_side_by_side(run, others, tmp_path):
    write_json(run.evaluations / "more.json", asdict(result("linear", 0.6, 0.7, protocol_hash="ffff0000")))
    out = tmp_path / "comparison" / "page.html"
    write_report([run, RunDirectory(others["mim"]), RunDirectory(others["pim"])], out)
    page = read(out)
    assert page.headings[0] == "MaPeT, MIM and PIM pre-training on digits: 3 runs"
    assert "run: On 360 test images" in page.text
    assert "lowers the linear probe accuracy from 70.0 to 60.0 % (-10.0 points)" in page.text
    assert "mim: Not evaluated yet." in page.text
    text = out.read_text(encoding="utf-8")
    assert '<tr class="marked"><th scope="row">objective.<wbr>name</th><td>mapet</td><td>mim</td><td>pim</td></tr>' in text
    assert '<tr><th scope="row">training.<wbr>batch_size</th><td>8</td><td>8</td><td>8</td></tr>' in text
    assert (out.parent / "page-figures" / "masks-raster-pim.png").is_file()
    assert (out.parent / "page-figures" / "masks-mim.png").is_file()


@pytest.mark.usefixtures("blank_figures")
def test_many_runs_are_rows_and_what_they_share_stands_once(run, others, tmp_path):
    """Four runs and more: a table of results, facts that differ, and one vocabulary for runs on the same tokens."""
    copies = [RunDirectory(shutil.copytree(run.path, tmp_path / f"copy{number}")) for number in range(2)]
    write_json(copies[1].evaluations / "knn.json", asdict(result("knn", top1=0.75)))
    for copy in copies:
        write_json(copy.config, copy.read_config() | {"tokens": str(run.tokens)})
    (tmp_path / "pages").mkdir()
    out = write_report([run, *copies, RunDirectory(others["mim"]), run], tmp_path / "pages")
    assert out == tmp_path / "pages" / "report.html"
    page, text = read(out), out.read_text(encoding="utf-8")
    assert page.headings[0] == "MaPeT and MIM pre-training on digits: 4 runs"
    assert '<th scope="row">mim</th><td>not measured</td>' in text
    first = 100 * open_runs([run])[0].results[0].value
    assert f'<th scope="row">copy1</th><td>75.0 ({75 - first:+.1f})</td>' in text
    assert '<th scope="row">training.<wbr>batch_size</th><td>8</td></tr>' in text
    assert '<th scope="col">objective.name</th>' in text
    assert page.text.count("Also of copy0, copy1.") == 1


@pytest.mark.parametrize(("name", "page"), [("p", "p.html"), ("p.htm", "p.htm"), ("a.b", "a.b.html")])
def test_the_name_of_a_page_ends_as_browsers_expect(name, page, tmp_path):
    assert _page_at(tmp_path / name) == tmp_path / page


@pytest.mark.usefixtures("blank_figures")
def test_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mapet", "report", str(run.path), "--out", str(tmp_path / "other.html")])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    assert str(tmp_path / "other.html") in capsys.readouterr().out
    assert (tmp_path / "other-figures" / "loss.png").is_file()


def test_command_line_refuses_what_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mapet", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_damaged_config_is_refused_in_words(run):
    run.config.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        write_report([run])


def test_importing_is_light(tmp_path):
    code = "import sys\nassert not {'mapet.report.html', 'matplotlib'} & {*sys.modules}\nimport mapet.report.html\n"
    done = run_code(code + "print('matplotlib' in sys.modules)", tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


SECTIONS = [
    "What the pre-training is worth",
    "Training",
    "One image, its tokens, and the model's confidence",
    "The visual vocabulary",
    "Who sees what",
    "Settings",
    "Environment",
]
