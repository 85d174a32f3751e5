"use strict";
// Two artifacts' errors over one another.
(() => {
  const { $, escaped, colors, draw } = page;
  let data = null;

  function drawAll() {
    const dashes = { trajectory_mse: "solid", prediction_mse: "dash", prediction_mse_same_input: "dot" };
    const curves = data.curves.map(([side, kind, values]) => ({
      name: `${side}: ${kind.replaceAll("_", " ")}`,
      x: values.map((_, step) => step + 1),
      y: values,
      mode: "lines",
      line: { color: colors[side === "A" ? 0 : 1], dash: dashes[kind] },
      hovertemplate: "step %{x}: %{y:.3e}<extra></extra>",
    }));
    if (curves.length) {
      draw("plot-trajectory", curves, {
        xaxis: { title: { text: "sampler step" } },
        yaxis: { title: { text: "MSE" }, type: "log", exponentformat: "power", dtick: 1 },
      });
    }
    if (!data.sqnr.length) return;
    const ends = [Math.min(...data.sqnr.flatMap(([, a, b]) => [a, b])), Math.max(...data.sqnr.flatMap(([, a, b]) => [a, b]))];
    const equal = { name: "equal", x: ends, y: ends, mode: "lines", line: { color: colors[3], width: 1, dash: "dot" }, hoverinfo: "skip" };
    const sites = {
      name: "sites",
      x: data.sqnr.map(([, a]) => a),
      y: data.sqnr.map(([, , b]) => b),
      text: data.sqnr.map(([name]) => escaped(name)),
      mode: "markers",
      marker: { color: colors[0], size: 7, opacity: 0.7 },
      hovertemplate: "%{text}<br>A %{x:.1f} dB, B %{y:.1f} dB<extra></extra>",
    };
    draw("plot-sqnr", [equal, sites], { xaxis: { title: { text: "A, dB" } }, yaxis: { title: { text: "B, dB" } } });
  }

  page.start((found) => { data = found; }, drawAll);
})();
