"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const KIND = {
    missing: { name: "missing", accept: "a label is added", reject: "it is verified that there is none" },
    wrong_class: { name: "wrong class", accept: "the label gets this class", reject: "the label stays as it is" },
    badly_placed: { name: "badly placed", accept: "the label is moved here", reject: "the label stays as it is" },
    spurious: { name: "spurious label", accept: "the label is taken away", reject: "the label stays" },
  };
  const STATE = { "": "", accept: "✓ accepted", reject: "✗ rejected", skip: "– skipped" };
  const KEY = `rebalance-review:${data.sha256}`;
  const GAP = 10, CARD = 176, UNDER = 80; // pixels: between cards, their least width, what is below a picture
  const OVERSCAN = 2; // rows beyond what is seen
  const OTHERS = 20; // other suggestions drawn in a picture: where a thousand lie one over another nothing is seen

  const nameOf = (number) => data.names[number] ?? `class ${number}`;
  const rows = data.rows.map(([id, image, kind, number, box, score, probability, label, window], rank) => ({
    rank, id, image: data.images[image], kind: data.kinds[kind], number, box, score, probability, window,
    label: label && { index: label[0], number: label[1], box: label[2], iou: label[3] },
    picture: typeof data.pictures === "string" ? `${data.pictures}${id}.jpg`
      : data.pictures[rank] && `data:image/jpeg;base64,${data.pictures[rank]}`,
  }));
  const byImage = Map.groupBy ? Map.groupBy(rows, (row) => row.image) : rows.reduce((all, row) => {
    if (!all.has(row.image)) all.set(row.image, []);
    all.get(row.image).push(row);
    return all;
  }, new Map());
  const rankOf = new Map(rows.map((row) => [row.id, row.rank]));
  const state = rows.map(() => ""); // of each row: "", accept, reject, skip
  const past = []; // what undo takes back: lists of [rank, the state before]
  let shown = []; // ranks, in order
  let current = -1; // rank, -1 where nothing is shown

  // ---- small things -------------------------------------------------------------------------------------------
  function make(tag, options = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(options)) {
      if (key === "class") element.className = value;
      else if (key === "text") element.textContent = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }
  const whole = (value) => Math.round(value).toLocaleString("en").replaceAll(",", " ");
  const share = (value) => (value >= 0.995 ? Math.floor(value * 1000) / 1000 : value.toFixed(value < 0.1 ? 3 : 2)).toString();
  const say = (text) => { $("said").textContent = text; };
  const notice = (text) => { $("notice").textContent = text; $("notice").hidden = !text; };
  function valueText(row) {
    const score = row.kind === "spurious" && !row.score ? "not found" : `score ${share(row.score)}`;
    return row.probability === null ? score : `probability ${share(row.probability)}, ${score}`;
  }

  // ---- what is kept -------------------------------------------------------------------------------------------
  function save() {
    const kept = {};
    state.forEach((value, rank) => { if (value) kept[rows[rank].id] = value; });
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      notice("This browser does not keep the decisions. Download them before the page is closed.");
    }
  }
  function recall() {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch { /* not to be had, or not ours: `save` tells */ }
    rows.forEach((row, rank) => {
      const value = Object.hasOwn(kept, row.id) ? kept[row.id] : "";
      state[rank] = Object.hasOwn(STATE, value) ? value : "";
    });
  }
  function change(changes) {
    const real = changes.filter(([rank, value]) => state[rank] !== value);
    if (!real.length) return false;
    past.push(real.map(([rank]) => [rank, state[rank]]));
    for (const [rank, value] of real) state[rank] = value;
    save();
    return true;
  }

  // ---- decisions ----------------------------------------------------------------------------------------------
  function nextOpen() {
    const at = shown.indexOf(current);
    for (let step = 1; step <= shown.length; step++) {
      const rank = shown[(at + step) % shown.length];
      if (!state[rank] && rank !== current) return rank;
    }
    return -1;
  }
  function decide(value, rank = current) {
    if (rank < 0) return;
    const goOn = rank === current && value;
    const next = goOn ? nextOpen() : -1;
    change([[rank, value]]);
    const row = rows[rank];
    update(next >= 0 ? next : current);
    say(`${STATE[value] || "cleared"}: ${KIND[row.kind].name} ${nameOf(row.number)}${goOn && next < 0 ? "; all of those shown are decided" : ""}`);
  }
  function undo() {
    const last = past.pop();
    if (!last) return say("nothing to undo");
    for (const [rank, before] of last) state[rank] = before;
    save();
    update(last[0][0]);
    say(last.length === 1 ? "taken back" : `${last.length} decisions taken back`);
  }
  function bulk() {
    const measure = $("measure").value, least = $("threshold").valueAsNumber;
    return Number.isNaN(least) ? [] : shown.filter((rank) => !state[rank] && rows[rank][measure] !== null && rows[rank][measure] >= least);
  }

  // ---- which are shown ----------------------------------------------------------------------------------------
  function choose() {
    const [number, kind, decided, order] = ["class", "kind", "state", "order"].map((id) => $(id).value);
    shown = [];
    rows.forEach((row, rank) => {
      if ((number === "all" || row.number === Number(number)) && (kind === "all" || row.kind === kind) && (decided === "all" || state[rank] === decided)) shown.push(rank);
    });
    if (order === "score") shown.sort((a, b) => rows[b].score - rows[a].score || a - b);
    if (order === "image") {
      const place = new Map(data.images.map((image, i) => [image, i]));
      shown.sort((a, b) => place.get(rows[a].image) - place.get(rows[b].image) || a - b);
    }
  }
  /** Show everything anew, after a decision or another filter; `wanted` becomes the current one if it is shown. */
  function update(wanted) {
    const before = shown.indexOf(current);
    choose();
    if (shown.includes(wanted)) current = wanted;
    else current = shown[Math.min(Math.max(before, 0), shown.length - 1)] ?? -1;
    drawList(true);
    drawNow();
    drawCounts();
  }

  // ---- a picture with its boxes -------------------------------------------------------------------------------
  function boxes(row, tags) {
    const [x1, y1, x2, y2] = row.window, found = [];
    const meets = (box) => box[0] < x2 && box[2] > x1 && box[1] < y2 && box[3] > y1;
    for (const other of byImage.get(row.image)) { // the likeliest first
      if (other === row || other.kind === "spurious" || !meets(other.box)) continue;
      if (found.push(["other", other.box, `${nameOf(other.number)}?`]) === OTHERS) break;
    }
    for (const [index, number, ...box] of row.image[3]) {
      const own = row.kind === "spurious" && row.label && index === row.label.index; // which is the suggestion itself
      if (!own && meets(box)) found.push(["label", box, nameOf(number)]);
    }
    found.push(["suggested", row.box, nameOf(row.number)]);
    const NS = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("viewBox", `${x1} ${y1} ${x2 - x1} ${y2 - y1}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    for (const [kind, box] of found) {
      const group = document.createElementNS(NS, "g");
      group.setAttribute("class", kind);
      for (const line of ["halo", kind]) {
        const rect = document.createElementNS(NS, "rect");
        rect.setAttribute("class", line);
        [["x", box[0]], ["y", box[1]], ["width", box[2] - box[0]], ["height", box[3] - box[1]]].forEach(([key, value]) => rect.setAttribute(key, value));
        group.append(rect);
      }
      svg.append(group);
    }
    if (!tags) return [svg];
    return [svg, ...found.map(([kind, box, text]) => {
      const tag = make("span", { class: `tag ${kind}`, text });
      const top = (box[1] - y1) / (y2 - y1);
      tag.style.left = `${Math.min(Math.max((box[0] - x1) / (x2 - x1), 0), 0.85) * 100}%`;
      tag.style.top = `${Math.max(top, 0) * 100}%`;
      if (top < 0.06) tag.classList.add("below");
      return tag;
    })];
  }
  function crop(row, tags) {
    const frame = make("div", { class: "crop" });
    const [width, height] = [row.window[2] - row.window[0], row.window[3] - row.window[1]];
    frame.style.width = `${Math.min(1, width / height) * 100}%`;
    frame.style.height = `${Math.min(1, height / width) * 100}%`;
    const lost = (text) => frame.prepend(make("span", { class: "missing", text }));
    if (row.picture) {
      const img = make("img", { alt: "", decoding: "async", loading: "lazy", draggable: "false" });
      img.addEventListener("error", () => {
        img.remove();
        lost("no picture");
        if (typeof data.pictures === "string") notice("The pictures of this page are in the folder crops, which must lie beside it.");
      });
      img.src = row.picture;
      frame.append(img);
    } else lost(`The image ${row.image[4]}.`);
    frame.append(...boxes(row, tags));
    return frame;
  }

  // ---- the list: only the cards that are seen, and the current one, are there -----------------------------------
  const list = $("list"), sheet = $("sheet");
  const cards = new Map(); // rank -> its element
  let columns = 1, width = CARD, height = CARD + UNDER;
  function measureList() {
    const room = list.clientWidth - 20;
    columns = Math.max(Math.floor((room + GAP) / (CARD + GAP)), 1);
    width = Math.floor((room - GAP * (columns - 1)) / columns);
    height = width + UNDER;
  }
  function card(rank) {
    const row = rows[rank];
    const frame = make("div", { class: "frame" }, crop(row, false));
    frame.style.height = `${width - 14}px`;
    const foot = make("div", { class: "foot" }, make("span"));
    for (const [value, text] of [["accept", "✓"], ["reject", "✗"]]) {
      const button = make("button", { type: "button", tabindex: "-1", "aria-label": `${value} this one`, text });
      button.addEventListener("click", (event) => { event.stopPropagation(); decide(value, rank); });
      foot.append(button);
    }
    const element = make("article", {}, frame, make("p", { class: "name", text: nameOf(row.number) }), make("p", { class: "value", text: `${row.kind === "missing" ? "" : `${KIND[row.kind].name}: `}${row.probability === null ? valueText(row) : share(row.probability)}` }), foot);
    element.style.width = `${width}px`;
    element.style.height = `${height - 2}px`;
    element.dataset.id = row.id;
    element.addEventListener("click", () => go(rank));
    return element;
  }
  function drawList(follow) {
    const lines = Math.ceil(shown.length / columns);
    sheet.style.height = `${Math.max(lines * (height + GAP) - GAP, 0)}px`;
    const at = shown.indexOf(current);
    if (follow && at >= 0) {
      const top = Math.floor(at / columns) * (height + GAP), room = list.clientHeight - 20;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + height > list.scrollTop + room) list.scrollTop = top + height - room;
    }
    const first = Math.max(Math.floor(list.scrollTop / (height + GAP)) - OVERSCAN, 0) * columns;
    const last = (Math.ceil((list.scrollTop + list.clientHeight) / (height + GAP)) + OVERSCAN) * columns;
    const wanted = new Map(shown.slice(first, last).map((rank, i) => [rank, first + i]));
    if (at >= 0) wanted.set(current, at);
    for (const [rank, element] of cards) {
      if (!wanted.has(rank)) { element.remove(); cards.delete(rank); }
    }
    for (const [rank, place] of wanted) {
      let element = cards.get(rank);
      if (!element) {
        element = card(rank);
        cards.set(rank, element);
        sheet.append(element);
      }
      const row = rows[rank], said = STATE[state[rank]];
      const left = (place % columns) * (width + GAP), top = Math.floor(place / columns) * (height + GAP);
      element.style.transform = `translate(${left}px, ${top}px)`;
      element.className = `card ${state[rank]}`;
      element.querySelector(".foot span").textContent = said;
      element.tabIndex = rank === current ? 0 : -1;
      const facts = {
        "aria-current": String(rank === current), "aria-posinset": place + 1, "aria-setsize": shown.length,
        "aria-label": `${KIND[row.kind].name}: ${nameOf(row.number)}, ${valueText(row)}${said && `, ${said.slice(2)}`}`,
      };
      for (const [key, value] of Object.entries(facts)) element.setAttribute(key, value);
    }
    let empty = sheet.querySelector(".empty");
    if (shown.length) empty?.remove();
    else if (!empty) sheet.append(make("p", { class: "empty", text: rows.length ? "Nothing of this kind is left." : "There is no suggestion." }));
  }
  function go(rank) {
    if (rank === undefined || rank < 0 || rank === current) return;
    const had = list.contains(document.activeElement) || document.activeElement === document.body;
    current = rank;
    drawList(true);
    drawNow();
    if (had) cards.get(rank).focus({ preventScroll: true });
  }

  // ---- the current one ----------------------------------------------------------------------------------------
  let viewed = -1;
  function drawNow() {
    const row = rows[current], decided = row ? state[current] : "";
    for (const id of ["accept", "reject", "skip"]) $(id).disabled = !row;
    $("clear").disabled = !decided;
    $("undo").disabled = !past.length;
    if (viewed !== current || !row) {
      viewed = current;
      $("view").replaceChildren(...(row ? [crop(row, true)] : []));
      $("means").textContent = row ? `Accept: ${KIND[row.kind].accept}. Reject: ${KIND[row.kind].reject}.` : "";
      $("facts").replaceChildren();
      if (row) {
        const label = row.label && row.label.iou > 0 ? `${nameOf(row.label.number)}, IoU ${share(row.label.iou)}` : "none here";
        const size = `${(row.box[2] - row.box[0]).toFixed(0)} × ${(row.box[3] - row.box[1]).toFixed(0)} pixels`;
        const found = row.kind === "spurious" ? [] : [["label there", label]];
        for (const [name, text] of [["class", nameOf(row.number)], ["found with", valueText(row)], ...found, ["size", size], ["image", row.image[0]], ["id", row.id]]) {
          $("facts").append(make("dt", { text: name }), make("dd", { text }));
        }
      }
    }
    $("what").textContent = row ? `${KIND[row.kind].name}: ${nameOf(row.number)}${decided && ` (${STATE[decided]})`}` : "Nothing is shown";
  }

  // ---- counts and the estimate ----------------------------------------------------------------------------------
  const lines = new Map(); // class -> cells of its line
  for (const one of data.classes) {
    const cells = [...Array(4)].map(() => make("td"));
    lines.set(one.id, cells);
    $("classes").append(make("tr", {}, make("th", { scope: "row", text: nameOf(one.id) }), ...cells));
  }
  /** What was accepted, and of the estimate and its interval the part that is not decided yet. */
  function live(missing, low, high, of) {
    const open = missing > 0 ? Math.max(missing - of.decided, 0) / missing : of.count ? of.open / of.count : 1;
    return [missing, low, high].map((value) => of.accepted + value * open);
  }
  const interval = ([mean, low, high]) => `${whole(mean)} (${whole(low)} to ${whole(high)})`;
  const nothing = () => ({ count: 0, open: 0, accepted: 0, rejected: 0, decided: 0 });
  function drawCounts() {
    const count = { "": 0, accept: 0, reject: 0, skip: 0 }, of = new Map(data.classes.map((one) => [one.id, nothing()]));
    let expected = 0, right = 0, judged = 0;
    rows.forEach((row, rank) => {
      const value = state[rank];
      count[value] += 1;
      if (row.kind !== "missing") return;
      if (!of.has(row.number)) of.set(row.number, nothing());
      const own = of.get(row.number), done = value === "accept" || value === "reject";
      own.count += 1;
      own.open += !done;
      own.accepted += value === "accept";
      own.rejected += value === "reject";
      if (done) own.decided += row.probability ?? 0;
      if (done && row.probability !== null) {
        judged += 1;
        right += value === "accept";
        expected += row.probability;
      }
    });
    const decided = count.accept + count.reject;
    $("progress").textContent = `${whole(decided)} of ${whole(rows.length)}: ${whole(count.accept)} accepted, ${whole(count.reject)} rejected` + (count.skip ? `, ${whole(count.skip)} skipped` : "");
    $("agreed").textContent = judged ? `Of ${whole(judged)} missing ones you accepted ${whole(right)}; their probabilities expect ${whole(expected)}.` : "";
    const all = nothing();
    let estimated = 0, beside = 0;
    for (const one of data.classes) {
      const own = of.get(one.id), known = one.missing !== null;
      const told = known ? interval(live(one.missing, one.low, one.high, own)) : "none";
      [own.accepted, own.rejected, own.open].forEach((value, i) => { lines.get(one.id)[i].textContent = whole(value); });
      lines.get(one.id)[3].textContent = told;
      if (known) {
        estimated += 1;
        for (const key of Object.keys(all)) all[key] += own[key];
      } else beside += own.accepted;
    }
    const { missing, low, high } = data.total;
    $("estimate").textContent = estimated && missing !== null
      ? `${data.lower ? "at least " : ""}${interval(live(missing, low, high, all))}${beside ? `, and ${whole(beside)} accepted of classes without an estimate` : ""}`
      : `no estimate${beside ? `; ${whole(beside)} accepted` : ""}`;
    const many = bulk().length;
    $("bulk").textContent = `Accept ${whole(many)}`;
    $("bulk").disabled = !many;
  }

  // ---- the file -----------------------------------------------------------------------------------------------
  function download() {
    const decisions = rows.filter((row) => ["accept", "reject"].includes(state[row.rank])).map((row) => ({
      id: row.id, image: row.image[0], kind: row.kind, class: row.number, box: row.box, decision: state[row.rank],
    }));
    const text = JSON.stringify({ schema: 1, suggestions_sha256: data.sha256, decisions }, null, 1) + "\n";
    const link = make("a", { download: "decisions.json", href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`${decisions.length} decisions downloaded`);
  }
  function load(name, text) {
    let content;
    try {
      content = JSON.parse(text);
    } catch {
      return notice(`${name} is not JSON; nothing was loaded.`);
    }
    if (content?.schema !== 1 || !Array.isArray(content.decisions) || !content.decisions.every((one) => typeof one?.id === "string" && ["accept", "reject"].includes(one.decision))) {
      return notice(`${name} is not a decisions.json of this version; nothing was loaded.`);
    }
    const changes = new Map(content.decisions.filter((one) => rankOf.has(one.id)).map((one) => [rankOf.get(one.id), one.decision]));
    const gone = content.decisions.length - content.decisions.filter((one) => rankOf.has(one.id)).length;
    change([...changes]);
    notice(gone ? `${name}: ${gone} of ${content.decisions.length} decisions are about suggestions that are not on this page.` : "");
    update(current);
    say(`${changes.size} decisions loaded`);
  }

  // ---- what the person does -----------------------------------------------------------------------------------
  const move = (step) => { const at = shown.indexOf(current); if (shown[at + step] !== undefined) go(shown[at + step]); };
  const flip = (id) => { $(id).checked = !$(id).checked; $(id).dispatchEvent(new Event("change")); };
  const KEYS = {
    a: () => decide("accept"), r: () => decide("reject"), s: () => decide("skip"), c: () => decide(""), u: undo,
    n: () => go(nextOpen()), l: () => flip("labels"), o: () => flip("others"),
    arrowleft: () => move(-1), arrowright: () => move(1), arrowup: () => move(-columns), arrowdown: () => move(columns),
    home: () => go(shown[0]), end: () => go(shown.at(-1)),
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("select, textarea, input:not([type=checkbox])");
    const act = Object.hasOwn(KEYS, event.key.toLowerCase()) ? KEYS[event.key.toLowerCase()] : null;
    if (!act || typing || event.ctrlKey || event.metaKey || event.altKey || !$("keys").checked) return;
    const moves = event.key.length > 1;
    if (moves && !list.contains(event.target) && event.target !== document.body) return; // which scroll there
    event.preventDefault();
    const had = list.contains(document.activeElement);
    act();
    if (had && current >= 0 && !cards.get(current).contains(document.activeElement)) cards.get(current).focus({ preventScroll: true });
  });
  for (const value of ["accept", "reject", "skip"]) $(value).addEventListener("click", () => decide(value));
  $("clear").addEventListener("click", () => decide(""));
  $("undo").addEventListener("click", undo);
  for (const id of ["class", "kind", "state", "order"]) {
    $(id).addEventListener("change", () => { list.scrollTop = 0; update(current); });
  }
  for (const id of ["labels", "others"]) {
    $(id).addEventListener("change", () => document.body.classList.toggle(`no-${id}`, !$(id).checked));
  }
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["measure", "threshold"]) $(id).addEventListener("input", drawCounts);
  $("many").addEventListener("submit", (event) => {
    event.preventDefault();
    const ranks = bulk();
    change(ranks.map((rank) => [rank, "accept"]));
    update(current);
    say(`${ranks.length} accepted; undo takes all of them back`);
  });
  $("download").addEventListener("click", download);
  $("load").addEventListener("change", async () => {
    const [file] = $("load").files;
    if (file) load(file.name, await file.text());
    $("load").value = "";
  });
  window.addEventListener("storage", (event) => { // another tab with this page
    if (event.key !== KEY && event.key !== null) return;
    recall();
    past.length = 0;
    update(current);
  });
  let waiting = false;
  list.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawList(false); });
  });
  new ResizeObserver(() => {
    measureList();
    for (const element of cards.values()) element.remove();
    cards.clear();
    drawList(true);
  }).observe(list);

  const option = (value, text) => make("option", { value, text });
  const numbers = [...new Set(rows.map((row) => row.number))].sort((a, b) => a - b);
  const tally = (test) => whole(rows.filter(test).length);
  $("class").append(option("all", "all"), ...numbers.map((number) => option(number, `${nameOf(number)} (${tally((row) => row.number === number)})`)));
  const kinds = data.kinds.filter((kind) => rows.some((row) => row.kind === kind));
  $("kind").append(option("all", "all"), ...kinds.map((kind) => option(kind, `${KIND[kind].name} (${tally((row) => row.kind === kind)})`)));
  for (const id of ["class", "kind", "state", "order"]) $(id).value = $(id).options[0].value; // not what the browser fills in
  recall();
  measureList();
  choose();
  current = shown.find((rank) => !state[rank]) ?? shown[0] ?? -1;
  update(current);
})();
