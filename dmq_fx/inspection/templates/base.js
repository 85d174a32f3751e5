"use strict";
// What the pages share: what is packed into them, and how a plot looks. Nothing is fetched.
const page = (() => {
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // plotly reads a few tags in text: names must not be any
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colors = ["#2f81f7", "#d1570a", "#1a7f4b", "#8250df"];

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob($(id).textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function layout(extra) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--text"), size: 11, family: "system-ui, DejaVu Sans, sans-serif" },
      margin: { l: 52, r: 10, t: 8, b: 40 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: css("--panel"), font: { color: css("--text") } },
      ...extra,
      xaxis: { ...axis, ...(extra.xaxis || {}) },
      yaxis: { ...axis, ...(extra.yaxis || {}) },
    };
  }

  function draw(id, traces, extra) {
    const place = $(id);
    const nothing = !traces.some((trace) => trace.y && trace.y.length);
    const panel = place.closest(".panel");
    if (panel) panel.hidden = nothing;
    else place.style.height = nothing ? "auto" : "";
    if (nothing) {
      window.Plotly.purge(place);
      place.textContent = "nothing was measured";
      return;
    }
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    const config = { displaylogo: false, responsive: true, displayModeBar: false };
    window.Plotly.react(place, traces, layout(extra), config);
  }

  // Read the page's data, load plotly from the page itself, draw, and draw again where the look changes.
  async function start(first, drawAll) {
    try {
      first(JSON.parse(await unpacked("data-gz")));
      const library = document.createElement("script");
      library.textContent = await unpacked("plotly-gz"); // its hash is in the page's security policy
      document.head.append(library);
      drawAll();
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
      for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
        addEventListener(event, () => {
          document.documentElement.toggleAttribute("data-printing", printing); // the screen's colours still hold here
          drawAll();
        });
      }
      document.documentElement.dataset.ready = "yes";
    } catch (error) {
      $("trouble").hidden = false;
      $("trouble").textContent = `The plots cannot be drawn (they need a browser of 2023 or later): ${error}`;
    }
  }

  return { $, escaped, colors, draw, start };
})();
