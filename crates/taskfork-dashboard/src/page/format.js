// Numbers and times as text.

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 0) seconds = 0;
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${short(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

export function bytes(count) {
  if (count === null || count === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${short(count)} ${units[unit]}`;
}

export function short(number) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "";
  if (number === 0 || Math.abs(number) >= 100) return String(Math.round(number));
  return String(Number(number.toPrecision(2)));
}

// Made once: making one takes longer than using it a hundred times.
const TIME = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const DATE = new Intl.DateTimeFormat([], { day: "numeric", month: "short" });

// A time of day, with the date if that is not the day of `now`.
export function clock(at, now = Date.now()) {
  const time = TIME.format(at);
  const isToday = new Date(at).toDateString() === new Date(now).toDateString();
  return isToday ? time : `${DATE.format(at)} ${time}`;
}

// The key of a row. Its parts may have any characters.
export function key(...parts) {
  return JSON.stringify(parts);
}

// A text within a sentence. Characters that change the direction of what follows are shown as numbers.
export function plain(text) {
  return text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (it) => `\\u${it.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export function count(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

// The middle of a list of numbers.
export function median(numbers) {
  const sorted = numbers.filter((it) => it !== null && it !== undefined).sort((a, b) => a - b);
  return sorted.length === 0 ? null : sorted[Math.floor(sorted.length / 2)];
}
