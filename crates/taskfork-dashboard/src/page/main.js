// The page: what stands in which table, and what the user can do.

import { Curves, grows, slower } from "./curves.js";
import { bytes, clock, count, duration, key, median, plain, short } from "./format.js";
import { act, deathKey, follow, state } from "./stream.js";
import { Table } from "./tables.js";

const id = (name) => document.getElementById(name);
const ALL = "";
const STEP = 100;
let most = STEP;
let hasContent = false;

const number = "number";
const text = "text";
const overview = new Table(id("overview"), "All servers and nodes, as they are now", [
  { name: "name" }, { name: "state", kind: text }, { name: "workers", kind: number }, { name: "busy", kind: number },
  { name: "waiting", kind: number }, { name: "calls/s", kind: number }, { name: "errors/s", kind: number },
  { name: "median", kind: number }, { name: "99 %", kind: number }, { name: "deaths/h", kind: number },
  { name: "memory", kind: number }, { name: "CPU cores", kind: number }, { name: "restarts", kind: number },
  { name: "version" }, { name: "labels", kind: text },
], "There is no server.");
const slow = new Table(id("slow"), "Slow calls: those that run, longest first, then those that have ended", [
  { name: "server" }, { name: "method", kind: text }, { name: "for", kind: number }, { name: "since" }, { name: "worker", kind: number },
  { name: "pid", kind: number }, { name: "client", kind: text }, { name: "progress" }, { name: "where", kind: text }, { name: "" },
], "No call was slow.");
const queue = new Table(id("queue"), "Clients that wait for a worker, or have workers", [
  { name: "server" }, { name: "client", kind: text }, { name: "waits" }, { name: "for", kind: number }, { name: "has workers", kind: number },
  { name: "of these busy", kind: number },
], "Nobody waits.");
const deaths = new Table(id("deaths"), "The last deaths of workers, the last one first", [
  { name: "at" }, { name: "server" }, { name: "cause" }, { name: "how", kind: text }, { name: "method", kind: text }, { name: "worker", kind: number },
  { name: "pid", kind: number }, { name: "client", kind: text }, { name: "standard error", kind: text }, { name: "stack", kind: text },
], "No worker has died.");
const workers = new Table(id("workers"), "Workers", [
  { name: "server" }, { name: "worker", kind: number }, { name: "pid", kind: number }, { name: "state" }, { name: "for", kind: number },
  { name: "method", kind: text }, { name: "progress" }, { name: "calls", kind: number }, { name: "memory", kind: number },
  { name: "CPU", kind: number }, { name: "client", kind: text }, { name: "" },
], "No worker is there.");
const methods = new Table(id("methods"), "Methods with calls in the last minute", [
  { name: "server" }, { name: "method", kind: text }, { name: "calls", kind: number }, { name: "errors", kind: number },
  { name: "mean", kind: number }, { name: "median", kind: number }, { name: "99 %", kind: number },
], "No call has ended in the last minute.");
const curves = new Curves(id("curves"));

function set(name, value) {
  if (id(name).textContent !== value) id(name).textContent = value;
}

// The pools that are chosen.
function chosen() {
  const wanted = id("pool").value;
  return wanted === ALL ? state.pools : state.pools.filter((pool) => pool.id === wanted);
}

function render() {
  if (!hasContent) {
    hasContent = true;
    id("content").hidden = false;
  }
  renderChoice();
  renderOverview();
  const pools = chosen();
  renderSlow(pools);
  renderQueue(pools);
  renderCurves(pools);
  renderDeaths(pools);
  renderWorkers(pools);
  renderMethods(pools);
  const gone = state.pools.filter((pool) => pool.state === "gone").map((pool) => pool.id);
  id("content").classList.remove("stale");
  set("connection", gone.length === 0 ? "Live" : `Live. Gone: ${gone.join(", ")}`);
  document.title = gone.length === 0 ? "taskfork" : `(${gone.length} gone) taskfork`;
}

// Those that have taken most time, in the order of their servers.
function renderMethods(pools) {
  const all = pools.flatMap((pool) => pool.methods.map((it) => ({ pool, it })));
  const time = ({ it }) => it.calls * it.mean;
  const shown = new Set(all.length > STEP ? [...all].sort((a, b) => time(b) - time(a)).slice(0, STEP) : all);
  methods.update(all.filter((one) => shown.has(one)).map(({ pool, it }) => ({
    key: key(pool.id, it.method),
    cells: [pool.id, it.method || "(function)", it.calls, { text: it.errors, className: it.errors ? "warn" : "" }, duration(it.mean), duration(it.p50), duration(it.p99)],
  })));
  set("methods-summary", all.length > STEP ? `The ${STEP} of ${all.length} methods that have taken most time are shown.` : "");
}

