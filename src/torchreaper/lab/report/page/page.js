"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const MOST_ROWS = 1024; // filters; a map of more shows the share of each layer
  const MOST_BANDS = 4; // schemes; the bands of more would hide each other


  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const ink = (colour) => (colour === "#000000" ? css("--ink") : colour);
  const faded = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");
  // Plotly reads a subset of HTML in texts; names are names.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most) => {
    if (text.length <= most) return text;
    const head = Math.floor(most / 3);
    return text.slice(0, head) + "…" + text.slice(text.length - (most - head - 1));
  };
  const field = (number, name) => document.getElementsByName(`c${number}-${name}`);
  const checked = (number, name) => field(number, name)[0].checked;
  const picked = (number, name) => [...field(number, name)].find((input) => input.checked);
  const shown = (number) => new Set([...field(number, "scheme")].filter((box) => box.checked).map((box) => +box.value));
  const epochs = { title: { text: "epoch" }, rangemode: "tozero" };

  // A row for each scheme, the first on top: names have room there on a phone as well.
  const schemeAxis = (names) => ({
    tickvals: names.map((_, i) => i), ticktext: names.map((name) => plain(short(name, 20))),
    range: [names.length - 0.4, -0.6], showgrid: false, zeroline: false, fixedrange: true,
  });

  const phases = (spans) => spans.map(([start, end]) => ({
    type: "rect", xref: "x", yref: "paper", x0: start, x1: end, y0: 0, y1: 1, layer: "below",
    line: { width: 0 }, fillcolor: css("--shade"),
  }));

  function strips(schemes) {
    const shapes = [];
    let top = 1;
    for (const scheme of schemes) {
      for (const [start, end] of scheme.spans) shapes.push({
        type: "rect", xref: "x", yref: "paper", x0: start, x1: end, y0: top - 0.02, y1: top,
        line: { width: 0 }, fillcolor: ink(scheme.colour),
      });
      if (scheme.spans.length) top -= 0.025;
    }
    return shapes;
  }

  // A network that has just begun is so far from where it goes that nothing else would be seen.
  function range(curves) {
    const all = [], late = [];
    for (const { x, y } of curves) x.forEach((epoch, i) => {
      if (y[i] === null) return;
      all.push(y[i]);
      if (epoch > x[x.length - 1] / 10) late.push(y[i]);
    });
    if (late.length < 3) return undefined;
    const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const [low, high] = span(late), [least, most] = span(all);
    if (2 * (high - low) >= most - least) return undefined;
    const room = 0.06 * (high - low || 1);
    return [low - room, high + room];
  }

  // Known before anything is drawn, so that what a link leads to stays where it is.
  const filtersOf = (layers) => layers.reduce((sum, [, filters]) => sum + filters, 0);
  const heights = {
    forest: (number) => 110 + 34 * data[number].forest.length,
    pairs: (number) => 110 + 34 * data[number].schemes.length,
    curves: () => 380,
    layers: () => 380,
    map(number) {
      const { layers } = data[number].maps[+field(number, "map")[0].value], total = filtersOf(layers);
      return 70 + Math.max(150, Math.min(760, 10 * (total <= MOST_ROWS ? total : layers.length)));
    },
  };

  // A log scale where all are above 0 and far apart; Plotly's own ticks between the powers of ten are too small to read.
  function logAxis(curves) {
    let low = Infinity, high = 0;
    for (const { y } of curves) for (const v of y) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
    if (low <= 0 || high < 20 * low) return null;
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), steps = to - from <= 4 ? [1, 3] : [1];
    const tickvals = [];
    for (let power = from; power <= to; power++) for (const step of steps) tickvals.push(+`${step}e${power}`);
    return { type: "log", tickvals, ticktext: tickvals.map(String) };
  }

  const draw = {
    forest(number) {
      const rows = data[number].forest;
      const colours = new Map(data[number].schemes.map((scheme) => [scheme.name, ink(scheme.colour)]));
      const colour = (row) => colours.get(row.scheme) || css("--ink");
      const traces = rows.map((row, i) => ({
        x: [row.mean], y: [i], mode: "markers", name: plain(row.scheme), text: [plain(`${row.scheme}: ${row.text}`)],
        hovertemplate: "%{text} points<extra></extra>", marker: { size: 10, color: colour(row) },
        error_x: row.low === null ? undefined : {
          type: "data", symmetric: false, array: [row.high - row.mean], arrayminus: [row.mean - row.low],
          color: colour(row), thickness: 2, width: 6,
        },
      }));
      return [traces, {
        height: heights.forest(number), hovermode: "closest",
        xaxis: { title: { text: `points of ${plain(data[number].measure)}` }, rangemode: "tozero", zeroline: true, zerolinecolor: css("--ink"), zerolinewidth: 1.5 },
        yaxis: schemeAxis(rows.map((row) => row.scheme)),
      }];
    },

    curves(number) {
      const { schemes } = data[number], visible = shown(number), metric = picked(number, "metric").value;
      const traces = [], seen = [];
      const banded = checked(number, "band") && visible.size <= MOST_BANDS;
      const kept = schemes.filter((_, i) => visible.has(i));
      for (const scheme of kept) {
        const colour = ink(scheme.colour), { x, mean, low, high } = scheme.means[metric];
        if (banded && scheme.seeds.length > 1) {
          const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", name: `${plain(scheme.name)}, range` };
          seen.push({ x, y: low }, { x, y: high });
          traces.push({ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: faded(colour, 0.18) });
        }
        if (checked(number, "seeds")) for (const seed of scheme.seeds) {
          const few = seed[metric].filter((y) => y !== null).length <= 15;
          seen.push({ x: seed.x, y: seed[metric] });
          traces.push({
            // Not every epoch need have been judged.
            x: seed.x, y: seed[metric], mode: few ? "lines+markers" : "lines", connectgaps: data[number].judged.includes(metric), line: { color: faded(colour, 0.55), width: 1, dash: scheme.dash },
            name: `${plain(scheme.name)}, seed ${seed.seed}`, hovertemplate: "%{y}<extra>%{fullData.name}</extra>",
          });
        }
        seen.push({ x, y: mean });
        traces.push({
          x, y: mean, mode: x.length <= 15 ? "lines+markers" : "lines", name: plain(scheme.name),
          line: { color: colour, width: 2.4, dash: scheme.dash }, hovertemplate: "%{y}<extra>%{fullData.name}</extra>",
        });
      }
      const axis = picked(number, "metric").dataset.axis;
      const log = metric === "loss" && logAxis(seen);
      const grey = (kept.find((scheme) => scheme.spans.length) || { spans: [] }).spans;
      return [traces, {
        height: heights.curves(number), hovermode: "x unified", xaxis: epochs,
        yaxis: { title: { text: axis }, ...(log || { range: range(seen) }) },
        shapes: data[number].strips ? strips(kept) : phases(grey),
      }];
    },

    pairs(number) {
      const { schemes, pairs } = data[number], rows = schemes.map((_, i) => i);
      const traces = pairs.map(({ seed, values }) => ({
        x: values, y: rows, mode: "lines+markers", name: `seed ${seed}`, connectgaps: true,
        line: { color: faded(css("--soft"), 0.6), width: 1.2 }, hovertemplate: "%{x} %<extra>%{fullData.name}</extra>",
        marker: { size: 10, color: schemes.map((scheme) => ink(scheme.colour)) },
      }));
      return [traces, {
        height: heights.pairs(number), hovermode: "closest", xaxis: { title: { text: `${plain(data[number].measure)} (%)` }, zeroline: false },
        yaxis: schemeAxis(schemes.map((scheme) => scheme.name)),
      }];
    },

    layers(number) {
      const scheme = data[number].schemes[+field(number, "layers")[0].value];
      const few = scheme.layers.length <= 8;
      const traces = scheme.layers.map(({ name, colour, x, y }) => ({
        x, y, mode: x.length <= 15 ? "lines+markers" : "lines", name: plain(short(name, 24)), line: { color: lifted(colour), width: 1.8 },
        hovertemplate: "%{y}<extra>%{fullData.name}</extra>", showlegend: few,
      }));
      return [traces, {
        height: heights.curves(number), hovermode: few ? "x unified" : "closest", xaxis: epochs, shapes: phases(scheme.spans), showlegend: few,
        legend: { orientation: "h", y: -0.22, yanchor: "top", font: { size: 13 } },
        annotations: few ? [] : [{
          text: `${scheme.layers.length} layers: dark is first, yellow is last`, xref: "paper", yref: "paper", x: 1, y: 1.02,
          xanchor: "right", yanchor: "bottom", showarrow: false, font: { size: 12 },
        }],
        yaxis: { title: { text: "mean O<sub>f</sub> of the layer" }, ...(logAxis(scheme.layers) || { rangemode: "tozero" }) },
      }];
    },

    map(number) {
      const { layers, first, last, spans } = data[number].maps[+field(number, "map")[0].value];
      const count = last - first + 1, single = filtersOf(layers) <= MOST_ROWS, z = [], names = [], ticks = [];
      for (const [layer, filters] of layers) {
        const rows = Array.from({ length: single ? filters : 1 }, () => new Array(count).fill(0));
        for (const [from, to, dropped] of spans) for (const filter of dropped[layer] || [])
          for (let epoch = from; epoch <= to; epoch++) rows[single ? filter : 0][epoch - first] += single ? 1 : 1 / filters;
        ticks.push({ at: z.length + (rows.length - 1) / 2, name: `${short(layer, 16)} (${filters})` });
        rows.forEach((row, i) => { z.push(row); names.push(plain(single ? `${layer}, filter ${i}` : layer)); });
      }
      const height = heights.map(number);
      const step = Math.max(1, Math.ceil(ticks.length * 16 / (height - 70))), marks = ticks.filter((_, i) => i % step === 0);
      let edge = -0.5;
      const edges = layers.map(([, filters]) => (edge += single ? filters : 1)).slice(0, -1);
      return [[{
        // As in the curves, epoch e lies between e - 1 and e.
        type: "heatmap", z, x0: first - 0.5, dx: 1, zmin: 0, zmax: 1, showscale: false, colorscale: [[0, css("--on")], [1, css("--off")]],
        text: names.map((name) => Array.from({ length: count }, (_, i) => `${name}, epoch ${first + i}`)), name: "dropped",
        hovertemplate: `%{text}: ${single ? "%{z:d} (1 is dropped)" : "%{z:.0%} dropped"}<extra></extra>`,
      }], {
        height, hovermode: "closest", xaxis: { title: { text: "epoch" }, showgrid: false, zeroline: false },
        shapes: layers.length > 40 ? [] : edges.map((y) => ({
          type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: css("--paper"), width: 2 },
        })),
        yaxis: {
          autorange: false, range: [z.length - 0.5, -0.5], showgrid: false, zeroline: false,
          tickvals: marks.map(({ at }) => at), ticktext: marks.map(({ name }) => plain(name)),
        },
      }];
    },
  };

  // The darkest blues of the scale of the layers do not stand out from a dark page.
  function lifted(colour) {
    if (css("--paper") === "#ffffff") return colour;
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return `rgb(${parts.map((part) => Math.round(part + (255 - part) * 0.5)).join(",")})`;
  }

  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { format: "svg" }, scrollZoom: false, showTips: false,
  };
  const drawn = new Set();

  function show(place) {
    const [traces, layout] = draw[place.dataset.kind](+place.dataset.number);
    const axis = {
      gridcolor: css("--line"), linecolor: css("--soft"), zerolinecolor: css("--line"), automargin: true, fixedrange: touch,
      tickfont: { size: 12 },
    };
    const full = {
      showlegend: false, margin: { l: 56, r: 14, t: 26, b: 46 }, dragmode: touch ? false : "zoom", autosize: true,
      paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"),
      font: { color: css("--ink"), size: 13, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, namelength: 30 },
      ...layout,
    };
    full.xaxis = { ...axis, ...full.xaxis };
    full.yaxis = { ...axis, ...full.yaxis };
    for (const one of [full.xaxis, full.yaxis]) if (one.title) one.title = { standoff: 8, font: { size: 13 }, ...one.title };
    place.style.minHeight = `${full.height}px`;
    drawn.add(place);
    return Plotly.react(place, traces, full, config);
  }

  const places = [...document.querySelectorAll(".plot")];
  const again = () => Promise.all([...drawn].map(show));
  // A page of many comparisons is drawn where it is looked at.
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { watch.unobserve(target); show(target); }
  }, { rootMargin: "400px" });
  for (const place of places) {
    place.style.minHeight = `${heights[place.dataset.kind](+place.dataset.number)}px`;
    watch.observe(place);
  }

  document.addEventListener("change", ({ target }) => {
    const [, number, name] = /^c(\d+)-(.*)$/.exec(target.name) || [];
    const kind = { metric: "curves", band: "curves", seeds: "curves", scheme: "curves", layers: "layers", map: "map" }[name];
    if (kind) show(document.getElementById(`c${number}-${kind}`));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  // On paper: white, everything drawn, nothing folded.
  let folded = [];
  addEventListener("beforeprint", () => {
    root.dataset.paper = "white";
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => { one.open = true; });
    for (const place of places) { watch.unobserve(place); show(place); }
  });
  addEventListener("afterprint", () => {
    delete root.dataset.paper;
    folded.forEach((one) => { one.open = false; });
    again();
  });
})();
