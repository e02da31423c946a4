// A worker for Node without any dependency. Calls may be async.
//     taskfork serve --protocol json --listen unix:/tmp/packed.sock -- node examples/node_worker/worker.mjs
//     taskfork call unix:/tmp/packed.sock deflate 'a text a text a text'
import { createHash } from 'node:crypto';
import { Socket } from 'node:net';
import { promisify } from 'node:util';
import { deflate } from 'node:zlib';

const kept = new Map();

const methods = {
    echo: (value) => value,
    add: (a, b) => a + b,
    pid: () => process.pid,
    exit: (code) => process.exit(code),
    boom: (message) => { throw new Error(message); },
    digest: (text) => createHash('sha256').update(text).digest('hex'),
    deflate: async (text) => (await promisify(deflate)(text)).toString('base64'),
    keep: (name, value) => { kept.set(name, value); return null; },
    known: () => [...kept.keys()].sort(),
};

if (!process.env.TASKFORK_FD) {
    console.error('start it by: taskfork serve --protocol json --listen unix:PATH -- node worker.mjs');
    process.exit(2);
}
// Only the server ends a worker. taskfork starts the program with these signals ignored, because a terminal or a
// service manager sends them to all processes. Node resets that, so the worker ignores them again.
for (const signal of ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM']) process.on(signal, () => {});

const connection = new Socket({ fd: Number(process.env.TASKFORK_FD), readable: true, writable: true });
connection.setEncoding('utf8');

/** Cuts the stream where the outermost bracket closes. */
let [text, at, depth, inText, escaped] = ['', 0, 0, false, false];
function* messages(piece) {
    for (text += piece; at < text.length; at += 1) {
        const c = text[at];
        if (escaped) escaped = false;
        else if (inText) [escaped, inText] = [c === '\\', c !== '"'];
        else if (c === '"') inText = true;
        else if ('[{'.includes(c)) depth += 1;
        else if (']}'.includes(c) && (depth -= 1) === 0) {
            const message = JSON.parse(text.slice(0, at + 1));
            [text, at] = [text.slice(at + 1), -1];
            yield message;
        }
    }
}

for await (const piece of connection) {
    for (const [kind, , method, ...args] of messages(piece)) {
        if (kind === 'dn') { kept.clear(); continue; } // The checkout is done.
        try {
            if (!Object.hasOwn(methods, method)) throw new Error(`no method ${method}`);
            connection.write(JSON.stringify(['ok', {}, (await methods[method](...args)) ?? null]));
        } catch (error) {
            connection.write(JSON.stringify(['er', {}, error.message]));
        }
    }
}
process.exit(0);