function renderChoice() {
  const select = id("pool");
  const wanted = [ALL, ...state.pools.map((pool) => pool.id)];
  if (wanted.length === select.options.length && wanted.every((it, at) => select.options[at].value === it)) return;
  const before = select.value;
  select.replaceChildren(...wanted.map((it) => {
    const option = document.createElement("option");
    option.value = it;
    option.textContent = it === ALL ? "all servers and nodes" : it;
    return option;
  }));
  select.value = wanted.includes(before) ? before : ALL;
}

const sum = (numbers) => numbers.reduce((all, it) => all + it, 0);
const recent = (pool, key) => median(pool.points.slice(-10).map((it) => it[key]));
const deathsOf = (pool) => sum(Object.values(pool.deaths_last_hour));

// What is compared between the nodes of a fleet: a node differs if its value is this many times the middle of all, and
// larger than the least that matters.
const COMPARED = [
  ["p50", "median time", (pool) => recent(pool, "p50"), 3, 0.001, duration],
  ["p99", "time of 99 %", (pool) => recent(pool, "p99"), 4, 0.002, duration],
  ["errors", "errors per second", (pool) => recent(pool, "errors"), 3, 0.2, short],
  ["waiting", "waiting", (pool) => pool.queued + pool.waiting, 3, 2, short],
  ["deaths", "deaths in the last hour", deathsOf, 3, 1, short],
  ["memory", "memory", (pool) => pool.memory, 3, 20 << 20, bytes],
];

// The values in which nodes differ from most of their fleet: a map from a pool and a column to a text.
function differences() {
  const found = new Map();
  const fleets = new Map();
  for (const pool of state.pools) {
    if (pool.fleet !== null) fleets.set(pool.fleet, [...(fleets.get(pool.fleet) ?? []), pool]);
  }
  for (const pools of fleets.values()) {
    const alive = pools.filter((pool) => pool.state !== "gone");
    // Of two that differ, nobody can say which is the usual one.
    if (alive.length < 3) continue;
    for (const [column, name, value, factor, least, show] of COMPARED) {
      const values = alive.map(value);
      const middle = median(values) ?? 0;
      alive.forEach((pool, at) => {
        if (values[at] !== null && values[at] >= least && values[at] > middle * factor) {
          found.set(key(pool.id, column), `${pool.id}: ${name} ${show(values[at])}, the middle of all is ${show(middle)}`);
        }
      });
    }
    const versions = alive.map((pool) => pool.node?.version ?? "");
    const usual = versions.reduce((best, it) => (of(versions, it) > of(versions, best) ? it : best));
    alive.forEach((pool, at) => {
      if (versions[at] !== usual) found.set(key(pool.id, "version"), `${pool.id}: version ${versions[at]}, most have ${usual}`);
    });
  }
  return found;
}

const of = (list, wanted) => list.filter((it) => it === wanted).length;

function renderOverview() {
  const differ = differences();
  overview.update(state.pools.map((pool) => {
    const marked = (column, value) => ({ text: value, mark: differ.has(key(pool.id, column)) });
    const busy = pool.states.busy ?? 0;
    const since = pool.state === "gone" ? ` since ${clock(pool.since)}: ${pool.error}` : "";
    return {
      key: pool.id,
      cells: [
        pool.id, { text: pool.state + since, className: pool.state }, `${sum(Object.values(pool.states)) + (pool.node?.left_out ?? 0)} of ${pool.max_workers}`, busy,
        marked("waiting", pool.queued + pool.waiting), short(pool.points.at(-1)?.calls), marked("errors", short(pool.points.at(-1)?.errors)),
        marked("p50", duration(recent(pool, "p50"))), marked("p99", duration(recent(pool, "p99"))), marked("deaths", deathsOf(pool)),
        marked("memory", bytes(pool.memory)), short(pool.cpu), pool.restarts, marked("version", pool.node?.version ?? ""),
        (pool.node?.labels ?? []).join(", "),
      ],
    };
  }));
  const texts = [...differ.values()];
  const nodes = state.pools.filter((pool) => pool.fleet !== null);
  const silent = nodes.filter((pool) => pool.state === "gone").map((pool) => pool.id);
  if (silent.length > 0) texts.unshift(`these do not answer: ${silent.join(", ")}`);
  const few = fleetsWithFewNodes(nodes);
  const same = few.length > 0 ? `Nodes are compared from three on: ${few.join(", ")} has fewer.` : "No node differs from the others.";
  set("differences", texts.length > 0 ? `Different: ${texts.join("; ")}.` : nodes.length > 0 ? same : "");
}

