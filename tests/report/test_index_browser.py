"""The index of a run in a real browser, from files, with no network."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from llmxai.report import RunRow, build_index, rebuild, render_index, to_columns
from llmxai.runs import find_recipe, read_recipe
from llmxai.runs.results import write_pages
from llmxai.runs.tables import tabulate
from tests.report.conftest import Open, assert_accessible, look, move
from tests.report.run_sample import hostile_rows, made_up, write_run

rebuild_module = importlib.import_module("llmxai.report.rebuild")
pytestmark = pytest.mark.browser


def index(rows: list[RunRow], **options: object) -> str:
    return render_index(build_index(rows, name="sample", **options))


def listed(page: Page) -> list[str]:
    return page.locator("#rows th").all_inner_texts()


def found(page: Page) -> str:
    return page.locator("#found").inner_text()


def test_search_filter_and_clear(open_page: Open) -> None:
    rows = [
        RunRow(id="a", prompt="Which city?", answer="Rome", n_targets=2, agree=1, disagree=1),
        RunRow(id="b", prompt="Which river?", answer="ＴＩＢＥＲ", n_targets=1, agree=1),
        RunRow(id="c", status="failed", error="PromptError: empty"),
        RunRow(id="d", prompt="Which city?", answer="Lima", n_targets=1, unconverged=1),
    ]
    page = open_page(index(rows))
    assert listed(page) == ["a", "b", "c", "d"]
    offered = page.locator("#only option").evaluate_all("all => all.map(one => one.value)")
    assert offered == ["all", "flagged", "disagree", "unconverged", "agree", "failed"], "no status that no token has"
    page.keyboard.press("/")
    page.keyboard.type("city WHICH")
    assert listed(page) == ["a", "d"]
    assert found(page) == "2 of 4 records, 1 to 2 shown."
    page.get_by_label("Show").select_option("disagree")
    assert listed(page) == ["a"]
    page.keyboard.press("Escape")
    page.locator("#search").focus()
    page.keyboard.press("Escape")
    assert page.locator("#search").input_value() == ""
    for value, expected in (
        *(("flagged", ["a", "d"]), ("agree", ["b"]), ("failed", ["c"]), ("unconverged", ["d"])),
        ("all", ["a", "b", "c", "d"]),
    ):
        page.get_by_label("Show").select_option(value)
        assert listed(page) == expected, value
    page.locator("#search").fill("tiber")  # full-width letters are the same letters
    assert listed(page) == ["b"]
    page.locator("#search").fill("prompterror")
    assert listed(page) == ["c"]
    page.locator("#search").fill("nowhere")
    assert page.locator("#rows").inner_text().strip() == "No record matches."
    page.get_by_role("button", name="Clear").click()
    assert len(listed(page)) == 4


def test_sorting_puts_rows_without_a_value_last(open_page: Open) -> None:
    rows = [
        RunRow(id="r10", n_targets=1, agree=1, probability=0.25, seconds=1.0, sources="Peru, city"),
        RunRow(id="r9", n_targets=1, disagree=1, probability=0.999, sources="Chad"),
        RunRow(id="r1", status="failed", error="x"),
        RunRow(id="r2", n_targets=1, agree=1, probability=0.0, seconds=3.0, sources="an, or"),
    ]
    page = open_page(index(rows))
    page.get_by_role("button", name="probability").click()
    assert listed(page) == ["r9", "r10", "r2", "r1"]
    head = page.locator("th[data-key=probability]")
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="probability").click()
    assert listed(page) == ["r2", "r10", "r9", "r1"]
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="seconds").click()
    assert listed(page)[:2] == ["r2", "r10"]
    page.get_by_role("button", name="record").click()
    assert listed(page) == ["r1", "r2", "r9", "r10"]  # numbers in names count as numbers
    page.get_by_role("button", name="disagree").click()
    assert listed(page)[0] == "r9"
    page.get_by_role("button", name="first sources").click()
    assert listed(page) == ["r1", "r2", "r9", "r10"]
    shown = page.locator("td[data-name=probability]").all_inner_texts()
    assert sorted(shown) == ["0.0%", "25%", "99.9%"]
    page.locator("#search").fill("peru")
    assert listed(page) == ["r10"], "sources are searched, too"


def test_pages_and_an_address_that_keeps_the_state(open_page: Open) -> None:
    page = open_page(index(made_up(120)))
    assert len(listed(page)) == 50
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    assert listed(page)[0] == "r00100"
    assert len(listed(page)) == 20
    assert page.get_by_role("button", name="Next").is_disabled()
    page.locator("#search").fill("chad")
    page.get_by_role("button", name="seconds").click()
    expect(page).to_have_url(re.compile("q=chad.*sort=-seconds"))
    before, address = listed(page), page.url
    again = open_page(index(made_up(120)), fragment="#" + address.split("#")[1])
    assert listed(again) == before
    assert again.locator("#search").input_value() == "chad"
    for wrong in ("#page=999", "#page=-3", "#sort=__proto__", "#only=constructor", "#q=%00", "#x"):
        move(again, wrong)
        assert again.locator("#search").input_value() != "chad"
        assert again.locator("#rows tr").count() > 0


def test_from_the_index_to_a_word_and_back(open_page: Open, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rebuild(run)
    page = open_page(run / "index.html")
    assert listed(page) == ["0001", "0002", "0003", "0004"]
    page.get_by_role("link", name="2 disagree, go to the first").click()
    page.wait_for_url(re.compile(r"records/0001/report\.html#words-\d+$"))
    assert page.locator("#panel-head").inner_text() == "def × disagree"
    page.get_by_role("link", name="all records of the run").click()
    expect(page).to_have_url((run / "index.html").as_uri())
    page.get_by_role("link", name="0002").click()
    expect(page.locator("h1")).to_contain_text("Rome")


def test_hostile_rows_do_nothing(open_page: Open) -> None:
    hostile = "</script><script>window.hacked=1</script>"
    page = open_page(index(hostile_rows(), manifest={hostile: hostile}, provenance={"record": hostile, hostile: 1}))
    for value in ("failed", "all"):
        page.get_by_label("Show").select_option(value)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, main script").count() == 0
    assert "\u202e" not in page.content()
    for link in page.locator("#rows a").all():
        assert link.evaluate("e => new URL(e.href).protocol") == "file:"
    page.locator("#search").fill(hostile)
    assert listed(page) == ["<_script><script>window.hacked=1<_script>", "f0"]


@pytest.mark.parametrize(
    ("state", "rows", "options"),
    [
        ("index", made_up(60), {}),
        ("index-dark", made_up(20), {"color_scheme": "dark"}),
        ("index-hostile", hostile_rows(), {}),
        ("index-400-percent", made_up(12), {"viewport": {"width": 320, "height": 256}}),
        ("index-empty", [], {}),
    ],
)
def test_no_fault_by_axe(open_page: Open, state: str, rows: list[RunRow], options: dict) -> None:
    page = open_page(index(rows, manifest={"recipe": "planted", "seed": 0}), **options)
    if rows:
        page.get_by_role("button", name="probability").click()
    for folded in page.locator("section.fold > details").all():
        folded.locator("summary").first.click()
    look(page, state)
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_scripts_the_first_records_are_listed(open_page: Open) -> None:
    page = open_page(index(made_up(60)), java_script_enabled=False)
    assert len(listed(page)) == 50
    assert "first 50 records" in page.locator("noscript").inner_text()
    assert not page.locator("#filters").is_visible()
    page.locator("#charts summary").click()
    assert page.locator(".chart").first.is_visible()


def test_a_thousand_records_are_listed_by_fifty(open_page: Open) -> None:
    text = index(made_up(1000))
    assert len(text.encode()) < 600_000
    page = open_page(text)
    assert found(page) == "1000 of 1000 records, 1 to 50 shown."
    assert page.evaluate("document.querySelectorAll('*').length") < 2_000


def test_the_index_prints(open_page: Open, tmp_path: Path) -> None:
    page = open_page(index(made_up(30)))
    page.pdf(path=tmp_path / "index.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "index.pdf").read_bytes())) >= 2


class TestLongRun:
    """An index with data pages of 20 records, beside it on the disk."""

    N, SIZE = 130, 20

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(rebuild_module, "DATA_ROWS", self.SIZE)
        run = tmp_path / "run"
        (run / "records").mkdir(parents=True)
        pq.write_table(pa.table(to_columns(made_up(self.N))), run / "rows.parquet")
        rebuild_module.write_index(run)
        return run

    def pages_of(self, run: Path) -> list[Path]:
        return sorted((run / "index-data").iterdir())

    def test_it_does_what_one_page_does(self, run: Path, open_page: Open) -> None:
        """Whatever is done to it, the same records are listed as by an index that holds all of them."""
        whole = open_page(index(made_up(self.N), pages={}))
        page = open_page(run / "index.html")
        assert len(self.pages_of(run)) == 7
        assert page.locator("iframe").count() == 0, "nothing is read before it is needed"
        steps: list[Callable[[Page], None]] = [
            lambda page: page.bring_to_front(),
            lambda page: page.get_by_role("button", name="Next").click(),
            lambda page: page.get_by_role("button", name="probability").click(),
            lambda page: page.get_by_label("Show").select_option("disagree"),
            lambda page: page.locator("#search").fill("chad peru"),
            lambda page: page.get_by_label("Show").select_option("failed"),
            lambda page: page.get_by_role("button", name="Clear").click(),
            lambda page: page.get_by_role("button", name="answered").click(),
            lambda page: page.get_by_role("button", name="answered").click(),
        ]
        for number, step in enumerate(steps):
            for each in (whole, page):
                step(each)
            page.wait_for_selector("#found:not([aria-busy])", state="attached")
            assert found(page) == found(whole), number
            assert page.locator("#rows").inner_text() == whole.locator("#rows").inner_text(), number
            assert page.locator("#page").inner_text() == whole.locator("#page").inner_text(), number
        assert page.locator(".charts").text_content() == whole.locator(".charts").text_content()
        assert page.locator("iframe").count() == 0
        assert not page.locator("#trouble").is_visible()

    def test_only_the_data_pages_that_are_shown_are_read(self, run: Path, open_page: Open) -> None:
        page = open_page(run / "index.html")
        read: list[str] = []
        page.on("request", lambda request: read.append(Path(request.url).name))
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#rows th").first).to_have_text("r00050")
        assert sorted(read) == [path.name for path in self.pages_of(run)[2:5]]

    @pytest.mark.parametrize("fault", ["changed", "missing", "script"])
    def test_a_data_page_that_is_not_the_one_is_not_shown(self, run: Path, new_page: Open, fault: str) -> None:
        victim = self.pages_of(run)[3]
        text = victim.read_text(encoding="utf-8")
        if fault == "changed":
            victim.write_text(text.replace("r00061", "r99999"), encoding="utf-8")
        elif fault == "missing":
            victim.unlink()
        else:
            attack = "try { parent.document.title = 'hacked' } catch {} parent.postMessage('[[1,2,3,4,5]]', '*')"
            victim.write_text(f"<script>{attack}</script>", encoding="utf-8")
        page = new_page()
        page.goto((run / "index.html").as_uri())
        page.locator("#search").fill("r0006")
        page.wait_for_selector("#trouble:not([hidden])")
        page.wait_for_selector("#found:not([aria-busy])", state="attached")
        said = page.locator("#trouble").inner_text()
        assert victim.name in said
        assert ("is missing" if fault == "missing" else "is not the one") in said
        assert "r99999" not in page.content()
        assert page.title().startswith("Run run")
        assert found(page) == "0 of 130 records."
        page.get_by_role("button", name="Clear").click()
        page.get_by_role("button", name="Next").click()
        page.wait_for_selector("#found:not([aria-busy])", state="attached")
        names = listed(page)
        assert names[:2] == ["r00050", "r00051"]
        assert names[10:30] == [f"record {n}" for n in range(61, 81)]
        page.close()

    def test_a_data_page_alone_says_what_it_is(self, run: Path, open_page: Open) -> None:
        page = open_page(self.pages_of(run)[1])
        assert page.locator("h1").inner_text() == "Records 21 to 40: data"
        page.get_by_role("link").click()
        expect(page).to_have_url((run / "index.html").as_uri())

    def test_no_fault_by_axe(self, run: Path, open_page: Open) -> None:
        page = open_page(run / "index.html")
        page.locator("#search").fill("chad")
        expect(page.locator("#found")).to_contain_text(" shown.")
        look(page, "index-long")
        assert_accessible(page)

    def test_hostile_texts_do_nothing(self, run: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rebuild_module, "read_rows", lambda _run: [*made_up(60), *hostile_rows()])
        rebuild_module.write_index(run)
        page = open_page(run / "index.html")
        page.get_by_label("Show").select_option("failed")
        expect(page.locator("#rows tr").nth(20)).to_be_attached()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img, main script").count() == 0

    def test_pages_of_an_earlier_index_go(self, run: Path) -> None:
        before = self.pages_of(run)
        (run / "index-data" / "notes.txt").write_text("mine")
        pq.write_table(pa.table(to_columns(made_up(self.N - 1, seed=1))), run / "rows.parquet")
        rebuild_module.write_index(run)
        assert len(self.pages_of(run)) == 8
        assert not {path.name for path in before} & {path.name for path in self.pages_of(run)}
        pq.write_table(pa.table(to_columns(made_up(self.SIZE))), run / "rows.parquet")
        rebuild_module.write_index(run)
        assert [path.name for path in self.pages_of(run)] == ["notes.txt"]
        assert "index-data" not in (run / "index.html").read_text(encoding="utf-8")


def test_the_statuses_of_rule_4_are_the_columns(open_page: Open) -> None:
    rows = [
        RunRow(id="a", prompt="p", answer="x", n_targets=3, confirmed=2, undecided=1),
        RunRow(id="b", prompt="p", answer="y", n_targets=4, confirmed=1, contradicted=2, unconverged=1),
        RunRow(id="c", prompt="p", answer="z", n_targets=1, confirmed=1),
    ]
    page = open_page(index(rows))
    heads = [" ".join(head.split()) for head in page.locator("#table thead th").all_inner_texts()]
    assert heads == [
        *("record", "asked", "answered", "first sources", "probability"),
        *("✓ confirmed", "× contradicted", "? undecided", "! unconverged", "seconds"),
    ]
    for value, expected in (
        *(("contradicted", ["b"]), ("undecided", ["a"]), ("unconverged", ["b"])),
        *(("confirmed", ["c"]), ("flagged", ["a", "b"])),
    ):
        page.get_by_label("Show").select_option(value)
        assert listed(page) == expected, value
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="contradicted").click()
    assert listed(page)[0] == "b"
    assert "4 of 8 tokens are confirmed; 4 are flagged." in page.locator("#charts").text_content()
    said = page.locator("section").first.inner_text()
    assert "1 record has the status “confirmed” for every token." in said
    assert "agree" not in said.replace("agreement", "")


def test_reviews_have_a_column_where_there_are_any(open_page: Open) -> None:
    rows = [RunRow(id=name, prompt="p", answer="x", n_targets=1, confirmed=1) for name in ("a", "b")]
    rows.append(RunRow(id="c", status="failed", error="boom"))
    page = open_page(index(rows, reviews={"b": ["agree (r7)", "rejected (<b>r8</b>)"]}))
    assert page.locator("#table thead th").last.inner_text() == "review"
    assert page.locator("td[data-name=review]").all_inner_texts() == ["–", "agree (r7); rejected (<b>r8</b>)", "–"]
    page.locator("#search").fill("r8")
    assert listed(page) == ["b"]
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="review").click()
    assert listed(page)[-1] == "b"
    look(page, "index-reviews")
    assert_accessible(page)
    assert open_page(index(rows)).locator("#table thead th").last.inner_text() == "seconds"


def test_the_index_on_a_phone_has_a_block_for_each_record(open_page: Open) -> None:
    page = open_page(index(made_up(12)), viewport={"width": 390, "height": 844})
    look(page, "index-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    table = page.locator("#table").bounding_box()
    assert table["width"] <= 390
    before = page.locator("td[data-name=asked]").first.evaluate("e => getComputedStyle(e, '::before').content")
    assert "asked" in page.locator("td[data-name=asked]").first.get_attribute("data-name")
    assert before != "none"
    assert_accessible(page)


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["wide", "phone"])
def test_the_evaluation_page_has_the_look_of_the_others_and_begins_with_the_winner(
    open_page: Open, tmp_path: Path, size: tuple[int, int]
) -> None:
    methods = {"gradients": 0.8, "attention": 0.2, "random": 0.1, "leave_one_out": 0.7}
    lines = [
        {"id": str(i), "source": f"suite {i % 2}", "method": method, "figure": figure, "value": value + i / 50}
        | {"seconds": 1.0, "nodes": 40, "converged": True, "error": ""}
        for method, value in methods.items()
        for figure in ("mrr", "lds")
        for i in range(12)
    ]
    write_pages(tmp_path, read_recipe(find_recipe("smoke")), tabulate(lines, resamples=200, seed=0), ok=6, failed=0)
    page = open_page(tmp_path / "evaluation.html", viewport={"width": size[0], "height": size[1]})
    first = page.locator("main p").first.inner_text()
    assert first.startswith("Best at predicting what removals do (LDS, a rank correlation): gradients, 0.91 (")
    assert "It leads attention, the next, by 0.60 (0.60 to 0.60): more than chance." in first
    assert page.locator("main p").first.bounding_box()["y"] < 300
    card = page.locator("section").first.evaluate("e => getComputedStyle(e).borderRadius")
    other = open_page(index(made_up(3)), viewport={"width": size[0], "height": size[1]})
    assert other.locator("section").first.evaluate("e => getComputedStyle(e).borderRadius") == card
    for folded in page.locator("main details").all():
        folded.locator("summary").click()
    look(page, f"evaluation-{size[0]}")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert_accessible(page)
