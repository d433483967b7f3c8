"""A report.html opened in headless Chromium, and used there as a finger would use it."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")

# A page around the report, in a frame as wide as a phone or a desk's screen: it uses the report as a finger would, and
# writes what it saw into its own document, which Chromium prints.
FRAME = """<!doctype html><body><iframe width="WIDTH" height="900" srcdoc="REPORT"></iframe><pre id="saw"></pre><script>
onload = async () => {
  const view = document.querySelector("iframe").contentWindow, doc = view.document;
  const $ = (s) => doc.querySelector(s), count = (s) => doc.querySelectorAll(s).length;
  const saw = { fault: $("#fault")?.textContent ?? "", wide: doc.documentElement.scrollWidth - view.innerWidth };
  saw.charts = count("figure svg"), saw.lines = count("#chart-0 path"), saw.theme = doc.documentElement.dataset.theme;
  saw.cells = count(".matrix td"), saw.cards = count(".gallery figure"), saw.pairs = count(".pairs span.off");
  saw.pictures = [...doc.querySelectorAll(".gallery img")].every((img) => img.complete && img.naturalWidth === 4);
  const wrong = [...doc.querySelectorAll(".matrix td")].find((td) => /^one.*<two>/.test(td.title));
  if (wrong) { wrong.click(); saw.chosen = count(".gallery figure"); saw.note = $("[role=status]").textContent; }
  const box = $("#runs input");
  if (box) { box.click(); saw.without = count("#chart-0 path");
    $("[data-select=all]").click(); saw.all = count("#chart-0 path"); }
  const falling = $("#runs thead button[data-first=down]");
  if (falling) { const top = () => $("#runs tbody td.name").dataset.sort;
    saw.tops = [falling, falling].map((button) => { button.click(); return top(); }); }
  saw.marked = count("#runs td.diff");
  const base = $("#baseline");
  if (base) { base.value = "1"; base.dispatchEvent(new view.Event("change"));
    saw.turned = doc.querySelector('#runs tr[data-run="0"] td.diff')?.textContent; }
  for (const x of ["step", "minutes"]) { $(`[data-x=${x}]`)?.click(); }
  $("#log")?.click(); $("#theme").click();
  saw.log = count("figure svg"), saw.turnedTheme = doc.documentElement.dataset.theme;
  const svg = $("figure svg");
  if (svg) { const at = svg.getBoundingClientRect();
    svg.dispatchEvent(new view.PointerEvent("pointermove", { clientX: at.left + at.width / 2, clientY: at.top + 20 }));
    saw.tip = $(".tip")?.textContent ?? ""; }
  const choice = $("#decoded");
  saw.views = [...choice.options].map((option) => {
    choice.value = option.value; choice.dispatchEvent(new view.Event("change"));
    const inside = (s) => count(`#decoding ${s}`);
    const one = { name: option.textContent, players: inside("audio"), pictures: inside("img"),
      cells: inside(".matrix td"), cards: inside(".gallery figure"), pairs: inside(".pairs span.off"),
      histograms: inside("path.histogram"), det: inside("path.det"),
      wide: doc.documentElement.scrollWidth - view.innerWidth };
    const order = () => [...doc.querySelectorAll(".items tbody")].map((body) => body.querySelector("div").textContent);
    if (inside(".items")) { one.orders = [order()];
      for (const button of doc.querySelectorAll(".items thead button")) { button.click(); one.orders.push(order()); } }
    return one;
  });
  const players = [...doc.querySelectorAll("audio")];
  if (players.length > 1) {
    saw.paused = 0;
    players.forEach((player, i) => (player.pause = () => (saw.paused += i === 1 ? 100 : 1)));
    players[1].dispatchEvent(new view.Event("play"));
    saw.lasts = null; // the sound itself: its seconds, or why it can't be played; null where that took too long
    players[0].addEventListener("loadedmetadata", () => (saw.lasts = players[0].duration));
    players[0].addEventListener("error", () => (saw.lasts = players[0].error.message));
    players[0].preload = "auto"; players[0].load();
    // Chromium's clock is a virtual one here, and the sound is read in real time: so time is spent with counting.
    for (let i = 0; i < 40 && saw.lasts === null; i++) {
      await new Promise((later) => setTimeout(later, 50));
      for (let n = 0, sum = 0; n < 2e7; n++) sum += n % 7;
    }
  }
  saw.fault ||= $("#fault")?.textContent ?? "";
  document.querySelector("#saw").textContent = JSON.stringify(saw);
};
</script></body>"""


def browse(text: str, width: int, folder: Path, *flags: str) -> dict:
    """What FRAME saw of the page ``text`` in a frame ``width`` pixels wide; ``folder`` is for the browser's files."""
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)).replace("REPORT", entities.escape(text)),
                                       encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--window-size=1400,1000", *flags,
         "--dump-dom", (folder / "frame.html").as_uri()], capture_output=True, encoding="utf-8", timeout=120)
    found = re.search(r'<pre id="saw">(.+?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(entities.unescape(found[1]))