// The services of which fewer than three nodes answer.
function fleetsWithFewNodes(nodes) {
  const isAlive = (pool) => pool.state !== "gone";
  return [...new Set(nodes.map((pool) => pool.fleet))].filter((fleet) => nodes.filter((pool) => pool.fleet === fleet && isAlive(pool)).length < 3);
}

function buttons(pool, worker) {
  if (!state.actions || pool.fleet !== null || worker === undefined) return [];
  const name = `worker ${worker.number} (process ${worker.pid}) of ${plain(pool.id)}`;
  const busy = worker.state === "busy" ? ` Its call of ${plain(worker.method) || "the function"} fails.` : "";
  return [
    { text: "Dismiss", label: `Dismiss ${name}`, act: () => ask(`Dismiss ${name}? It leaves as soon as no checkout uses it.`, "dismiss", pool, worker) },
    { text: "Kill", label: `Kill ${name}`, className: "danger", act: () => ask(`Kill ${name}?${busy}`, "kill", pool, worker) },
  ];
}

// What the dialog asks now.
let askedNow = null;

function ask(question, action, pool, worker) {
  const dialog = id("ask");
  id("ask-text").textContent = question;
  id("ask-yes").hidden = false;
  id("ask-yes").disabled = false;
  id("ask-no").textContent = "No";
  const asked = {};
  askedNow = asked;
  id("ask-yes").onclick = async () => {
    // A double click is one request.
    id("ask-yes").disabled = true;
    const failed = await act(action, pool.id, worker);
    // The answer is late: the dialog has been closed, and may ask something else by now.
    if (askedNow !== asked || !dialog.open) return;
    if (failed === null) {
      dialog.close();
      return;
    }
    id("ask-text").textContent = `That was not done: ${failed}`;
    id("ask-yes").hidden = true;
    id("ask-no").textContent = "Close";
    id("ask-no").focus();
  };
  id("ask-no").onclick = () => dialog.close();
  dialog.showModal();
  id("ask-no").focus();
}

function progress(of) {
  if (!of) return { text: "", progress: null };
  const total = of.total === null ? "" : ` of ${of.total}`;
  return { text: ` ${of.done}${total} ${of.what}`, progress: of.total ? Math.min(of.done / of.total, 1) : null };
}

