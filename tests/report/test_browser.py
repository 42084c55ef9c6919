"""The report in a real browser: every run is drawn, and no model output is executed or causes a request."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_html import HOSTILE, STATES, hostile_run, run

from attnrl.report.html import _hash, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TITLE = "<title>run - attnrl report</title>"
# Clicks and points at all rows of a forest, once they are drawn, and leaves what that showed at the end of the page:
# details and tips replace one another.
VISITS = """
setTimeout(() => {
  const seen = document.createElement("pre");
  for (const one of document.querySelectorAll("[role=button], rect")) {
    for (const kind of ["pointermove", "click"]) one.dispatchEvent(new MouseEvent(kind, { bubbles: true }));
    seen.append(...[...document.querySelectorAll(".detail, #tip")].map((it) => it.cloneNode(true)));
  }
  document.body.append(seen);
}, 1000);
"""

Opened = Callable[[Path], str]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return a function that opens a page in Chromium and returns the resulting document as HTML."""
    browser = os.environ.get("CHROME") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(
            "no browser to open the page in: install Chromium or Chrome (on Debian: apt-get install chromium), so that "
            f"one of {', '.join(NAMES)} is on the PATH, or have $CHROME name its executable"
        )
    profile = tmp_path_factory.mktemp("profile")

    def open_page(page: Path) -> str:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if "<html" not in found.stdout:
            pytest.skip(f"{browser} does not start here, install another and name it by $CHROME: {found.stderr[-200:]}")
        return found.stdout

    return open_page


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """Start a local HTTP server; return the address and the list of requested paths."""
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_attack_works_on_a_page_without_defence(tmp_path: Path, opened: Opened) -> None:
    page = tmp_path / "plain.html"
    for attack in (HOSTILE, HOSTILE.partition("<img")[2].join(["<img", ""])):  # with its script, and without
        page.write_text(f"<!DOCTYPE html><html><head><title>mine</title></head><body>{attack}</body></html>")
        assert "<title>owned</title>" in opened(page)


@pytest.mark.parametrize("state", STATES)
def test_a_browser_draws_any_run_and_runs_nothing_a_model_wrote(tmp_path: Path, opened: Opened, state: str) -> None:
    root = hostile_run(tmp_path / "run") if state == "hostile" else run(tmp_path / "run", *STATES[state])
    write_report([root], tmp_path / "report.html")
    found = opened(tmp_path / "report.html")
    assert TITLE in found  # an attack would have changed it
    assert re.search(r'<footer id="footer">attnrl \d', found)  # the script came to its end
    assert not re.search(r"<(img|iframe|a|svg on)\b", found)
    if state == "hostile":
        assert "&lt;/script&gt;&lt;script&gt;document.title" in found  # shown, as text


def test_what_a_click_shows_is_text_too(tmp_path: Path, opened: Opened) -> None:
    """Click and hover every element by code appended to the page's script; details and tooltips must be text."""
    write_report([hostile_run(tmp_path / "run")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    visited = text.replace(script, script + VISITS).replace(_hash(script), _hash(script + VISITS))
    (tmp_path / "visited.html").write_text(visited, encoding="utf-8")
    found = opened(tmp_path / "visited.html")
    assert TITLE in found
    shown = found.rpartition("<pre>")[2]
    assert "in the branch &lt;/script&gt;&lt;script&gt;document.title" in shown
    assert "[link](javascript:document.title" in shown and "${document.title" in shown
    assert not re.search(r"<(img|iframe|a|script|svg on)\b", shown.partition("</pre>")[0])


def test_a_run_whose_directory_is_an_attack(tmp_path: Path, opened: Opened) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\">"
    root = run(tmp_path / attack, *STATES["no trees"])
    write_report([root], tmp_path / "report.html")
    found = opened(tmp_path / "report.html")
    assert "<title>&lt;img src=x onerror=\"document.title='owned'\"&gt; - attnrl report</title>" in found
    assert "<img" not in found


def test_the_policy_stops_what_would_get_into_the_page(
    tmp_path: Path, opened: Opened, requests: tuple[str, list[str]]
) -> None:
    """Second line of defence: an attack inserted into the page as HTML is stopped by the content security policy."""
    address, asked = requests
    tags = f'<img src="{address}/image"><link rel="stylesheet" href="{address}/style"><script src="{address}/script">'
    write_report([run(tmp_path / "run", *STATES["no trees"])], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    attacked = text.replace(
        '<footer id="footer">', f'{tags}</script>{HOSTILE.partition("</script>")[2]}--><footer id="footer">'
    )
    page = tmp_path / "attacked.html"
    page.write_text(attacked, encoding="utf-8")
    found = opened(page)
    assert "<img" in found and "<title>owned</title>" not in found and asked == []
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', attacked)
    assert policy is not None
    page.write_text(attacked.replace(policy[0], ""), encoding="utf-8")
    assert "<title>owned</title>" in opened(page)
    assert {"/image", "/style", "/script"} <= set(asked)
