// What the browser does by itself: corners of the lasso, the address, keys, the small picture beside the pointer.
(() => {
  const VERTICES = 80;
  const round = (v) => Number(v.toPrecision(5));
  const byId = (id) => document.getElementById(id);
  const set = (id, props) => window.dash_clientside.set_props(id, props);

  const corners = (data) => {
    if (data.range) {
      const [x, y] = [data.range.x, data.range.y];
      return [x[0], y[0], x[1], y[0], x[1], y[1], x[0], y[1]].map(round);
    }
    const { x, y } = data.lassoPoints;
    const step = Math.max(1, Math.ceil(x.length / VERTICES));
    const flat = [];
    for (let i = 0; i < x.length; i += step) flat.push(round(x[i]), round(y[i]));
    return flat;
  };

  const FIELDS = ["target", "colour", "only", "clusters", "low", "high", "find", "sort", "show", "lasso", "page", "sample"];
  const USUAL = { colour: "cluster", only: "all", sort: "typical", show: "both", page: 0 };
  const empty = (v) => v === null || v === undefined || v === "" || (Array.isArray(v) && !v.length);
  const no = () => window.dash_clientside.no_update;

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    view: {
      lasso: (data, held) => {
        if (!data) return held && held.length ? [] : no();
        return data.range || data.lassoPoints ? corners(data) : no();
      },
      clicked: (data) => (data && data.points.length ? data.points[0].customdata : no()),
      peek: (data) => {
        if (!data || !data.points.length) return [no(), true];
        return [`/picture/${data.points[0].customdata}/${window.relpropPeek || "input"}`, false];
      },
      first: () => 0,
      address: (...values) => {
        const parts = FIELDS.map((name, i) => [name, values[i]]).filter(([n, v]) => !empty(v) && v !== USUAL[n]);
        const query = parts.map(([n, v]) => `${n}=${encodeURIComponent(String(v)).replaceAll("%2C", ",")}`).join("&");
        history.replaceState(null, "", query ? `?${query}` : location.pathname);
        return query;
      },
    },
  });

  const rows = () => [...document.querySelectorAll("#grid [data-row]")];
  const current = () => Number(new URLSearchParams(location.search).get("sample") ?? NaN);
  const turn = (by) => {
    const page = Number(new URLSearchParams(location.search).get("page") ?? 0) + by;
    const last = Number(byId("on").dataset.last ?? 0);
    if (page >= 0 && page <= last) set("page", { data: page });
    return page >= 0 && page <= last;
  };
  const step = (by) => {
    const held = rows();
    const at = held.findIndex((tile) => Number(tile.dataset.row) === current());
    const next = at < 0 ? 0 : at + by;
    if (next >= 0 && next < held.length) set("sample", { data: Number(held[next].dataset.row) });
    else if (turn(by)) {
      const before = held[0];
      const wait = new MutationObserver(() => {
        const fresh = rows();
        if (!fresh.length || fresh[0] === before) return;
        wait.disconnect();
        set("sample", { data: Number(fresh[by > 0 ? 0 : fresh.length - 1].dataset.row) });
      });
      wait.observe(byId("grid"), { childList: true });
    }
  };
  const cycle = (id) => {
    if (id === "colour") {
      const held = [...document.querySelectorAll("#colour input")];
      held[(held.findIndex((i) => i.checked) + 1) % held.length].click();
      return;
    }
    const order = ["both", "overlay", "map", "input"];
    const now = new URLSearchParams(location.search).get("show") ?? "both";
    set("show", { value: order[(order.indexOf(now) + 1) % order.length] });
  };
  const clear = () => {
    set("lasso", { data: [] });
    set("plane", { selectedData: null });
    const plot = document.querySelector("#plane .js-plotly-plot");
    if (plot && window.Plotly) window.Plotly.relayout(plot, { selections: [] }).then(() => window.Plotly.restyle(plot, { selectedpoints: [null] }));
  };
  const help = () => { byId("help").hidden = !byId("help").hidden; };

  document.addEventListener("click", (event) => {
    const tile = event.target.closest("[data-row]");
    if (tile) return set("sample", { data: Number(tile.dataset.row) });
    const id = event.target.closest("button")?.id;
    if (id === "close") set("sample", { data: null });
    if (id === "back") turn(-1);
    if (id === "on") turn(1);
    if (id === "help-button") help();
    if (id === "clear") {
      clear();
      for (const name of ["low", "high"]) set(name, { value: null });
      set("find", { value: "" });
      set("only", { value: "all" });
      set("clusters", { value: [] });
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /INPUT|TEXTAREA|SELECT/.test(event.target.tagName) && event.target.type !== "radio" && event.target.type !== "checkbox";
    if (event.key === "Escape") {
      if (typing) return event.target.blur();
      if (!byId("help").hidden) return help();
      return set("sample", { data: null });
    }
    if (typing || !byId("grid")) return;
    const keys = {
      ArrowRight: () => step(1), ArrowLeft: () => step(-1), "]": () => turn(1), "[": () => turn(-1),
      c: () => cycle("colour"), m: () => cycle("show"), x: clear, "?": help, "/": () => byId("find").focus(),
    };
    if (event.key in keys) {
      event.preventDefault();
      event.stopPropagation();
      keys[event.key]();
    }
  }, true);
})();
