"use strict";
// The report: sorting and filters of the table, and the plots.
(() => {
  const { $, escaped, colors, draw } = page;
  const rows = [...document.querySelectorAll("#site-table tbody tr")];
  let data = null;
  let current = null;

  // ---- the table ----
  function cellOf(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent;
  }

  function sortBy(header) {
    const column = header.cellIndex;
    const numeric = header.classList.contains("n") || column === 0;
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    const keyed = rows.map((row) => [cellOf(row, column), row]);
    keyed.sort(([a, rowA], [b, rowB]) => {
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // without a number: last, in both directions
      const order = numeric ? Number(a) - Number(b) : a.localeCompare(b);
      return sign * order || rowA.dataset.index - rowB.dataset.index;
    });
    $("site-table").tBodies[0].append(...keyed.map(([, row]) => row));
  }

  function filter() {
    const name = $("filter-name").value.trim().toLowerCase();
    const role = $("filter-role").value;
    const op = $("filter-op").value;
    const quantized = $("filter-quantized").checked;
    let shown = 0;
    for (const row of rows) {
      const fits =
        (!name || row.cells[0].textContent.toLowerCase().includes(name)) &&
        (!role || row.dataset.roles.split(" ").includes(role)) &&
        (!op || row.dataset.op === op) &&
        (!quantized || row.dataset.quantized !== undefined);
      row.hidden = !fits;
      shown += fits;
    }
    $("shown").textContent = shown === rows.length ? `${shown} sites` : `${shown} of ${rows.length} sites`;
  }

  function step(button, down) {
    const visible = [...document.querySelectorAll("#site-table tbody tr:not([hidden]) .pick")];
    const next = visible[visible.indexOf(button) + (down ? 1 : -1)];
    if (next) next.focus();
  }

  // ---- plots ----
  function trajectory() {
    const curves = [
      ["trajectory_mse", "state", "solid"],
      ["prediction_mse", "prediction, own path", "dash"],
      ["prediction_mse_same_input", "prediction, same input", "dot"],
    ].filter(([key]) => data.errors[key]);
    const traces = curves.map(([key, name, dash], index) => ({
      name,
      x: data.errors[key].map((_, step) => step + 1),
      y: data.errors[key],
      mode: "lines+markers",
      line: { color: colors[index], dash },
      marker: { size: 5 },
      hovertemplate: "step %{x}: %{y:.3e}<extra></extra>",
    }));
    draw("plot-trajectory", traces, {
      xaxis: { title: { text: "sampler step" } },
      yaxis: { title: { text: "MSE" }, type: "log", exponentformat: "power", dtick: 1 },
    });
  }

  function heatmap() {
    const kind = $("heatmap-kind").value;
    const sites = data.sites.map((site, index) => ({ site, index })).filter(({ site }) => site[kind]);
    const place = $("plot-heatmap");
    if (!sites.length) {
      place.textContent = "no errors by timestep were measured";
      return;
    }
    const narrow = place.clientWidth < 600;
    const label = (name) => escaped(narrow ? "" : name.length > 44 ? "…" + name.slice(-43) : name);
    const z = sites.map(({ site }) => site[kind]);
    place.style.height = `${Math.max(260, 90 + sites.length * 13)}px`;
    const trace = {
      type: "heatmap",
      z,
      y: sites.map((_, row) => row),
      x: z[0].map((_, slot) => slot),
      customdata: sites.map(({ site }) => z[0].map((_, slot) => [escaped(site.name), data.timesteps[slot] ?? "all"])),
      hovertemplate: "%{customdata[0]}<br>timestep %{customdata[1]}: %{z:.1f} dB<extra></extra>",
      colorscale: "Viridis",
      colorbar: { title: { text: "dB" }, thickness: 12, len: 240, lenmode: "pixels", y: 1, yanchor: "top" },
    };
    draw("plot-heatmap", [trace], {
      margin: { l: 20, r: 10, t: 46, b: 10 },
      xaxis: {
        side: "top", title: { text: "timestep" }, tickvals: trace.x.filter((slot) => slot % Math.ceil(trace.x.length / 10) === 0),
        ticktext: trace.x.filter((slot) => slot % Math.ceil(trace.x.length / 10) === 0).map((slot) => String(data.timesteps[slot] ?? "all")),
      },
      yaxis: {
        autorange: "reversed", tickvals: trace.y, ticktext: sites.map(({ site }) => label(site.name)), tickfont: { size: 9 },
        fixedrange: true, showgrid: false,
      },
    });
    place.removeAllListeners("plotly_click");
    place.on("plotly_click", (event) => pick(sites[event.points[0].y].index));
  }

  const scaledName = { input: "x · 2ᵏ / γ", weight: "W · γ" };

  function pairs(kind, part) {
    if (!part) return [];
    return [["before scaling", part.before], ["after: " + scaledName[kind], part.after]].filter(([, one]) => one);
  }

  function channels(id, kind, part) {
    const found = pairs(kind, part);
    const traces = found.map(([name, one], index) => ({
      name,
      x: one.channel_maxima.map((_, place) => place * one.channels_a_number),
      y: one.channel_maxima,
      mode: "lines",
      line: { shape: "hvh", width: 1.3, color: colors[index] },
      fill: index ? "none" : "tozeroy",
      fillcolor: "rgba(9,105,218,.15)",
      hovertemplate: "channel %{x}: %{y:.4g}<extra></extra>",
    }));
    draw(id, traces, { xaxis: { title: { text: "input channel" } }, yaxis: { title: { text: kind === "input" ? "max |x|" : "max |w|" }, rangemode: "tozero" } });
  }

  function histogram(id, kind, part) {
    const traces = pairs(kind, part).map(([name, one], index) => {
      const bins = one.histogram.length;
      const width = (2 * one.histogram_limit) / bins; // not the same before and after: shares of bins are no heights
      const kept = one.histogram.map((share, bin) => [(bin + 0.5) * width - one.histogram_limit, share / width]).filter(([, height]) => height > 0);
      return {
        name,
        x: kept.map(([middle]) => middle),
        y: kept.map(([, height]) => height),
        mode: "lines",
        line: { shape: "hvh", width: 1.3, color: colors[index] },
        hovertemplate: "%{x:.3g}: density %{y:.3g}<extra></extra>",
      };
    });
    draw(id, traces, { xaxis: { title: { text: "value" } }, yaxis: { title: { text: "density" }, type: "log", exponentformat: "power", dtick: 1 } });
  }

  function ranges(site) {
    const known = site.input && (site.input.after || site.input.before);
    const x = data.timesteps.length ? data.timesteps : [0];
    const traces = [];
    if (known && known.range) {
      const line = { color: colors[0], width: 1.3 };
      traces.push({ name: "seen", x, y: known.range.map((ends) => ends[0]), mode: "lines+markers", marker: { size: 4 }, line });
      traces.push({ name: "seen", showlegend: false, x, y: known.range.map((ends) => ends[1]), mode: "lines+markers", marker: { size: 4 }, line, fill: "tonexty", fillcolor: "rgba(9,105,218,.15)" });
    }
    if (site.quantized) {
      for (const end of [0, 1]) {
        traces.push({ name: "integers reach", showlegend: end === 0, x, y: site.quantized.map((ends) => ends[end]), mode: "lines", line: { color: colors[1], dash: "dash", width: 1.5 } });
      }
    }
    for (const trace of traces) trace.hovertemplate = "timestep %{x}: %{y:.4g}<extra></extra>";
    draw("plot-ranges", traces, {
      xaxis: { title: { text: "timestep (sampling goes to the right)" }, autorange: "reversed" },
      yaxis: { title: { text: site.input && site.input.after ? "x · 2ᵏ / γ" : "x" } },
    });
  }

  function errors(site) {
    const x = data.timesteps.length ? data.timesteps : [0];
    const traces = [["local", "what the site adds"], ["accumulated", "what has added up"]]
      .filter(([kind]) => site[kind])
      .map(([kind, name], index) => ({ name, x, y: site[kind], mode: "lines+markers", marker: { size: 4 }, line: { color: colors[index] }, hovertemplate: "timestep %{x}: %{y:.1f} dB<extra></extra>" }));
    draw("plot-errors", traces, { xaxis: { title: { text: "timestep (sampling goes to the right)" }, autorange: "reversed" }, yaxis: { title: { text: "SQNR, dB" } } });
  }

  function sitePlots() {
    const site = data.sites[current];
    $("site-plots").hidden = false;
    channels("plot-input-channels", "input", site.input);
    histogram("plot-input-histogram", "input", site.input);
    channels("plot-weight-channels", "weight", site.weight);
    histogram("plot-weight-histogram", "weight", site.weight);
    ranges(site);
    errors(site);
  }

  function pick(index, { move = true } = {}) {
    if (!data) return;
    current = index;
    for (const row of rows) row.toggleAttribute("aria-current", Number(row.dataset.index) === index);
    const site = data.sites[index];
    $("site-title").textContent = site.name;
    $("site-hint").hidden = true;
    $("site-facts").replaceChildren(
      ...site.facts.flatMap(([name, value]) => {
        const term = document.createElement("dt");
        const fact = document.createElement("dd");
        term.textContent = name;
        fact.textContent = value;
        return [term, fact];
      }),
    );
    if (window.Plotly) sitePlots();
    if (move) {
      $("site-title").focus({ preventScroll: true });
      $("site").scrollIntoView({ block: "start" });
    }
  }

  function drawAll() {
    trajectory();
    heatmap();
    if (current !== null) sitePlots();
  }

  // ---- what the reader does ----
  for (const header of document.querySelectorAll("#site-table thead th")) {
    header.querySelector("button").addEventListener("click", () => sortBy(header));
  }
  for (const id of ["filter-name", "filter-role", "filter-op", "filter-quantized"]) $(id).addEventListener("input", filter);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  $("site-table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !String(window.getSelection())) pick(Number(row.dataset.index));
  });
  $("site-table").tBodies[0].addEventListener("keydown", (event) => {
    if (event.target.matches(".pick") && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      step(event.target, event.key === "ArrowDown");
    }
  });
  $("heatmap-kind").addEventListener("input", () => window.Plotly && heatmap());
  filter(); // a browser may have kept what was chosen before a reload

  page.start((found) => {
    data = found;
    const known = data.sites.map((site, index) => [site.sqnr, index]).filter(([sqnr]) => sqnr !== null);
    const worst = known.reduce((best, one) => (one[0] < best[0] ? one : best), known[0] || [0, 0]);
    if (data.sites.length) pick(worst[1], { move: false });
  }, drawAll);
})();
