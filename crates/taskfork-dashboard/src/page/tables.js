// Tables whose rows have keys: an update changes only what differs, and focus and opened details stay. All text is set by
// `textContent`, so nothing that a worker or a peer has written becomes markup.

export class Table {
  // `columns` is a list of { name, kind }, where kind is "", "number" or "text". `caption` says what is in it.
  constructor(table, caption, columns, empty) {
    this.columns = columns;
    this.rows = new Map();
    const hidden = table.createCaption();
    hidden.textContent = caption;
    const head = table.createTHead().insertRow();
    for (const { name, kind } of columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      if (kind) cell.className = kind;
      head.append(cell);
    }
    this.body = table.createTBody();
    this.emptyRow = document.createElement("tr");
    const cell = this.emptyRow.insertCell();
    cell.colSpan = columns.length;
    cell.className = "empty";
    cell.textContent = empty;
  }

  // `rows` is a list of { key, cells }. A cell is text, or { text, mark, className, details, progress, buttons }.
  update(rows) {
    const focused = document.activeElement;
    const wanted = new Map();
    for (const row of rows) {
      // One element cannot be two rows: the later one would hide the earlier one.
      if (wanted.has(row.key)) console.error(`two rows have the key ${row.key}`);
      else wanted.set(row.key, row);
    }
    for (const [key, row] of this.rows) {
      if (!wanted.has(key)) {
        row.element.remove();
        this.rows.delete(key);
      }
    }
    let position = this.body.firstElementChild;
    for (const { key, cells } of wanted.values()) {
      let row = this.rows.get(key);
      if (row === undefined) {
        row = { element: document.createElement("tr"), cells: this.columns.map(() => ({})) };
        for (const { kind } of this.columns) row.element.insertCell().className = kind ?? "";
        this.rows.set(key, row);
      }
      cells.forEach((cell, place) => this.fill(row, place, cell));
      if (row.element === position) {
        position = position.nextElementSibling;
      } else {
        this.body.insertBefore(row.element, position);
      }
    }
    if (rows.length === 0) this.body.append(this.emptyRow);
    else this.emptyRow.remove();
    // A row that has moved has lost the focus.
    if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  }

  fill(row, place, value) {
    const cell = typeof value === "object" && value !== null ? value : { text: value };
    const element = row.element.cells[place];
    const shown = row.cells[place];
    const kind = this.columns[place].kind ?? "";
    const name = [kind, cell.mark ? "mark" : "", cell.className ?? ""].join(" ").trim();
    if (element.className !== name) element.className = name;
    const text = String(cell.text ?? "");
    if (shown.text !== text) {
      shown.text = text;
      shown.node ??= element.appendChild(document.createTextNode(""));
      shown.node.textContent = text;
    }
    if (cell.details !== undefined) this.fillDetails(element, shown, cell.details);
    if (cell.progress !== undefined) this.fillProgress(element, shown, cell.progress);
    if (cell.buttons !== undefined) this.fillButtons(element, shown, cell.buttons);
  }

  // `details` is { title, text, open }, or null.
  fillDetails(element, shown, details) {
    if (details === null) {
      shown.details?.remove();
      shown.details = undefined;
      return;
    }
    if (shown.details === undefined) {
      shown.details = document.createElement("details");
      shown.details.open = details.open === true;
      shown.details.append(document.createElement("summary"), document.createElement("pre"));
      element.append(shown.details);
    }
    const [title, text] = shown.details.children;
    if (title.textContent !== details.title) title.textContent = details.title;
    if (text.textContent !== details.text) text.textContent = details.text;
  }

  // `progress` is a fraction, or null.
  fillProgress(element, shown, progress) {
    if (progress === null) {
      shown.progress?.remove();
      shown.progress = undefined;
      return;
    }
    if (shown.progress === undefined) {
      shown.progress = document.createElement("progress");
      shown.progress.max = 1;
      element.prepend(shown.progress);
    }
    shown.progress.value = progress;
    shown.progress.setAttribute("aria-label", `${Math.round(progress * 100)} %`);
  }

  // `buttons` is a list of { text, label, className, act }. The functions may change, the texts do not.
  fillButtons(element, shown, buttons) {
    if (shown.buttons?.length !== buttons.length) {
      shown.buttons?.forEach((it) => it.remove());
      shown.buttons = buttons.map(({ text, className }, place) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = text;
        button.className = className ?? "";
        button.addEventListener("click", () => shown.acts[place]());
        element.append(button);
        return button;
      });
    }
    shown.acts = buttons.map((it) => it.act);
    buttons.forEach((it, place) => shown.buttons[place].setAttribute("aria-label", it.label));
  }
}
