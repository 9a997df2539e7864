"""The page's CSS (light and dark) and the script that keeps its clips in step; strings, so that every install has them.

Decides colours, spacing and the player's behaviour; the page's structure is left to `page.py`.
"""

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --ink: #1c1d1f; --quiet: #6a6d73; --rule: #e3e3e0; --card: #ffffff;
  --s0: #8b9098; --s1: #1f6feb; --s2: #e08600; --s3: #1a9e6f; --s4: #a259d9; --s5: #c2587a;
  --cut: #d1435b; --held: #12805c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131417; --ink: #e8e8e6; --quiet: #9a9da5; --rule: #2b2d33; --card: #1b1d21;
    --s0: #8d929b; --s1: #5b9dff; --s2: #f5a83d; --s3: #45c997; --s4: #c08cf0; --s5: #e88fae;
    --cut: #ff6f86; --held: #45c997;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1480px; padding: 28px 28px 56px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header p, .note { color: var(--quiet); max-width: 104ch; margin: 4px 0 14px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 36px 0 2px; }
code { font-size: 0.92em; background: var(--card); border: 1px solid var(--rule); border-radius: 4px; padding: 0 4px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 18px 0 4px; }
.numbers div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 16px; }
.numbers b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--quiet); font-size: 13px; line-height: 1.35; display: block; }
.controls { display: flex; align-items: center; gap: 14px; margin: 6px 0 12px; }
.controls button {
  font: inherit; width: 76px; padding: 4px 0; color: var(--ink); background: var(--card);
  border: 1px solid var(--rule); border-radius: 7px; cursor: pointer;
}
.controls input { flex: 1 1 200px; max-width: 420px; accent-color: var(--s1); }
.controls output { color: var(--quiet); font-size: 13px; font-variant-numeric: tabular-nums; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; }
.picture { position: relative; border-radius: 8px; overflow: hidden; background: #000; border: 1px solid var(--rule); }
.picture video, .picture img { display: block; width: 100%; image-rendering: pixelated; }
.overlay {
  position: absolute; left: 6px; bottom: 6px; display: flex; align-items: center; gap: 7px; padding: 4px 9px 4px 5px;
  background: rgb(255 255 255 / 0.86); color: #1c1d1f; border-radius: 8px; font-size: 12px; line-height: 1.25;
}
.overlay img { width: 46px; height: 46px; display: block; }
figcaption { font-size: 13px; line-height: 1.4; color: var(--quiet); margin-top: 5px; }
figcaption b { color: var(--ink); }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 10px 14px 6px; }
.chart { margin: 12px 0; }
.chart svg { display: block; width: 100%; }
.chart svg[data-step] { cursor: pointer; }
.chart.small { max-width: 720px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 16px; }
.chart text { fill: var(--quiet); font-size: 10px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); }
.mark { stroke: var(--cut); stroke-dasharray: 4 4; }
.playhead { stroke: var(--ink); opacity: 0.55; }
.series { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--colour); }
.s0 { --colour: var(--s0); } .s1 { --colour: var(--s1); } .s2 { --colour: var(--s2); } .s3 { --colour: var(--s3); }
.s4 { --colour: var(--s4); } .s5 { --colour: var(--s5); }
.cut { --colour: var(--cut); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; margin-bottom: 4px; }
.legend span::before {
  content: ""; display: inline-block; width: 18px; height: 3px; border-radius: 2px; background: var(--colour);
  vertical-align: middle; margin-right: 7px;
}
.legend i { color: var(--quiet); font-style: normal; margin-left: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 6px 22px 6px 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
.player.pair .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); max-width: 940px; }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 14px; max-width: 1100px; }
.labelled { display: grid; gap: 4px 8px; max-width: 820px; }
.labelled.rows { grid-template-columns: auto minmax(0, 1fr); }
.labelled.rows > .across, .labelled.rows > .picture { grid-column: 2; }
.across, .down { display: grid; font-size: 12px; line-height: 1.2; color: var(--quiet); }
.across { grid-template-columns: repeat(var(--n), minmax(0, 1fr)); text-align: center; overflow-wrap: anywhere; }
.down { grid-template-rows: repeat(var(--n), 1fr); align-items: center; text-align: right; max-width: 84px; }
.down + .picture { align-self: start; }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 14px; }
.scores { margin-top: 12px; }
.score { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 16px; }
.score { min-width: 0; }
.score h3 { font-size: 14px; font-weight: 600; margin: 0; }
.score .value { font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; }
.score .value small { font-size: 13px; font-weight: 400; color: var(--quiet); }
.badge { font-size: 12px; border-radius: 99px; padding: 2px 9px; border: 1px solid; white-space: nowrap; }
.held { color: var(--held); } .missed { color: var(--cut); }
.bars { display: grid; grid-template-columns: auto minmax(0, 1fr) auto; gap: 3px 10px; align-items: center; }
.bars { color: var(--quiet); font-size: 12px; margin: 8px 0; font-variant-numeric: tabular-nums; }
.bars .model { color: var(--ink); font-weight: 600; }
.bars i { display: block; height: 7px; border-radius: 4px; background: var(--s0); opacity: 0.55; min-width: 2px; }
.bars .model + div i { background: var(--s1); opacity: 1; }
.bars div { position: relative; padding: 3px 0; }
.bars div[style]::after {
  content: ""; position: absolute; inset: 0 auto 0 var(--gate); border-left: 1.5px dashed var(--cut);
}
.score .result { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: center; gap: 2px 10px; }
.protocol { font: 11px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--quiet); margin: 6px 0 0; }
.protocol, .settings td { overflow-wrap: anywhere; }
.settings { columns: 2 380px; column-gap: 40px; }
.settings table { width: 100%; table-layout: fixed; break-inside: avoid; margin-top: 0; }
.settings td { white-space: normal; padding-right: 8px; font-size: 13px; }
.settings td { text-align: left; }
.settings td:first-child { color: var(--quiet); width: 40%; }
.settings th { color: var(--ink); font-weight: 600; padding-top: 14px; }
@media (max-width: 600px) {
  body { padding: 18px 14px 40px; }
  .player.pair .panels { gap: 8px; }
  .chart { padding: 8px 8px 4px; }
  .chart.small text { font-size: 18px; }
  .chart.small svg { overflow: visible; }
  .numbers { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .numbers div { padding: 10px 12px; }
  .numbers b { font-size: 20px; }
  .moments { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 10px; }
}
"""

SCRIPT = """\
// Keeps the clips of a player on one frame, moves the charts' playheads with them; a click on a chart goes there.
for (const player of document.querySelectorAll(".player")) {
  const rate = Number(player.dataset.rate), notes = player.dataset.notes.split("|");
  const videos = [...player.querySelectorAll("video")], lead = videos[0];
  const [button, slider, note] = ["button", "input", "output"].map((tag) => player.querySelector(tag));
  const charts = [...document.querySelectorAll(".chart svg[data-step]")];
  const frame = () => Math.min(notes.length - 1, Math.floor(lead.currentTime * rate + 0.01));
  const pause = () => { videos.forEach((video) => video.pause()); button.textContent = "Play"; };
  const play = () => { videos.forEach((video) => video.play().catch(() => {})); button.textContent = "Pause"; };
  const show = (index) => { pause(); videos.forEach((video) => { video.currentTime = (index + 0.5) / rate; }); };
  button.addEventListener("click", () => (lead.paused ? play() : pause()));
  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const chart of charts) {
    const { left, step } = chart.dataset;
    chart.addEventListener("click", (event) => {
      const across = (event.clientX - chart.getBoundingClientRect().left) / chart.clientWidth;
      const x = across * chart.viewBox.baseVal.width;
      show(Math.max(0, Math.min(notes.length - 1, Math.round((x - left) / step))));
    });
  }
  const draw = () => {
    const index = frame();
    if (!lead.paused) {
      slider.value = index;
      for (const video of videos) {
        if (Math.abs(video.currentTime - lead.currentTime) > 1.5 / rate) video.currentTime = lead.currentTime;
      }
    }
    note.textContent = notes[index];
    for (const chart of charts) {
      const x = Number(chart.dataset.left) + index * Number(chart.dataset.step);
      const line = chart.querySelector(".playhead");
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    requestAnimationFrame(draw);
  };
  draw();
}
"""
