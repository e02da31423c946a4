// The pools of Node: `peers.mjs CANDIDATE WORK SCALE` prints one line of JSON.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const file = fileURLToPath(new URL('worker.mjs', import.meta.url))
const [candidate, work, scaleText] = process.argv.slice(2)
const scale = Number(scaleText)
const text = 'x'.repeat(64)
const now = () => performance.now() * 1000

const pools = {
  // With processes: its threads share one.
  async workerpool(workers) {
    process.env.TASKFORK_COMPARE_POOL = 'workerpool'
    const { default: workerpool } = await import('workerpool')
    const pool = workerpool.pool(file, {
      workerType: 'process', minWorkers: workers, maxWorkers: workers, maxQueueSize: 1e6,
    })
    return { call: (name, value) => pool.exec(name, [value]), close: () => pool.terminate(true) }
  },
  // With threads, which is all that it has.
  async piscina(workers) {
    const { default: Piscina } = await import('piscina')
    const pool = new Piscina({ filename: file, minThreads: workers, maxThreads: workers, maxQueue: 1e6 })
    return { call: (name, value) => pool.run({ name, value }), close: () => pool.destroy() }
  },
}

const pss = (pid) =>
  Number(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8').match(/^Pss:\s+(\d+)/m)[1])
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]

async function measure() {
  const started = now()
  const workers = { throughput: 2, checkouts: 20, pss: 4 }[work] ?? 1
  const pool = await pools[candidate](workers)
  try {
    await pool.call('echo', text)
    if (work === 'cold') return { value: now() - started }
    if (work === 'latency') {
      const times = []
      for (let call = 0; call < scale; call++) {
        const start = now()
        await pool.call('echo', text)
        times.push(now() - start)
      }
      const middle = median(times)
      return { value: middle, p99: times[Math.floor(times.length * 0.99)] }
    }
    if (work.startsWith('payload')) {
      const body = Buffer.alloc(scale << 10, 'x')
      await pool.call('echo', body)
      const start = now()
      await pool.call('echo', body)
      return { value: (2 * body.length) / (now() - start) }
    }
    if (work === 'throughput' || work === 'checkouts') {
      const start = now()
      await Promise.all(Array.from({ length: scale }, () => pool.call('echo', text)))
      return { value: (scale / (now() - start)) * 1e6 }
    }
    if (work === 'pss' && candidate === 'workerpool') {
      const calls = Array.from({ length: 200 }, () => pool.call('pid'))
      return { value: median([...new Set(await Promise.all(calls))].map(pss)) }
    }
    if (work === 'replace' && candidate === 'workerpool') {
      const victim = await pool.call('pid')
      const start = now()
      process.kill(victim, 'SIGKILL')
      while (now() - start < 5e6) {
        try {
          await pool.call('echo', text)
          return { value: now() - start }
        } catch {
          await new Promise((done) => setTimeout(done, 0))
        }
      }
      return { failed: 'the pool is broken for good' }
    }
    return { failed: 'does not do that' }
  } finally {
    await pool.close()
  }
}

console.log(JSON.stringify(await measure()))
process.exit(0)