// A function of the system or the standard library: a crate's name as a whole, or the whole name of a function in C.
const SYSTEM = /^ *\d+: (?:[<&(]*(?:std|core|alloc|libc|rustix)::|__|_start\b|(?:clone3?|nanosleep|clock_nanosleep|usleep|sleep|syscall|p?poll|p?select|epoll_p?wait|read|recv|recvfrom|recvmsg|accept4?|pthread_\w+|start_thread)\s*$)/;

// A stack. Its title is the innermost function that is not of the system or the standard library, and where that is.
function where(stack) {
  if (!stack) return { text: "", details: null };
  const lines = stack.split("\n");
  const isOwn = (line) => /^ *\d+: /.test(line) && !SYSTEM.test(line);
  const found = Math.max(0, lines.findIndex(isOwn));
  const place = /^ +at /.test(lines[found + 1] ?? "") ? ` ${lines[found + 1].trim()}` : "";
  return { text: "", details: { title: lines[found].replace(/^ *\d+: /, "").trim() + place || "stack", text: stack } };
}

function renderSlow(pools) {
  const calls = pools.flatMap((pool) => pool.slow.map((call) => ({ pool, call })));
  const rank = ({ call }) => (call.ended === null ? [0, call.began] : [1, -call.ended]);
  calls.sort((a, b) => rank(a)[0] - rank(b)[0] || rank(a)[1] - rank(b)[1]);
  const running = calls.filter(({ call }) => call.ended === null).length;
  slow.update(calls.slice(0, STEP).map(({ pool, call }) => slowRow(pool, call)));
  const limit = `longer than ${duration(state.slowSeconds)}`;
  const [longest] = calls;
  set("slow-summary", running === 0
    ? `No call runs for ${limit}.`
    : `${count(running, "call runs", "calls run")} for ${limit}. The longest is ${longest.call.method || "(function)"} of ${longest.pool.id}, for ${duration((state.now - longest.call.began) / 1000)} since ${clock(longest.call.began)}.`);
}

function slowRow(pool, call) {
  const seconds = ((call.ended ?? state.now) - call.began) / 1000;
  const worker = call.ended === null ? pool.workers.get(call.worker) : undefined;
  const method = call.method || "(function)";
  const unknown = pool.node?.shares_details === false ? "not shared" : call.ended === null ? "not known yet" : "";
  const stack = call.stack ? where(call.stack) : { text: unknown, details: null };
  return {
    // A call that was taken for one that has ended is another row when it runs again.
    key: key(pool.id, call.worker, call.pid, call.call, call.began, call.ended),
    cells: [
      pool.id, { text: method, className: call.ended === null ? "error" : "" }, duration(seconds) + (call.ended === null ? "" : " or more"), clock(call.began),
      call.worker, call.pid, call.client, progress(worker?.progress), stack, { text: call.ended === null ? "" : "ended", buttons: buttons(pool, worker) },
    ],
  };
}

function renderQueue(pools) {
  const rows = [];
  const reasons = [];
  for (const pool of pools) {
    pool.waiting_clients.forEach((client, at) => rows.push({
      key: key(pool.id, "connection", at),
      cells: [pool.id, client.client, "a connection", duration((state.now - client.since) / 1000), "", ""],
    }));
    pool.clients.forEach((client, at) => rows.push({
      key: key(pool.id, "client", at),
      cells: [pool.id, client.client, client.queued === 0 ? "" : count(client.queued, "checkout", "checkouts"), "", client.workers, client.busy],
    }));
    if (pool.queued + pool.waiting > 0) reasons.push(reason(pool));
  }
  queue.update(rows.slice(0, STEP));
  set("queue-summary", reasons.length > 0 ? reasons.join(" ") : "Nobody waits for a worker.");
}

// Why clients of a server wait.
function reason(pool) {
  const waiting = [];
  if (pool.waiting > 0) waiting.push(count(pool.waiting, "connection", "connections"));
  if (pool.queued > 0) waiting.push(count(pool.queued, "checkout", "checkouts"));
  const one = pool.waiting + pool.queued === 1;
  const alive = sum(Object.values(pool.states));
  const busy = [...pool.workers.values()].filter((worker) => worker.state === "busy");
  const names = [...new Set(busy.map((worker) => worker.method || "(function)"))].slice(0, 5).join(", ");
  const longest = Math.max(0, ...busy.map((worker) => (state.now - worker.since) / 1000));
  const calls = busy.length > 0 ? ` ${busy.length} of them are busy with ${names}, for ${duration(longest)} at the longest.` : "";
  const why = alive >= pool.max_workers
    ? `all ${pool.max_workers} workers that ${pool.id} may have are in use`
    : `the clients have no more workers: ${alive} of at most ${pool.max_workers} are there`;
  return `${waiting.join(" and ")} ${one ? "waits" : "wait"} at ${pool.id}, because ${why}.${calls}`;
}

function renderCurves(pools) {
  // Curves of several servers in one picture would say nothing. Those of the first one are shown until one is chosen. The
  // sentences are about all that are chosen.
  const pool = pools[0];
  const points = pool?.points ?? [];
  curves.update(points, state.now);
  set("curves-title", state.pools.length > 1 && pool ? `The last 15 minutes of ${pool.id}` : "The last 15 minutes");
  set("trend-slower", trend(pools, slower, "slower", "None of these servers gets slower."));
  set("trend-memory", trend(pools, grows, "Memory grows", "The workers of none of these servers grow."));
}

// What is said of one server; of several, what is said of those for which something is wrong.
function trend(pools, say, wrong, nothing) {
  if (pools.length === 1) return say(pools[0].points);
  const said = pools.map((pool) => [pool.id, say(pool.points)]).filter(([, text]) => text.includes(wrong));
  return said.length === 0 ? nothing : said.map(([name, text]) => `${name}: ${text}`).join(" ");
}

function renderDeaths(pools) {
  const all = pools.flatMap((pool) => pool.recent_deaths.map((death) => ({ pool, death })));
  all.sort((a, b) => b.death.at - a.death.at);
  deaths.update(all.slice(0, STEP).map(({ pool, death }) => ({
    key: key(pool.id, deathKey(death)),
    cells: [
      clock(death.at), pool.id, { text: death.cause, className: "error" }, death.text, death.method ?? "", death.worker, death.pid, death.client,
      { text: pool.node?.shares_details === false ? "not shared" : "", details: death.stderr ? { title: death.stderr.trimEnd().split("\n").at(-1), text: death.stderr, open: true } : null },
      pool.node?.shares_details === false && !death.stack ? { text: "not shared", details: null } : where(death.stack),
    ],
  })));
  const causes = new Map();
  for (const pool of pools) {
    for (const [cause, times] of Object.entries(pool.deaths_last_hour)) causes.set(cause, (causes.get(cause) ?? 0) + times);
  }
  const list = [...causes].sort((a, b) => b[1] - a[1]).map(([cause, times]) => `${times} ${cause}`);
  set("deaths-summary", list.length > 0 ? `Died in the last hour: ${list.join(", ")}.` : "No worker has died in the last hour.");
}

const ORDERS = {
  running: (a, b) => (a.worker.state !== "busy") - (b.worker.state !== "busy") || a.worker.since - b.worker.since,
  memory: (a, b) => (b.worker.memory ?? 0) - (a.worker.memory ?? 0),
  cpu: (a, b) => (b.worker.cpu ?? 0) - (a.worker.cpu ?? 0),
  calls: (a, b) => b.worker.calls - a.worker.calls,
  number: (a, b) => a.worker.number - b.worker.number,
};

function renderWorkers(pools) {
  const wanted = id("filter").value.toLowerCase();
  const all = pools.flatMap((pool) => [...pool.workers.values()].map((worker) => ({ pool, worker })));
  const matches = ({ pool, worker }) => `${pool.id} ${worker.state} ${worker.method} ${worker.client} ${worker.pid}`.toLowerCase().includes(wanted);
  const found = wanted === "" ? all : all.filter(matches);
  found.sort(ORDERS[id("sort").value]);
  workers.update(found.slice(0, most).map(({ pool, worker }) => ({
    key: key(pool.id, worker.number, worker.pid),
    cells: [
      pool.id, worker.number, worker.pid, worker.state, duration((state.now - worker.since) / 1000), worker.method, progress(worker.progress),
      worker.calls, bytes(worker.memory), worker.cpu === null ? "" : `${worker.cpu} %`, worker.client, { text: "", buttons: buttons(pool, worker) },
    ],
  })));
  const states = new Map();
  for (const { worker } of all) states.set(worker.state, (states.get(worker.state) ?? 0) + 1);
  const list = [...states].sort().map(([name, times]) => `${times} ${name}`);
  const shown = found.length > most ? ` The first ${most} are shown.` : "";
  set("workers-summary", `${count(all.length, "worker", "workers")}${list.length > 0 ? `: ${list.join(", ")}` : ""}.${wanted === "" ? "" : ` ${found.length} match.`}${shown}`);
  id("more").hidden = found.length <= most;
}

// Asks for the token. Resolves when the user has given one.
function login(why) {
  id("login").hidden = false;
  id("content").hidden = true;
  hasContent = false;
  set("connection", "A token is needed");
  set("login-error", sessionStorage.getItem("token") === null ? "" : why.trim());
  id("token").focus();
  return new Promise((resolve) => {
    id("login-form").onsubmit = (event) => {
      event.preventDefault();
      // Other characters cannot be in a header, and no token has them.
      if (!/^[\x20-\x7e]+$/.test(id("token").value)) {
        set("login-error", "This token is wrong: a token has only visible ASCII characters.");
        return;
      }
      sessionStorage.setItem("token", id("token").value);
      id("token").value = "";
      id("login").hidden = true;
      resolve();
    };
  });
}

for (const name of ["pool", "filter", "sort"]) id(name).addEventListener("input", render);
id("more").addEventListener("click", () => {
  most += STEP;
  render();
});
follow(render, (event, why) => {
  if (event === "token") return login(why);
  if (event === "lost") {
    const shown = state.now > 0 ? ` What is shown was true at ${clock(state.now)}.` : "";
    id("content").classList.add("stale");
    document.title = "(no answer) taskfork";
    set("connection", `The dashboard does not answer; trying again.${shown} ${why}`);
  }
  return undefined;
});
