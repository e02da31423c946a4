// What the workers of both Node pools run.
import workerpool from 'workerpool'

export const echo = (value) => value
export const pid = () => process.pid

export default ({ name, value }) => (name === 'pid' ? pid() : echo(value))

if (process.env.TASKFORK_COMPARE_POOL === 'workerpool') workerpool.worker({ echo, pid })
