// Reads the server-sent events, and keeps the state that they describe. `EventSource` cannot send a token, so the events
// are read by `fetch`.

import { key } from "./format.js";

const KEPT_MILLISECONDS = 15 * 60 * 1000;
const MAX_POINTS = 900;
const MAX_DEATHS = 50;

export const state = { now: 0, actions: false, slowSeconds: 1, pools: [] };

export function token() {
  return sessionStorage.getItem("token");
}

export function headers() {
  return token() === null ? {} : { Authorization: `Bearer ${token()}` };
}

// Calls `handle` after each event. Calls `tell` with "connected", "token" or "lost".
export async function follow(handle, tell) {
  let pause = 500;
  for (;;) {
    try {
      const response = await fetch("api/events", { headers: headers(), cache: "no-store" });
      if (response.status === 401) {
        await tell("token", await response.text());
        continue;
      }
      if (!response.ok || response.body === null) throw new Error(await response.text());
      tell("connected");
      pause = 500;
      await read(response.body, handle);
      tell("lost", "The dashboard has closed the connection.");
    } catch (error) {
      tell("lost", String(error.message ?? error));
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 5000);
  }
}

async function read(body, handle) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  // Without any event for so long the connection is dead.
  for (;;) {
    let timer;
    const silence = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("The dashboard is silent.")), 10000);
    });
    const { done, value } = await Promise.race([reader.read(), silence]).finally(() => clearTimeout(timer)).catch((error) => {
      reader.cancel().catch(() => {});
      throw error;
    });
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      apply(field("event"), JSON.parse(field("data")));
      handle();
    }
  }
}

function apply(event, status) {
  state.now = status.now;
  state.actions = status.actions;
  state.slowSeconds = status.slow_seconds;
  const known = new Map(state.pools.map((pool) => [pool.id, pool]));
  state.pools = status.pools.map((pool) => merge(event === "full" ? undefined : known.get(pool.id), pool));
}

export function deathKey(death) {
  return key(death.at, death.worker, death.pid);
}

// A pool after an update. Workers are kept by number.
function merge(before, pool) {
  const merged = { ...pool };
  merged.workers = before?.workers ?? new Map();
  for (const worker of pool.workers) merged.workers.set(worker.number, worker);
  for (const number of pool.gone) merged.workers.delete(number);
  // An update may repeat points and deaths that were in the first event.
  const first = pool.points[0]?.at ?? Infinity;
  merged.points = [...(before?.points ?? []).filter((point) => point.at < first), ...pool.points]
    .filter((point) => point.at > state.now - KEPT_MILLISECONDS)
    .slice(-MAX_POINTS);
  const known = new Set((before?.recent_deaths ?? []).map(deathKey));
  const fresh = pool.recent_deaths.filter((death) => !known.has(deathKey(death)));
  merged.recent_deaths = [...(before?.recent_deaths ?? []), ...fresh].slice(-MAX_DEATHS);
  merged.slow = pool.slow ?? before?.slow ?? [];
  merged.methods = pool.methods ?? before?.methods ?? [];
  return merged;
}

// Dismisses or kills a worker. Returns what the dashboard says if that fails.
export async function act(action, pool, worker) {
  try {
    const response = await fetch("api/actions", {
      method: "POST",
      headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify({ action, pool, worker: worker.number, pid: worker.pid }),
    });
    return response.ok ? null : (await response.text()).trim();
  } catch (error) {
    return String(error.message ?? error);
  }
}
